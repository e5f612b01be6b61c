"""`mambaad learn` as it is typed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from mambaad_cli.data import images
from mambaad_cli.inspection import store
from tests.cli.test_commands import complaint, fitting, run  # noqa: F401 (fitting is a fixture)
from tests.inspection.conftest import DETAILED, photos_of, two_products
from tests.inspection.test_teaching import with_spot

BAD = ("--bad", "bad", "--masks", "masks")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("learn") / "m.safetensors"
    store.save(two_products(**DETAILED), path)
    return path


@pytest.fixture
def model(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of nuts and bolts, and photos that somebody judged: bad/nut/spot, good/nut."""
    monkeypatch.chdir(tmp_path)
    Path("m.safetensors").write_bytes(fitted.read_bytes())
    for i, photo in enumerate(photos_of("nut", 4, start=40)):
        images.write(Path("bad/nut/spot") / f"{i}.png", with_spot(photo, (250, 250, 250)))
        images.write(Path("masks") / f"{i}.png", with_spot(np.zeros_like(photo), (255, 255, 255)))
    for i, photo in enumerate(photos_of("nut", 2, start=90)):
        images.write(Path("good/nut") / f"{i}.png", photo)
    return Path("m.safetensors")


def test_verdicts_are_learnt_listed_and_forgotten(model: Path) -> None:
    before = store.load(model).products["nut"]
    result = run("learn", model, *BAD, "--good", "good", "-o", "new.safetensors")
    assert result.exit_code == 0, result.output
    assert "nut: knows 4 defects, and 2 parts that were rejected by mistake" in result.stdout
    assert "known defects found, each judged without itself: " in result.stdout
    assert "of 4" in result.stdout
    assert "estimated from training photos" in result.stdout
    assert store.load(model).products["nut"].learnt.taught is None  # the old file stays as it was
    listed = run("learn", "new.safetensors", "--list").stdout.splitlines()
    assert len(listed) == 6
    assert listed[0].startswith("nut: nut/spot/0.png (bad, spot), taught 20")
    rows = json.loads(run("learn", "new.safetensors", "--list", "--json").stdout)
    assert [row["good"] for row in rows] == [False] * 4 + [True] * 2
    forgotten = [option for row in rows for option in ("--forget", row["name"])]
    assert run("learn", "new.safetensors", *forgotten).exit_code == 0
    after = store.load(Path("new.safetensors")).products["nut"]
    assert after.learnt.taught is None
    assert after.calibration == before.calibration
    assert run("learn", "new.safetensors", "--list").stdout == "nothing was taught\n"


def test_scores_and_thresholds_know_what_was_learnt(model: Path) -> None:
    scored = run("score", "bad", "-m", model, "--json").stdout.splitlines()
    facts = json.loads(run("learn", model, *BAD, "--json").stdout)["classes"]["nut"]
    assert (facts["known_defects"], facts["rejected_by_mistake"]) == (4, 0)
    assert len(facts["judged"]) == 4
    again = run("score", "bad", "-m", model, "--json").stdout.splitlines()
    rises = [json.loads(new)["score"] - json.loads(old)["score"] for new, old in zip(again, scored, strict=True)]
    assert (min(rises) > 0) == (facts["weight"] > 0)
    assert [json.loads(line)["threshold"] for line in again] == pytest.approx([facts["threshold"][1]] * 4, rel=1e-5)


def test_a_photo_that_teaches_nothing_is_left_out_and_said(model: Path) -> None:
    Path("bad/nut/spot/broken.png").write_bytes(b"no picture")
    result = run("learn", model, *BAD)
    assert result.exit_code == 1
    assert "mambaad: bad/nut/spot/broken.png: " in result.stderr
    assert "knows 4 defects" in result.stdout
    Path("none/nut").mkdir(parents=True)
    Path("none/nut/broken.png").write_bytes(b"no picture")
    before = model.read_bytes()
    result = run("learn", model, "--good", "none")
    assert result.exit_code == 1
    assert "no photo teaches anything: the model stays as it was" in result.stderr
    assert model.read_bytes() == before


