"""`mambaad report`, `score --report` and `eval --report` as they are typed."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from tests.cli.test_commands import complaint, model, run  # noqa: F401 (model is a fixture)
from tests.cli.test_msa import with_own_masks
from tests.conftest import DATA, calibrated, picture, with_products


@pytest.fixture
def rows(model: Path, goods: Path) -> Path:  # noqa: F811
    """Rows of twelve images, and one that is cut."""
    result = run("score", goods, "--json", "--regions", "-o", "rows.jsonl")
    assert result.exit_code == 0, result.output
    with Path("rows.jsonl").open("a") as file:
        file.write('{"path": "cut')
    return Path("rows.jsonl")


def page(path: str = "report.html") -> str:
    return Path(path).read_text(encoding="utf-8")


def model_named(model: Path) -> str:  # noqa: F811
    """As the record names the model of the rows."""
    return f"{hashlib.sha256(model.read_bytes()).hexdigest()[:12]}…"


def test_a_report_holds_photos_overlays_and_the_record(rows: Path, model: Path, goods: Path) -> None:  # noqa: F811
    result = run("report", rows, "-o", "report.html", "--model", model, "--link", "--title", "Line <4>")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"12 images in report\.html \(0\.\d MB\)\n", result.stdout)
    assert "rows.jsonl: left out damaged lines: 13" in result.stderr
    text = page()
    assert "<title>Line &lt;4&gt;</title>" in text
    assert text.count('data-src="data:image/webp;base64,') == 24  # a photo and an overlay each
    assert 'data-why="data:image/webp;base64,' in text
    assert 'href="goods/nut/0.png"' in text
    for digest in (hashlib.sha256(model.read_bytes()).hexdigest(), hashlib.sha256(rows.read_bytes()).hexdigest()):
        assert digest in text


def test_a_model_with_a_mask_for_each_photo_reports_with_these_masks(
    rows: Path,
    tiny_model: FittedModel,
    model: Path,  # noqa: F811
    goods: Path,
) -> None:
    masks = with_own_masks(tiny_model, model, sorted(goods.rglob("*.png")))
    options = ("report", rows, "-o", "report.html", "--model", model)
    assert "--roi-dir" in complaint(run(*options))
    result = run(*options, "--roi-dir", masks)
    assert result.exit_code == 0, result.output
    assert "could not be read" not in result.stderr
    assert page().count('data-src="data:image/webp;base64,') == 24


@pytest.mark.parametrize("option", [("--roi-dir", "."), ("--res", "128"), ("--device", "cpu"), ("--batch", "2")])
def test_options_of_a_model_need_one(rows: Path, option: tuple[str, str]) -> None:
    result = run("report", rows, "-o", "report.html", *option)
    assert (result.exit_code, f"{option[0]}: only with --model" in result.stderr) == (2, True)


def test_without_a_model_the_photos_are_there(rows: Path) -> None:
    result = run("report", rows, "-o", "report.html", "--pictures", "5")
    assert result.exit_code == 0, result.output
    assert page().count("data:image/webp;base64,") == 5
    assert 'href="goods' not in page()


def test_rows_of_another_model_are_named(rows: Path, model: Path) -> None:  # noqa: F811
    rows.write_text(re.sub(r'"model": "\w+"', '"model": "0123456789ab"', rows.read_text()))
    result = run("report", rows, "-o", "report.html", "--model", model)
    assert "rows of another model" in result.stderr
    assert "0123456789ab" in result.stderr


def test_photos_that_a_watch_moved_are_found(model: Path, goods: Path) -> None:  # noqa: F811
    options = ("-o", "w.jsonl", "--model", model, "--once", "--settle", 0, "--batch", 4)
    assert run("watch", goods, *options, "--move-to", "done").exit_code == 0
    result = run("report", "w.jsonl", "-o", "report.html", "--model", model, "--link")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert page().count('data-src="data:image/webp;base64,') == 24
    assert re.search(r'href="done/\w+/nut/0\.png"', page())


def test_photos_that_are_gone_are_counted(rows: Path, goods: Path) -> None:
    (goods / "nut" / "0.png").unlink()
    result = run("report", rows, "-o", "report.html")
    assert result.exit_code == 0, result.output
    assert "photos that could not be read, shown without pictures: 1" in result.stderr


def test_a_gauge_study_is_part_of_it(rows: Path, tmp_path: Path) -> None:
    study = tmp_path / "msa.json"
    study.write_text(run("msa", DATA / "gauge" / "aiag.csv", "--json").stdout)
    result = run("report", rows, "-o", "report.html", "--msa", study)
    assert result.exit_code == 0, result.output
    assert "Distinct categories (ndc)" in page()
    assert "27.9%" in page()
    study.write_text(json.dumps({"parts": 1}))
    assert "is no gauge study" in complaint(run("report", rows, "-o", "report.html", "--msa", study))


def test_a_report_never_replaces_what_it_is_made_of(rows: Path) -> None:
    assert "would be written over" in complaint(run("report", rows, "-o", rows))


def test_score_writes_its_rows_and_a_report(goods: Path, model: Path) -> None:  # noqa: F811
    (goods / "nut" / "bad.png").write_text("no image")
    result = run("score", goods, "--csv", "--report", "report.html")
    assert result.exit_code == 1, result.output
    assert result.stdout.count("\n") == 14
    assert page().count('data-src="data:image/webp;base64,') == 24
    assert page().count('data-verdict="error"') == 1
    assert model_named(model) in page()
    assert "would be written over" in complaint(run("score", goods, "--report", goods / "nut" / "0.png"))


def test_eval_reports_what_each_image_really_is(tiny_model: FittedModel, model: Path, tmp_path: Path) -> None:  # noqa: F811
    with_products(tiny_model, calibrated(tiny_model.products["nut"], [1.0])).save(model)
    for i in range(2):
        images.write(tmp_path / f"set/nut/test/good/{i}.png", picture(i))
        images.write(tmp_path / f"set/nut/test/dent/{i}.png", picture(10 + i))
    (tmp_path / "set/nut/train/good").mkdir(parents=True)
    images.write(tmp_path / "set/nut/train/good/0.png", picture())
    result = run("eval", "set", "--report", "report.html")
    assert result.exit_code == 0, result.output
    assert (page().count('data-reference="dent"'), page().count('data-reference="good"')) == (2, 2)
    assert page().count("data:image/webp;base64,") == 8
    assert model_named(model) in page()
