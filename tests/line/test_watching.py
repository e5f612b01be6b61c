import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from mambaad_cli.cli.watch import Renewing
from mambaad_cli.data import images
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.rows import COLUMNS, csv_line, row
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.line.placing import place
from mambaad_cli.line.watching import Watch, WatchOptions
from tests.conftest import calibrated, picture, with_products

ROOT = Path(mambaad_cli.__file__).parent.parent


@pytest.fixture
def watched(tiny_model: FittedModel, goods: Path, tmp_path: Path) -> Callable[..., tuple["Counter[str]", list[str]]]:
    """Watch goods/ once, into rows.jsonl; the verdicts and what was said."""

    def once(
        output: str = "rows.jsonl", model: FittedModel = tiny_model, **options: Any
    ) -> tuple["Counter[str]", list[str]]:
        said: list[str] = []
        choices = WatchOptions(settle=0.0, once=True, **options)
        watch = Watch(model.scorer, goods, tmp_path / output, choices, say=said.append)
        try:
            return watch.run(), said
        finally:
            watch.close()

    return once


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_photo_gets_the_row_that_score_gives_and_only_one(
    watched: Callable[..., Any], tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    (goods / "bad.png").write_text("no image")
    counts, said = watched()
    assert (sum(counts.values()), counts["error"], said) == (13, 1, [])
    files = images.find([goods])
    expected = {str(one.file.path): row(one) for one in predict(tiny_model.scorer, files)}
    found = rows(tmp_path / "rows.jsonl")
    assert {one["path"] for one in found} == set(expected)
    for one in found:
        want = expected[one["path"]]
        assert (one["class"], one["verdict"], one["error"]) == (want["class"], want["verdict"], want["error"])
        assert one["score"] == (None if want["score"] is None else pytest.approx(want["score"], rel=1e-4))
        assert one["schema"] == 1
    assert watched()[0] == {}
    images.write(goods / "nut" / "0.png", picture(7))  # another photo of the same name
    images.write(goods / "nut" / "new.png", picture(8))
    assert sum(watched()[0].values()) == 2
    assert len(rows(tmp_path / "rows.jsonl")) == 15


def test_a_model_that_was_replaced_scores_from_the_next_photos_on(
    watched: Callable[..., Any], tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    tiny_model.save(path)
    first = mambaad_cli.load(path)
    other = with_products(first, *(calibrated(product, [-1e9]) for product in first.products.values()))
    other.save(tmp_path / "other.safetensors")
    second = mambaad_cli.load(tmp_path / "other.safetensors")
    renewing = Renewing(path, lambda: mambaad_cli.load(path).scorer)
    asked = 0

    def renewed() -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:  # before the second batch
            (tmp_path / "other.safetensors").replace(path)
        return renewing.scorer()

    _, said = watched(model=first, renewed=renewed, predict=PredictOptions(batch=8))
    assert said == [f"the model was replaced: photos are scored by {second.sha256} from now on"]
    found = rows(tmp_path / "rows.jsonl")
    assert [one["model"] for one in found] == [first.sha256] * 8 + [second.sha256] * 4
    assert {one["verdict"] for one in found[8:]} == {"anomalous"}
    assert watched(model=second)[1] == []  # the rows are of this model now


def test_a_model_that_cannot_be_read_is_said_once_and_not_used(
    tiny_model: FittedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    tiny_model.save(path)
    renewing = Renewing(path, lambda: mambaad_cli.load(path).scorer)
    assert renewing.scorer() is None
    path.write_bytes(b"half of a model")
    assert (renewing.scorer(), renewing.scorer()) == (None, None)
    assert capsys.readouterr().err.count("going on with the model that was there") == 1
    path.unlink()
    assert renewing.scorer() is None
    tiny_model.save(path)
    assert renewing.scorer() is not None


def test_csv_rows_have_the_columns_of_score(watched: Callable[..., Any], tmp_path: Path) -> None:
    watched("rows.csv")
    watched("rows.csv")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0] + "\n" == csv_line(COLUMNS)
    assert len(lines) == 13


def test_overlays_are_written_where_asked_for(watched: Callable[..., Any], goods: Path, tmp_path: Path) -> None:
    images.write(goods / "nut" / "0.jpg", picture(1))
    watched(maps=tmp_path / "maps", predict=PredictOptions(min_area=0), regions=True)
    assert (tmp_path / "maps" / "nut" / "0.png").is_file()
    assert cv2.imread(str(tmp_path / "maps" / "nut" / "0.jpg.png")).shape == (80, 96, 3)
    assert all("regions" in one for one in rows(tmp_path / "rows.jsonl"))


def test_overlays_show_the_region_of_interest(
    watched: Callable[..., Any], tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    """As those of `mambaad map`: the pixels outside are dimmed."""
    left = np.zeros((80, 96), bool)
    left[:, :48] = True
    scores = [1.0, 2.0, 3.0]
    seen = [calibrated(product.under(region=left), scores) for product in tiny_model.products.values()]
    model = with_products(tiny_model, *seen)
    watched(model=model, maps=tmp_path / "maps")
    (prediction,) = predict(model.scorer, images.find([goods / "nut" / "0.png"]), PredictOptions("nut", maps=True))
    assert prediction.inside is not None
    written = images.read(tmp_path / "maps" / "nut" / "0.png").astype(int)
    assert np.abs(written - prediction.overlay()).max() <= 1


def test_the_runtime_is_that_for_many_photos(watched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def expecting(self: TorchScorer, images: int | None) -> TorchScorer:
        asked.append(images)
        return self

    monkeypatch.setattr(TorchScorer, "expecting", expecting)
    watched()
    assert set(asked) == {None}


def test_photos_are_moved_by_verdict_those_of_an_interrupted_run_too(
    watched: Callable[..., Any], goods: Path, tmp_path: Path
) -> None:
    watched()
    assert len(images.find([goods])) == 12  # they stayed where they were, as if a run had ended before it moved them
    (goods / "nut" / "bad\n.png").write_text("no image")
    watched(move_to=tmp_path / "done")
    assert list(goods.rglob("*.png")) == []
    by_row = {one["path"]: one["verdict"] for one in rows(tmp_path / "rows.jsonl")}
    assert len(by_row) == 13
    for path, verdict in by_row.items():
        assert (tmp_path / "done" / verdict / Path(path).relative_to(goods)).is_file()


def test_a_row_says_where_its_photo_is_moved_whatever_is_there_already(
    watched: Callable[..., Any], goods: Path, tmp_path: Path
) -> None:
    for verdict in ("good", "anomalous", "review"):
        (tmp_path / "done" / verdict / "nut").mkdir(parents=True)
        (tmp_path / "done" / verdict / "nut" / "0.png").touch()
    images.write(goods / "nut" / "0_2.png", picture(7))  # whose name the first one would take
    (goods / "nut" / "bad.png").write_text("no image")
    before = {str(path): path.read_bytes() for path in goods.rglob("*.png")}
    watched(move_to=tmp_path / "done")
    moved = {one["path"]: Path(one["moved_to"]) for one in rows(tmp_path / "rows.jsonl")}
    assert {name: path.read_bytes() for name, path in moved.items()} == before


def test_a_photo_that_is_written_anew_while_it_is_scored_is_not_moved_but_scored(
    watched: Callable[..., Any], goods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anew(self: Watch, one: Prediction, folder: Path) -> None:
        if one.file.path == goods / "nut" / "0.png" and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            images.write(one.file.path, picture(99))

    monkeypatch.setattr(Watch, "_write_overlay", anew)
    watched(maps=tmp_path / "maps", move_to=tmp_path / "done")
    found = [one["score"] for one in rows(tmp_path / "rows.jsonl") if one["path"].endswith("nut/0.png")]
    assert len(set(found)) == 2
    assert [(images.read(path) == picture(99)).all() for path in (tmp_path / "done").rglob("nut/0*.png")] == [True]


def test_moving_writes_nothing_over(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text(name)
    assert place(tmp_path / "a.png", tmp_path / "new" / "x.png").name == "x.png"
    assert place(tmp_path / "b.png", tmp_path / "new" / "x.png").name == "x_2.png"
    assert (tmp_path / "new" / "x.png").read_text() == "a.png"


def test_folders_inside_the_watched_one_and_a_missing_one_are_refused(
    watched: Callable[..., Any], tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    for option in ("maps", "move_to"):
        with pytest.raises(MambaADError, match="lies in the folder that is watched"):
            watched(**{option: goods / "x"})
    with pytest.raises(MambaADError, match="^no folder "):
        Watch(tiny_model.scorer, tmp_path / "none", tmp_path / "rows.jsonl", WatchOptions())


@pytest.fixture
def command(tiny_model: FittedModel, goods: Path, tmp_path: Path) -> Callable[..., Result]:
    """`mambaad watch goods --once` with a model file."""
    tiny_model.save(tmp_path / "m.safetensors")

    def run(*options: object, output: str = "rows.jsonl") -> Result:
        arguments = ["watch", goods, "-o", tmp_path / output, "-m", tmp_path / "m.safetensors", "--once", "--settle", 0]
        return CliRunner().invoke(app, [str(one) for one in [*arguments, *options]], prog_name="mambaad")

    return run


def test_a_command_gets_each_row_as_it_is_in_the_file(command: Callable[..., Result], tmp_path: Path) -> None:
    result = command("--exec", f"tee -a '{tmp_path}/got'")
    assert result.exit_code == 0
    assert result.stderr.startswith("12 photos: ")
    assert (tmp_path / "got").read_text() == (tmp_path / "rows.jsonl").read_text()
    assert command().stderr.startswith("12 photos have a row already\n0 photos; rows in ")


def test_what_cannot_be_done_is_said_before_any_photo_is_scored(command: Callable[..., Result], tmp_path: Path) -> None:
    for options in (
        ["--webhook", "file:///etc/passwd"],
        ["--exec", ""],
        ["--class", "bolts"],
        ["--maps", tmp_path / "goods"],
    ):
        result = command(*options)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert command("--regions", output="rows.csv").exit_code == 2
    assert not (tmp_path / "rows.jsonl").exists()


def test_masks_of_photos_are_taken_from_a_folder(
    command: Callable[..., Result], tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    masked = [product.under(own_masks=True) for product in tiny_model.products.values()]
    with_products(tiny_model, *masked).save(tmp_path / "m.safetensors")
    result = command()
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.endswith("give their folder with --roi-dir\n")
    assert not (tmp_path / "rows.jsonl").exists()
    for i in range(6):
        images.write(tmp_path / "masks" / f"{i}.png", np.full((80, 96), 255, np.uint8))
    assert command("--roi-dir", tmp_path / "masks").exit_code == 0
    assert {row["error"] for row in rows(tmp_path / "rows.jsonl")} == {""}


@pytest.mark.slow
def test_killed_in_the_middle_of_500_photos_each_has_exactly_one_row(tiny_model: FittedModel, tmp_path: Path) -> None:
    """With a log rotation in between. Also: SIGTERM ends a watch in order, with status 0."""
    tiny_model.save(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    small = picture(height=16, width=16)
    for i in range(500):
        images.write(tmp_path / "in" / f"{i}.bmp", small)
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "mambaad_cli", "watch", tmp_path / "in", "-o", output, "-m"]
    command += [tmp_path / "m.safetensors", "--class", "nut", "--settle", "0", "--batch", "20", "--res", "32"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def lines_reach(count: int, process: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + 600
        while not output.exists() or output.read_bytes().count(b"\n") < count:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.005)

    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        lines_reach(100, process)
        output.rename(tmp_path / "rows.jsonl.1")
        lines_reach(20, process)
        process.kill()
    before = output.read_bytes().count(b"\n") + (tmp_path / "rows.jsonl.1").read_bytes().count(b"\n")
    assert 120 <= before < 500
    output.rename(tmp_path / "rows.jsonl.2")
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        lines_reach(1, process)  # it has cut what it wrote last
        rotated = sum((tmp_path / f"rows.jsonl.{i}").read_bytes().count(b"\n") for i in (1, 2))
        lines_reach(500 - rotated, process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"photos: " in said
    files = [output, tmp_path / "rows.jsonl.1", tmp_path / "rows.jsonl.2"]
    found = [Path(row["path"]).name for path in files for row in rows(path)]
    assert len(found) == 500
    assert set(found) == {f"{i}.bmp" for i in range(500)}
