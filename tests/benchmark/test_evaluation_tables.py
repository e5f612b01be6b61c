"""An evaluation's tables for people and for programs."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mambaad_cli.benchmark import evaluation as evaluate
from mambaad_cli.benchmark.evaluation import ClassMetrics, Evaluation, ImageResult
from mambaad_cli.benchmark.evaluation_tables import metrics_table, recall_table, to_csv, to_json, to_markdown, to_table
from mambaad_cli.benchmark.metrics import ImageMetrics, PixelMetrics
from mambaad_cli.data.datasets import Sample
from tests.benchmark.brightness import brightness_model, grey


def printed(table: Any, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def two_classes(tmp_path):
    """nut: image AU-ROC 1/2, AP 1/2, F1max 2/3, pixels with masks; [i]a|b: perfect, without masks."""
    samples = [
        *(grey(tmp_path, "good", value, "nut", slice(0, 8)) for value in (10, 30)),
        grey(tmp_path, "bent", 20, "nut", slice(32, 64)),
        *(grey(tmp_path, "good", value, "[i]a|b") for value in (1, 2)),
        *(grey(tmp_path, "[red]torn", value, "[i]a|b") for value in (14, 40, 50)),
    ]
    thresholds = {"nut": 15 / 255, "[i]a|b": 15 / 255}
    return evaluate.evaluate(brightness_model(scores=thresholds, promising=thresholds), samples)


def test_markdown_holds_both_tables_as_papers_print_them(two_classes):
    lines = to_markdown(two_classes).splitlines()
    pixel = two_classes.classes[0].pixel
    four = " | ".join(f"{100 * value:.1f}" for value in pixel)
    assert lines[0] == (
        "| class | image AU-ROC | image AP | image F1max | pixel AU-ROC | pixel AP | pixel F1max | pixel AU-PRO | mAD "
        "| false rejects | misses |"
    )
    assert lines[2] == f"| nut | 50.0 | 50.0 | 66.7 | {four} | {100 * two_classes.mean['mad']:.1f} | 1/2 | 0/1 |"
    assert lines[3] == "| [i]a\\|b | 100.0 | 100.0 | 100.0 | – | – | – | – | – | 0/2 | 1/3 |"
    assert lines[4].startswith("| mean | 75.0 | 75.0 | 83.3 |")
    assert lines[4].endswith("| 1/4 | 1/4 |")
    assert lines[6:] == [
        "| class | defect | found | recall |",
        "|:---|:---|---:|---:|",
        "| nut | bent | 1/1 | 100.0 |",
        "| [i]a\\|b | [red]torn | 2/3 | 66.7 |",
    ]


def test_terminal_table_shows_names_as_they_are_in_80_columns(two_classes):
    text = printed(to_table(two_classes), 80)
    assert "[red]torn" in text
    assert [line.split()[-2:] for line in text.splitlines() if line.startswith(("nut ", "[i]a|b ", "mean"))][:3] == [
        ["1/2", "0/1"],
        ["0/2", "1/3"],
        ["1/4", "1/4"],
    ]


def test_csv_has_a_row_a_class_and_their_mean(two_classes):
    nut, other, mean = rows_of(to_csv(two_classes))
    assert list(nut) == ["class", *evaluate.METRICS, "false_rejects", "good", "misses", "anomalous", "unreadable"]
    assert [nut[key] for key in ("class", "image_auroc", "image_f1max", "false_rejects", "good")] == [
        *("nut", "50.0", "66.7", "1", "2")
    ]
    assert [other[key] for key in ("class", "image_auroc", "pixel_ap", "mad", "misses", "anomalous")] == [
        *("[i]a|b", "100.0", "", "", "1", "3")
    ]
    assert [mean[key] for key in ("class", "image_auroc", "false_rejects", "good", "misses", "anomalous")] == [
        *("mean", "75.0", "1", "4", "1", "4")
    ]


def test_json_tells_everything_unrounded(two_classes):
    whole = json.loads(to_json(two_classes))
    nut, other = whole["classes"]
    assert nut["image_f1max"] == pytest.approx(2 / 3, abs=1e-12)
    assert nut["threshold"] == pytest.approx(15 / 255)
    assert (nut["false_rejects"], nut["false_reject_rate"], nut["misses"], nut["miss_rate"]) == (1, 0.5, 0, 0.0)
    assert other["recall"] == {"[red]torn": {"found": 2, "total": 3, "recall": 2 / 3}}
    assert (other["pixel_aupro"], other["mad"], other["unreadable_images"]) == (None, None, [])
    assert whole["mean"]["image_auroc"] == 0.75
    assert whole["unfinished"] == []


def test_pixel_metrics_worked_by_hand(two_classes):
    # 3 · 4096 pixels; 1024 defect pixels of value 20; good: 64 of value 30, 64 of 10, the rest 0
    good = 3 * 4096 - 1024
    auroc, precision = 1 - 64 / good, 1024 / (1024 + 64)
    # flat at full overlap from rate 64 / good on, nothing found before
    expected = PixelMetrics(auroc, precision, 2 * precision / (precision + 1), 1 - 64 / good / 0.3)
    assert two_classes.classes[0].pixel == pytest.approx(expected)


def full(name: str, defect: str = "bent") -> Evaluation:
    """One class with every column filled: metrics as wide as they get, 12 of 120 images rejected, 15 of 150 missed."""
    kept, rejected = (
        ImageResult(Sample(Path("1.png"), name, "test", "good", None), score, 1.0) for score in (0.5, 2.0)
    )
    missed, found = (ImageResult(Sample(Path("2.png"), name, "test", defect, None), score, 1.0) for score in (0.5, 2.0))
    results = [kept] * 108 + [rejected] * 12 + [missed] * 15 + [found] * 135
    image, pixel = ImageMetrics(1.0, 1.0, 1.0), PixelMetrics(1.0, 1.0, 1.0, 1.0)
    return Evaluation([ClassMetrics(name, True, 1.0, True, results, image, pixel, None, [], [])], [])


def test_names_and_numbers_stay_whole_in_80_columns() -> None:
    lines = printed(metrics_table(full("magnetic_tile_lite")), 80).splitlines()
    numbers = [*["100.0"] * 8, "12/120", "15/150"]
    (row,) = (line for line in lines if line.startswith("magnetic"))
    assert row.split() == ["magnetic_tile_lite", *numbers]
    assert lines[-1].split() == ["mean", *numbers]
    assert max(map(len, lines)) <= 80


def test_only_a_name_without_room_ends_in_an_ellipsis() -> None:
    name = "magnetic tile of the second supplier"
    row = printed(metrics_table(full(name)), 80).splitlines()[-2]
    shown, numbers = row.split("…")
    assert name.startswith(shown)
    assert len(shown) > 10
    assert numbers.split() == [*["100.0"] * 8, "12/120", "15/150"]
    assert name in printed(metrics_table(full(name)), 120)


def test_recall_of_long_names_stays_on_one_line_with_its_numbers() -> None:
    evaluation = full("magnetic tile of the second supplier", "a scratch along the whole of the upper edge")
    heads, row = printed(recall_table(evaluation), 80).splitlines()
    assert heads.split() == ["class", "defect", "found", "recall"]
    assert row.split()[-2:] == ["135/150", "90.0"]
    assert row.count("…") >= 1
    assert "…" not in printed(recall_table(evaluation), 120)