def test_what_has_no_meaning_is_refused(model: Path) -> None:
    for options in ((), ("--masks", "bad"), ("--good", "good", "--masks", "bad")):
        result = run("learn", model, *options)
        assert result.exit_code == 2, options
    assert "the model knows no class 'gear'" in complaint(run("learn", model, "--good", "good", "--class", "gear"))
    assert "elsewhere.png was never taught" in complaint(run("learn", model, "--forget", "elsewhere.png"))
    images.write(Path("bad/nut/spot/same.png"), images.read(Path("good/nut/0.png")))
    Path("good/nut/0.png").write_bytes(Path("bad/nut/spot/same.png").read_bytes())
    images.write(Path("masks/same.png"), images.read(Path("masks/0.png")))
    assert "is both good and bad" in complaint(run("learn", model, *BAD, "--good", "good"))


def test_corrections_of_a_report_are_learnt(model: Path) -> None:
    scored = [json.loads(line) for line in run("score", "bad", "good", "-m", model, "--json").stdout.splitlines()]
    corrections = [
        {"path": row["path"], "product": row["class"], "verdict": row["verdict"], "correct": row["path"].split("/")[0]}
        for row in scored
    ]
    corrections.append({"path": "gone.png", "correct": "good"})
    Path("corrections.json").write_text(json.dumps({"schema": 1, "corrections": corrections}))
    result = run("learn", model, "--corrections", "corrections.json", "--masks", "masks")
    assert result.exit_code == 1
    assert "gone.png: no such file" in result.stderr
    assert "nut: knows 4 defects, and 2 parts that were rejected by mistake" in result.stdout


def test_class_names_the_product_of_corrections_that_have_none(model: Path) -> None:
    """Photos of another kind, which look like no product."""
    Path("photos").mkdir()
    for i in range(2):
        photo = np.random.default_rng(i).integers(0, 255, (80, 96, 3), dtype=np.uint8)
        images.write(Path("photos") / f"{i}.png", photo)
    corrections = [{"path": f"photos/{i}.png", "product": "", "correct": "good"} for i in range(2)]
    Path("corrections.json").write_text(json.dumps({"schema": 1, "corrections": corrections}))
    assert "no photo teaches anything" in run("learn", model, "--corrections", "corrections.json").stderr
    result = run("learn", model, "--corrections", "corrections.json", "--class", "bolt")
    assert result.exit_code == 0, result.output
    assert "bolt: knows 0 defects, and 2 parts that were rejected by mistake" in result.stdout


def test_learnt_defects_make_no_map_colder(model: Path) -> None:
    import mambaad_cli

    photo = images.read(Path("good/nut/1.png"))
    plain = mambaad_cli.load(model).predict(photo, "nut").anomaly_map
    run("learn", model, *BAD)
    known = mambaad_cli.load(model).predict(photo, "nut").anomaly_map
    assert plain is not None
    assert known is not None
    assert float(np.min(known - plain)) > -1e-3 * abs(float(plain.max()))


def test_fit_learns_known_defects_at_once_and_refuses_early(
    fitting: Callable[..., Result],  # noqa: F811
    tmp_path: Path,
) -> None:
    for i, photo in enumerate(photos_of("nut", 6)):
        images.write(tmp_path / "parts" / "nut" / f"{i}.png", photo)
    for i, photo in enumerate(photos_of("nut", 2, start=40)):
        images.write(tmp_path / "bad" / "nut" / f"{i}.png", with_spot(photo, (250, 250, 250)))
        images.write(tmp_path / "masks" / f"{i}.png", with_spot(np.zeros_like(photo), (255, 255, 255)))
    learning = ("--bad", "bad", "--masks", "masks", "--evidence", "memory")
    assert "nut: knows 2 defects" in fitting("parts", *learning).stdout
    found = json.loads(fitting("parts", *learning, "--json").stdout)  # and nothing else
    assert list(found["classes"]) == ["nut"]
    Path("mambaad.safetensors").unlink()
    assert fitting("parts", "--bad", "nowhere").exit_code != 0
    assert fitting("parts", "--masks", "masks").exit_code == 2
    assert fitting("parts", "--bad", "bad", "--evidence", "decoder").exit_code == 2
    for tiles in (("--tiles",), ("--tile-size", "128")):
        refused = fitting("parts", "--bad", "bad", "--evidence", "memory", *tiles)
        assert refused.exit_code == 2
        assert "a model with tiles learns no defects" in " ".join(refused.stderr.split())
    assert not Path("mambaad.safetensors").exists()
