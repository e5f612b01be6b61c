"""`mambaad calibrate --bad` and `fit --suspects` as they are typed."""

import json
from pathlib import Path

import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.cli.fit import parse_drop
from mambaad_cli.data import images
from mambaad_cli.inspection.overlays import write_suspects
from mambaad_cli.inspection.product import ScoredDefect
from tests.cli.test_commands import model, run  # noqa: F401 (model is a fixture)
from tests.conftest import calibrated, with_products, with_scores


def test_known_defects_are_counted_with_an_interval_and_change_nothing(
    tiny_model: FittedModel,
    model: Path,  # noqa: F811
    goods: Path,
) -> None:
    with_scores(tiny_model, {"nut": [-1e9, 1e9], "bolt": [-1e9]}).save(model)
    before = model.read_bytes()
    result = run("calibrate", model, "--bad", goods)
    assert result.exit_code == 0, result.output
    assert "nut: misses 6 of 6 known defects; with 95% confidence the true share is 54.1% to 100%" in result.stdout
    assert "bolt: misses 0 of 6 known defects; with 95% confidence the true share is 0% to 45.9%" in result.stdout
    assert "would find them all, and reject 1 of 2 good images" in result.stdout
    assert model.read_bytes() == before
    stamp = model.stat().st_mtime_ns
    run("calibrate", model, "--bad", goods)
    assert model.stat().st_mtime_ns == stamp  # a question writes nothing


def test_what_thresholds_promise_and_find_is_one_json_object(
    goods: Path, tiny_model: FittedModel, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    known = with_scores(tiny_model, {"nut": [-1e9, 1e9], "bolt": [-1e9]})
    defects = (ScoredDefect("spot", 5.0, 2e9), ScoredDefect("spot", 9.0, 0.0))
    nut = calibrated(known.products["nut"], [-1e9, 1e9], simulated=defects)
    bolt = calibrated(known.products["bolt"], [-1e9], promising=False)
    with_products(known, nut, bolt).save(path)
    result = run("calibrate", path, "--bad", goods, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["model"], found["max_false_reject"]) == (str(path), 0.04)
    nut, bolt = found["classes"]["nut"], found["classes"]["bolt"]
    assert (nut["threshold"], nut["good_images"], nut["held_out"], nut["above_threshold"]) == (1e9, 2, True, 0)
    assert nut["promised_false_rejects"] == pytest.approx(1 / 3)
    assert nut["simulated_defects"] == [{"kind": "spot", "found": 1, "total": 2, "length": None}]
    assert (nut["known_defects"]["missed"], nut["known_defects"]["would_reject"]) == (6, 1)
    assert (bolt["promised_false_rejects"], bolt["known_defects"]["threshold_that_finds_all"]) == (None, None)


@pytest.mark.parametrize("text", ["few", "-1", "1.5", ""])
def test_suspects_to_drop_are_a_number_or_auto(text: str) -> None:
    result = run("fit", ".", "--drop-suspects", text)
    assert result.exit_code == 2


def test_suspects_are_drawn_on_a_contact_sheet(goods: Path, tmp_path: Path) -> None:
    files = images.find([goods / "nut"])[:2]
    path = write_suspects([(file, 4.2, (0.5, 0.5)) for file in files], tmp_path / "odd")
    assert path == tmp_path / "odd" / "suspects.png"
    assert images.read(path).shape[1] > 2 * 224
    assert parse_drop("auto") == "auto"
