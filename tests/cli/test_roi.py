"""Regions of interest from fit to overlay: what lies outside them changes nothing."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import Result

import mambaad_cli as mambaad
from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import PredictOptions
from tests.cli.test_commands import fitting, run  # noqa: F401 (fitting is a fixture)
from tests.conftest import picture, with_scores

INSIDE = "25%,25%,50%,50%"
MODEL = Path("mambaad.safetensors")


def disturbed(seed: int) -> np.ndarray:
    """The picture with a bright frame that stays outside INSIDE."""
    found = picture(seed)
    found[:18] = found[62:] = 255
    found[:, :22] = found[:, 74:] = 0
    return found


def scores(*args: object) -> dict[str, float]:
    result = run("score", *args, "--csv")
    assert result.exit_code == 0, result.output
    return {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(io.StringIO(result.stdout))}


@pytest.mark.parametrize("evidence", ["both", "memory"])
def test_a_disturbance_outside_the_region_leaves_the_score_as_it_is(
    fitting: Callable[..., Result],  # noqa: F811
    goods: Path,
    tmp_path: Path,
    evidence: str,
) -> None:
    fitted = fitting(goods, "--roi", f"nut={INSIDE}", "--evidence", evidence)
    assert fitted.exit_code == 0, fitted.output
    images.write(tmp_path / "in" / "plain.png", picture(50))
    images.write(tmp_path / "in" / "disturbed.png", disturbed(50))
    for told in (["--class", "nut"], []):
        found = scores(tmp_path / "in", *told)
        assert found["disturbed.png"] == pytest.approx(found["plain.png"], rel=1e-6)
    without = scores(tmp_path / "in", "--class", "bolt")
    assert without["disturbed.png"] != without["plain.png"]


def test_maps_are_cold_outside_and_regions_lie_inside(
    fitting: Callable[..., Result],  # noqa: F811
    goods: Path,
    tmp_path: Path,
) -> None:
    assert fitting(goods / "nut", "--roi", INSIDE, "--evidence", "both").exit_code == 0
    model = with_scores(mambaad.load(MODEL), {"nut": [-1e6]})  # everything is above
    images.write(tmp_path / "in" / "1.png", picture(51))
    files = images.find([tmp_path / "in"])
    one = next(predict(model.scorer, files, PredictOptions(maps=True, min_area=0)))
    assert one.inside is not None
    assert one.anomaly_map is not None
    assert one.regions is not None
    assert len(set(one.anomaly_map[~one.inside].tolist())) == 1
    assert one.anomaly_map[~one.inside].max() <= one.anomaly_map[one.inside].min()
    x, y, width, height = one.regions[0].box
    assert np.abs(np.subtract((x, y, width, height), (24, 20, 48, 40))).max() <= 2  # a pixel of the map is 1.5 wide
    model = with_scores(model, {"nut": [1e6]})
    found, plain = next(predict(model.scorer, files, PredictOptions(maps=True))).overlay(), picture(51)
    assert found[:15].astype(int).mean() < 0.6 * plain[:15].mean()  # dimmed
    np.testing.assert_array_equal(found[30:50, 40:60], plain[30:50, 40:60])


def test_each_photo_may_have_a_mask_of_its_own(
    fitting: Callable[..., Result],  # noqa: F811
    goods: Path,
    tmp_path: Path,
) -> None:
    for i in range(6):
        mask = np.zeros((80, 96), np.uint8)
        mask[20 + i : 60 + i, 24:72] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / f"{i}.png"), mask)
    fitted = fitting(goods / "nut", "--roi-dir", tmp_path / "masks", "--evidence", "both")
    assert fitted.exit_code == 0, fitted.output
    images.write(tmp_path / "in" / "a" / "0.png", picture(50))
    images.write(tmp_path / "in" / "b" / "0.png", disturbed(50))
    result = run("score", tmp_path / "in", "--roi-dir", tmp_path / "masks", "--csv")
    plain, other = [float(row["score"]) for row in csv.DictReader(io.StringIO(result.stdout))]
    assert other == pytest.approx(plain, rel=1e-6)
    result = run("score", tmp_path / "in")
    assert (result.exit_code, "--roi-dir" in result.stderr) == (1, True)
    images.write(tmp_path / "in" / "9.png", picture(50))
    result = run("score", tmp_path / "in" / "9.png", "--roi-dir", tmp_path / "masks", "--json")
    assert "no mask named 9" in json.loads(result.stdout)["error"]


def test_another_region_asks_for_another_threshold(
    fitting: Callable[..., Result],  # noqa: F811
    goods: Path,
    tmp_path: Path,
) -> None:
    assert fitting(goods / "nut", "--roi", INSIDE).exit_code == 0
    assert "not of this region" not in run("score", goods / "nut", "--roi", INSIDE).stderr
    assert "the threshold is not of this region" in run("score", goods / "nut", "--roi", "0,0,50%,50%").stderr
    result = run("calibrate", MODEL, goods / "nut", "--roi", "0,0,50%,50%")
    assert (result.exit_code, "not of this region" in result.stderr) == (0, False)
    mask = store.load(MODEL).products["nut"].region
    assert mask is not None
    assert mask[:40, :48].all()
    assert mask.sum() == 40 * 48
    assert "needs a threshold of its own" in run("calibrate", MODEL, "--roi", "0,0,9,9", "--bad", goods).stderr


def test_a_product_with_a_region_can_be_added(fitting: Callable[..., Result], goods: Path) -> None:  # noqa: F811
    assert fitting(goods / "nut", "--roi", INSIDE, "--evidence", "both").exit_code == 0
    result = run("fit", goods / "bolt", "--add", "--roi", "0,0,50%,100%", "--epochs", 1)
    assert result.exit_code == 0, result.output
    regions = {name: product.region for name, product in store.load(MODEL).products.items()}
    assert {name: mask.mean() for name, mask in regions.items() if mask is not None} == {"nut": 0.25, "bolt": 0.5}


@pytest.mark.parametrize(("region", "why"), [("0,0 9,9", "three or more corners"), ("200,0,9,9", "lies outside")])
def test_a_region_that_is_none_ends_fit_in_one_line(
    fitting: Callable[..., Result],  # noqa: F811
    goods: Path,
    region: str,
    why: str,
) -> None:
    result = fitting(goods, "--roi", region)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert why in result.stderr
