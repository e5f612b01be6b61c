import json
import pickle
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.files import sha256_of
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.row_files import Damaged, Row
from mambaad_cli.line.monitoring import Monitor
from tests.conftest import calibrated, record_of, with_products

USUAL = PhotoStatistics(0.5, 0.25, 0.3)


@pytest.fixture
def model(tiny_model: FittedModel) -> ModelRecord:
    """It knows 200 scores and photos of good nuts, all normal; its threshold is not far above them."""
    rng = np.random.default_rng(0)
    scores = rng.normal(10, 1, 200).tolist()
    photos = tuple(PhotoStatistics(*one) for one in rng.normal(USUAL[:3], (0.01, 0.005, 0.01), (100, 3)).tolist())
    nut = calibrated(tiny_model.products["nut"], scores, max_false_reject=0.01, photos=photos)
    return replace(record_of(with_products(tiny_model, nut, tiny_model.products["bolt"])), sha256="m")


def lines(
    count: int = 200, shift: float = 0.0, photo: PhotoStatistics = USUAL, seed: int = 1, rejected: float = 0.0
) -> list[Row]:
    """Rows of nuts from a line that is as usual, but for what is told."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        verdict = "anomalous" if rng.random() < rejected else "good"
        taken = PhotoStatistics(*rng.normal(photo[:3], (0.01, 0.005, 0.01)).tolist())
        score = float(rng.normal(10 + shift))
        found.append(Row(f"{i}.png", "nut", score, 99.0, verdict, model="m", photo=taken))
    return found


def alarms(model: ModelRecord, rows: "list[Row | Damaged]", **choices: float) -> dict[str, str]:
    """The checks with an alarm, in words."""
    monitor = Monitor(model, **choices)
    for row in rows:
        monitor.add(row)
    return {check.name: check.in_words() for check in monitor.checks if check.alarm}


def test_a_line_on_which_nothing_changes_gives_no_alarm(model: ModelRecord) -> None:
    assert alarms(model, [*lines(400, rejected=0.01)]) == {}


def test_scores_that_rise_are_noticed(model: ModelRecord) -> None:
    found = alarms(model, [*lines(), *lines(shift=1.0, seed=2)])
    assert list(found) == ["scores"]
    assert found["scores"].startswith("scores of good parts have risen: median 1")


@pytest.mark.parametrize(
    ("photo", "name", "words"),
    [
        (USUAL._replace(brightness=0.45), "brightness", "photos are darker: brightness 0.4"),
        (USUAL._replace(brightness=0.55), "brightness", "photos are brighter"),
        (USUAL._replace(contrast=0.2), "contrast", "photos have less contrast"),
        (USUAL._replace(sharpness=0.2), "sharpness", "photos are less sharp: out of focus"),
    ],
)
def test_the_lamp_and_the_focus_are_told_apart(
    model: ModelRecord, photo: PhotoStatistics, name: str, words: str
) -> None:
    found = alarms(model, [*lines(), *lines(60, photo=photo, seed=2)])
    assert list(found) == [name]
    assert found[name].startswith(words)


def test_light_that_is_certainly_other_but_within_the_usual_range_is_no_alarm(model: ModelRecord) -> None:
    assert alarms(model, [*lines(1000, photo=USUAL._replace(brightness=0.507))]) == {}


def test_rejects_unknown_and_unreadable_photos_are_noticed(model: ModelRecord) -> None:
    unknown = [replace(one, verdict="unknown", class_name="") for one in lines(20)]
    unreadable = [replace(one, verdict="error", score=None, photo=None) for one in lines(20)]
    found = alarms(model, [*lines(100, rejected=0.2), *unknown, *unreadable])
    assert set(found) == {"rejects", "unknown", "unreadable"}
    assert found["unreadable"] == "20 of 140 files cannot be read"
    assert found["unknown"] == "20 of 120 photos look like no product of the model"


def test_defects_that_are_usual_are_no_alarm(model: ModelRecord) -> None:
    assert "rejects" in alarms(model, [*lines(300, rejected=0.1)])
    assert alarms(model, [*lines(300, rejected=0.1)], defects=0.12) == {}


def test_without_held_out_images_scores_are_not_judged(model: ModelRecord) -> None:
    unpromising = [
        replace(product, calibration=replace(product.calibration, promising=False))
        for product in model.products.values()
        if product.calibration is not None
    ]
    model = model.with_products(*unpromising)
    assert alarms(model, [*lines(shift=5.0, rejected=0.5)]) == {}


def test_rows_of_other_models_and_damaged_ones_are_left_out(model: ModelRecord) -> None:
    monitor = Monitor(model)
    for row in [*lines(5), Damaged(6), Damaged(7, growing=True), *(replace(one, model="other") for one in lines(7))]:
        monitor.add(row)
    assert (monitor.rows, monitor.damaged, monitor.of_other_models) == (5, 1, 7)


def test_memory_does_not_grow_with_the_rows_unless_a_plot_needs_them(model: ModelRecord) -> None:
    """With the same answers: those of all rows, to the last digit."""
    bounded, full = Monitor(model), Monitor(model, history=True)
    sizes = []
    for row in lines(3000, shift=0.3, rejected=0.05):
        bounded.add(row)
        full.add(row)
        if bounded.rows in (200, 3000):
            checks = [replace(check, test=None) for check in bounded.checks]  # the tests themselves: see Ranking
            sizes.append(len(pickle.dumps(checks)))
    assert sizes[1] < sizes[0] + 100
    assert bounded.as_json() == full.as_json()
    (scores,) = [check for check in full.checks if check.name == "scores"]
    assert scores.history is not None
    assert [len(column) for column in scores.history] == [scores.count] * 3
    assert scores.evidence == max(scores.history.evidence)
    assert scores.now == np.median(scores.history.values[-50:])


# ---- the command ----


@pytest.fixture
def files(model: ModelRecord, tmp_path: Path) -> Path:
    """A folder with the model, and rows of today and of ten days ago; those of today are of darker photos."""
    store.save(model, tmp_path / "m.safetensors")
    digest = sha256_of(tmp_path / "m.safetensors")[:12]
    now = datetime.now(timezone.utc)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for row in lines(60):
            file.write(as_line(row, now - timedelta(days=10), digest))
        for row in lines(60, photo=USUAL._replace(brightness=0.4)):
            file.write(as_line(row, now, digest))
    return tmp_path


def as_line(row: Row, time: datetime, digest: str) -> str:
    values = {"path": row.path, "class": row.class_name, "score": row.score, "threshold": 99, "verdict": row.verdict}
    values |= {"schema": 1, "time": time.isoformat(), "model": digest}
    return json.dumps(values | (row.photo._asdict() if row.photo else {})) + "\n"


def run(folder: Path, *options: object) -> Result:
    arguments = ["monitor", folder / "rows.jsonl", "--model", folder / "m.safetensors", *options]
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "100"}, prog_name="mambaad")


def test_the_command_says_what_has_changed_and_ends_with_status_3(files: Path) -> None:
    result = run(files)
    assert result.exit_code == 3
    assert "nut: photos are darker: brightness 0.398, 0.482 to 0.514 at fit; certain since " in result.stdout
    assert "120 rows" in result.stdout
    (files / "rows.jsonl").write_text("".join((files / "rows.jsonl").open().readlines()[:60]) + '{"path": ')
    assert run(files).exit_code == 0


def test_since_looks_at_the_newest_rows_alone(files: Path) -> None:
    found = json.loads(run(files, "--since", "7d", "--json").stdout)
    assert found["rows"] == 60
    assert found["alarm"]
    (brightness,) = [one for one in found["tests"] if one["test"] == "brightness"]
    assert brightness["alarm"]
    assert brightness["usual"]["q05"] > brightness["now"]
    result = run(files, "--since", "2999-01-01")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert run(files, "--since", "soon").exit_code == 2


def test_a_picture_is_drawn_where_asked_for(files: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(files, "--plot", files / "drift.svg").exit_code == 3
    assert "brightness" in (files / "drift.svg").read_text()
    assert run(files, "--plot", files / "drift.txt").stderr.startswith("mambaad: cannot plot to")


def test_rows_without_times_need_no_since(files: Path) -> None:
    (files / "rows.jsonl").write_text("path,class,score,threshold,verdict,error,p_value,certainty\na,nut,9,1,good,,,\n")
    assert run(files).exit_code == 0
    assert "--since needs JSON rows" in run(files, "--since", "7d").stderr


def test_an_exported_model_is_refused_with_what_to_take_instead(files: Path) -> None:
    (files / "m.onnx").touch()
    result = run(files, "--model", files / "m.onnx")
    assert result.exit_code == 1
    assert result.stderr.endswith("m.onnx is an exported model: take the model file that it was made from\n")
