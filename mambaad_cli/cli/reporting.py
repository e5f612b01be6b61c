"""How commands that score write a report besides."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambaad_cli.cli.output import check_writable

if TYPE_CHECKING:
    from mambaad_cli.inspection.fitted_model import FittedModel
    from mambaad_cli.inspection.predict import PredictOptions
    from mambaad_cli.report.collect import Collector

TITLE = "Inspection report"
PICTURES = 2000  # images, the worst ones, that have pictures


def begin(
    path: Path, images: int, options: "PredictOptions", fitted: "FittedModel"
) -> "tuple[PredictOptions, Collector]":
    """The options with what a report needs besides, and what keeps it while images are scored.

    Raises MambaADError for a file that cannot be written, before an image is scored.
    """
    from mambaad_cli.report.collect import Collector

    check_writable(path)
    least = 0 if options.min_area is None else options.min_area
    return replace(options, maps=True, min_area=least), Collector(images, PICTURES, fitted.sha256)


def finish(path: Path, kept: "Collector", model: Path, fitted: "FittedModel", title: str = TITLE) -> None:
    """Write the report of what was kept."""
    from mambaad_cli.report import page
    from mambaad_cli.report.content import Report
    from mambaad_cli.report.record import record

    facts = record(kept.rows, model=(model, fitted))
    page.write(Report(title, kept.entries(path, link=False), facts), path)
