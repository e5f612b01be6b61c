"""The reports that commands write in addition to their rows or tables."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambaad_cli.cli.output import check_writable

if TYPE_CHECKING:
    from mambaad_cli.inspection.prediction import PredictOptions
    from mambaad_cli.inspection.scorer import Scorer
    from mambaad_cli.report.collect import Collector

TITLE = "Inspection report"
MAX_PICTURES = 2000  # the worst images, which have pictures
EXPLAINED = 20  # the worst of these, whose regions are explained


def begin(path: Path, images: int, options: "PredictOptions", scorer: "Scorer") -> "tuple[PredictOptions, Collector]":
    """The options with what a report needs as well, and a collector that keeps it while images are scored.

    Raises MambaADError for a file that cannot be written, before an image is scored.
    """
    from mambaad_cli.report.collect import Collector

    check_writable(path)
    min_area = 0 if options.min_area is None else options.min_area
    return replace(options, maps=True, min_area=min_area), Collector(images, MAX_PICTURES, scorer.sha256)


def finish(path: Path, collector: "Collector", model: Path, scorer: "Scorer", title: str = TITLE) -> None:
    """Write the report of the images that were collected."""
    from mambaad_cli.report import page
    from mambaad_cli.report.content import Report
    from mambaad_cli.report.record import record

    facts = record(collector.rows, model=(model, scorer))
    page.write(Report(title, collector.entries(path, link=False), facts), path)
