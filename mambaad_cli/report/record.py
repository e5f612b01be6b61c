"""The record of a report for auditors: when, from which files and by which software it was made."""

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mambaad_cli import __version__
from mambaad_cli.files import sha256_of
from mambaad_cli.inspection.calibration import percent
from mambaad_cli.inspection.findings import choices
from mambaad_cli.inspection.row_files import Row, RowFile
from mambaad_cli.report.content import thresholds

if TYPE_CHECKING:
    from mambaad_cli.inspection.scorer import Scorer

Facts = list[tuple[str, str]]
PACKAGES = ("torch", "timm", "numpy", "opencv-python-headless")


def record(
    rows: Sequence[Row], files: Sequence[RowFile] = (), model: "tuple[Path, Scorer] | None" = None
) -> list[tuple[str, Facts]]:
    """Sections of (name, value): this report, its rows, the model, the thresholds, the versions."""
    sections = [("This report", _made()), ("Rows", _sources(rows, files))]
    if model is not None:
        sections.append(("Model", _model(*model)))
    sections.append(("Thresholds in the rows", thresholds(rows)))
    return [(heading, facts) for heading, facts in [*sections, ("Versions", _versions())] if facts]


def _made() -> Facts:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return [("made", now), ("command", shlex.join(["mambaad", *sys.argv[1:]]))]


def _sources(rows: Sequence[Row], files: Sequence[RowFile]) -> Facts:
    facts = [(str(file.path), f"{len(file.rows)} rows, SHA-256 {file.sha256}") for file in files]
    times = [row.time for row in rows if row.time is not None]
    if times:
        first, last = (time.strftime("%Y-%m-%d %H:%M:%S UTC") for time in (min(times), max(times)))
        facts.append(("scored", f"{first} to {last}"))
    if models := sorted({row.model for row in rows if row.model}):
        facts.append(("by the model of SHA-256", ", ".join(f"{model}…" for model in models)))
    return facts


def _model(path: Path, scorer: "Scorer") -> Facts:
    facts = [("file", str(path)), ("SHA-256", sha256_of(path))]
    for name, product in scorer.products.items():
        measured = product.calibration
        if measured is None:
            continue
        origin = f"threshold {measured.threshold:.6g}, from {len(measured.scores)} good images"
        if measured.promising:
            verb = "promises" if measured.new_photos else "estimated from training photos:"
            origin += f"; {verb} at most {percent(measured.promised)} false rejects on average"
        for choice in choices(measured):
            if not choice.chosen:
                origin += f"; {choice.threshold:.6g} would reject at most {percent(choice.rejects)}"
        facts.append((name, origin))
    return facts


def _versions() -> Facts:
    facts = [("mambaad", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            facts.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:  # such as another build of OpenCV
            continue
    return [*facts, ("system", f"{platform.system()} {platform.machine()}")]
