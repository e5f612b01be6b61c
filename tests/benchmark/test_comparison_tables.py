"""A study on paper: means and deviations of made-up cells, formats that read back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mambaad_cli.benchmark import comparison_tables as study_report
from mambaad_cli.benchmark.comparison import Budget, Comparison, Dataset, Outcome
from mambaad_cli.benchmark.comparison_variants import Variant
from mambaad_cli.benchmark.evaluation import METRICS
from mambaad_cli.data.datasets import Sample
from mambaad_cli.training.recipe import RECIPES

MACHINE = {"device": "Abacus", "threads": "1", "precision": "fp32", "scan": "beads"} | dict.fromkeys(
    ("mambaad", "torch", "python"), "0"
)


def cell(image: float, pixel: float | None, seconds: float) -> dict[str, Any]:
    """Two classes; only nuts have masks."""
    nut = {key: image if key.startswith("image") else pixel for key in METRICS}
    bolt = {key: image - 0.5 if key.startswith("image") else None for key in METRICS}
    mean = {key: image - 0.25 if key.startswith("image") else pixel for key in METRICS}
    times = {"fit_seconds": seconds, "steps": 20, "score_seconds": seconds / 1000, "score_seconds_p99": seconds / 500}
    times |= {"images_a_second": 12, "file_bytes": 14_000_000}
    return {"seed": 42, "mean": mean, "classes": {"nut": nut, "bolt": bolt}, **times, "notes": ["nut: left out 3.png"]}


def made_up() -> Comparison:
    """One detector with two seeds, one that failed after its first, one that never was."""
    samples = [Sample(Path(f"{name}.png"), name, "test", "good", None) for name in ("nut", "bolt")]
    outcomes = [
        Outcome(
            Variant("MambaAD small", "mambaad", "lite", {}, RECIPES["small"], "small"),
            [cell(0.9, 0.8, 10), cell(1.0, 0.6, 30)],
        ),
        Outcome(
            Variant("RD4AD", "rd4ad", "lite", {}, RECIPES["rd4ad"], "rd4ad"), [cell(0.75, 0.5, 5)], "out of memory"
        ),
        Outcome(Variant("UniAD", "uniad", "lite", {}, RECIPES["uniad"], "uniad"), [], "no weights"),
    ]
    data = Dataset(Path("parts"), samples[:1], samples, "f")
    return Comparison(MACHINE, data, (64, 96), Budget(minutes=2.0), [42, 43], outcomes)


def printed(study: Comparison) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(study_report.to_table(study))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_figure_is_the_mean_over_seeds_with_the_sample_deviation() -> None:
    figures = study_report.metrics(made_up().outcomes[0])
    assert figures["image_auroc"] == pytest.approx((0.7, 0.1 / 2**0.5))
    assert figures["pixel_ap"] == pytest.approx((0.7, 0.2 / 2**0.5))
    assert study_report.metrics(made_up().outcomes[1])["pixel_ap"] == (0.5, None)
    assert study_report.metrics(made_up().outcomes[2])["pixel_ap"] == (None, None)


def test_a_table_of_80_columns_shows_every_figure() -> None:
    text = printed(made_up())
    for figure in ("70.0", "± 7.1", "± 14.1", "50.0", "20.0", "(20)", "memory", "UniAD failed: no weights", "Abacus"):
        assert figure in text
    assert "…" not in text


def test_notes_tell_images_budget_seeds_and_what_is_missing() -> None:
    said = "\n".join(study_report.notes(made_up()))
    for fact in (
        "2 classes in one model on lite, 96x64 pixels, 1 training and 2 test images; each fit had 2 minutes",
        "deviation over 2 seeds",
        "no pixel metrics of bolt: no masks",
    ):
        assert fact in said
    assert said.count("nut: left out 3.png") == 1
    assert "no image metrics" not in said


def test_encoders_stand_in_the_rows_where_they_differ() -> None:
    study = made_up()
    assert "lite" not in study_report._cells(study)[1][0][0]
    study.outcomes[1].variant = study.outcomes[1].variant._replace(encoder="resnet34")
    assert [row[0].split("\n")[1] for row in study_report._cells(study)[1]] == ["lite", "resnet34", "lite"]


def test_csv_reads_back_with_each_classs_image_auroc() -> None:
    first, second, third = csv.DictReader(io.StringIO(study_report.to_csv(made_up())))
    assert (first["detector"], first["encoder"], first["seeds"], first["error"]) == ("MambaAD small", "lite", "2", "")
    assert (first["image_auroc"], first["image_auroc_deviation"]) == ("70", "7.07107")
    assert (first["image_auroc[nut]"], first["image_auroc[bolt]"]) == ("95", "45")
    assert (first["fit_seconds"], first["steps"], first["score_ms"]) == ("20", "20", "20")
    assert (first["score_ms_p99"], first["images_a_second"], first["file_mb"]) == ("40", "12", "14")
    assert (second["image_auroc_deviation"], second["error"]) == ("", "out of memory")
    assert (third["image_auroc"], third["image_auroc[nut]"], third["error"]) == ("", "", "no weights")


def test_markdown_reads_back_as_one_table() -> None:
    lines = [line for line in study_report.to_markdown(made_up()).splitlines() if line.startswith("|")]
    heads, _, *rows = ([text.strip() for text in line.strip("|").split("|")] for line in lines)
    assert len(rows) == 3
    found = dict(zip(heads, rows[0], strict=True))
    assert found["image<br>AU-ROC"] == "70.0<br>± 7.1"
    assert found["fit, s<br>(steps)"] == "20.0<br>(20)"
    assert rows[1][0] == "RD4AD<br>out of memory (1 of 2 seeds)"


def test_json_reads_back_with_every_seed() -> None:
    whole = json.loads(study_report.to_json(made_up()))
    first, _, third = whole["variants"]
    assert first["metrics"]["image_auroc"]["mean"] == pytest.approx(0.7)
    assert first["classes_image_auroc"]["bolt"]["mean"] == pytest.approx(0.45)
    assert [one["classes"]["nut"]["image_auroc"] for one in first["cells"]] == [0.9, 1.0]
    assert first["recipe"]["batch"] == RECIPES["small"].batch
    assert (third["cells"], third["error"]) == ([], "no weights")
    assert whole["budget"] == {"epochs": None, "minutes": 2.0, "own": False}
