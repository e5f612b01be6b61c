"""The outcomes of a comparison as tables and records."""

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.text import Text

from mambaad_cli.benchmark.comparison import Comparison, Outcome
from mambaad_cli.benchmark.evaluation import METRICS
from mambaad_cli.benchmark.passes import OUT_OF_MEMORY
from mambaad_cli.benchmark.speed_tables import UNKNOWN, machine_line, markdown_table, number, rich_table
from mambaad_cli.files import shown
from mambaad_cli.inspection.prediction import BATCH
from mambaad_cli.inspection.rows import csv_line
from mambaad_cli.training.recipe import as_dict

TIMES = ("fit_seconds", "steps", "score_seconds", "score_seconds_p99", "images_a_second", "file_bytes")


class OverSeeds(NamedTuple):
    """The mean of a figure over the seeds, and the sample deviation where there are two seeds or more."""

    mean: float | None
    deviation: float | None


def over_seeds(values: Iterable[float | None]) -> OverSeeds:
    """
    >>> over_seeds([0.5, 1.5, 2.5]), over_seeds([None])
    (OverSeeds(mean=1.5, deviation=1.0), OverSeeds(mean=None, deviation=None))
    """
    defined = [value for value in values if value is not None]
    return OverSeeds(
        float(np.mean(defined)) if defined else None,
        float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
    )


def metrics(outcome: Outcome) -> dict[str, OverSeeds]:
    """The seven metrics and mAD under the keys of METRICS, each in 0 … 1: the mean over the classes that define it."""
    return {key: over_seeds(cell["mean"][key] for cell in outcome.cells) for key in METRICS}


def class_metrics(outcome: Outcome, key: str = "image_auroc") -> dict[str, OverSeeds]:
    """A metric of each class."""
    names = dict.fromkeys(name for cell in outcome.cells for name in cell["classes"])
    return {name: over_seeds(cell["classes"].get(name, {}).get(key) for cell in outcome.cells) for name in names}


def times(outcome: Outcome) -> dict[str, OverSeeds]:
    """Seconds and steps of a fit, seconds of an image (median, 99th percentile), images a second, bytes of a file."""
    return {key: over_seeds(cell[key] for cell in outcome.cells) for key in TIMES}


def to_table(comparison: Comparison) -> Group:
    """For rich to print: the machine, a row a variant with its metrics in per cent, notes."""
    lines = [Text(note, style="dim") for note in notes(comparison)]
    return Group(Text(machine_line(comparison.machine)), Text(), rich_table(*_cells(comparison)), Text(), *lines)


def to_markdown(comparison: Comparison) -> str:
    lines = "\n".join(f"- {note}" for note in notes(comparison))
    return "\n\n".join([machine_line(comparison.machine), markdown_table(*_cells(comparison, wide=True)), lines]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """A row a variant; metrics in per cent, each with its deviation over the seeds, then each class's image AU-ROC."""
    classes = list(dict.fromkeys(name for outcome in comparison.outcomes for name in class_metrics(outcome)))
    heads = ["detector", "encoder", "seeds", *(f"{key}{end}" for key in METRICS for end in ("", "_deviation"))]
    heads += ["fit_seconds", "steps", "score_ms", "score_ms_p99", "images_a_second", "file_mb"]
    heads += [*(f"image_auroc[{name}]" for name in classes), "error"]
    text = io.StringIO()
    text.write(csv_line(heads))
    for outcome in comparison.outcomes:
        row: list[Any] = [outcome.variant.name, outcome.variant.encoder, len(outcome.cells)]
        row += [_times(100, value) for figure in metrics(outcome).values() for value in figure]
        spent, by_class = times(outcome), class_metrics(outcome)
        row += [spent["fit_seconds"].mean, spent["steps"].mean, _times(1e3, spent["score_seconds"].mean)]
        row += [_times(1e3, spent["score_seconds_p99"].mean), spent["images_a_second"].mean]
        row += [_times(1e-6, spent["file_bytes"].mean)]
        row += [_times(100, by_class[name].mean) if name in by_class else None for name in classes]
        text.write(csv_line([*row, outcome.error]))
    return text.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything: metrics in 0 … 1, null where undefined; `cells` holds every seed with all metrics by class."""
    whole = {
        "machine": comparison.machine,
        "data": {
            "root": str(comparison.data.root),
            "training_images": len(comparison.data.train),
            "test_images": len(comparison.data.test),
            "fingerprint": comparison.data.fingerprint,
        },
        "size": comparison.size,
        "budget": comparison.budget._asdict(),
        "seeds": comparison.seeds,
        "variants": [_whole(outcome) for outcome in comparison.outcomes],
        "notes": notes(comparison),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _whole(outcome: Outcome) -> dict[str, Any]:
    figures = {"metrics": metrics(outcome), "classes_image_auroc": class_metrics(outcome), "times": times(outcome)}
    plain = {name: {key: figure._asdict() for key, figure in group.items()} for name, group in figures.items()}
    return {
        **outcome.variant._asdict(),
        "recipe": as_dict(outcome.variant.recipe),
        **plain,
        "cells": outcome.cells,
        "error": outcome.error,
    }


def notes(comparison: Comparison) -> list[str]:
    """The meaning of the figures of the table, and what they leave out, a line each."""
    data, size = comparison.data, comparison.size
    sizes = "each detector's own image sizes" if size is None else f"{size[1]}x{size[0]} pixels"
    classes = len({sample.class_name for sample in data.test})
    encoders = list(dict.fromkeys(outcome.variant.encoder for outcome in comparison.outcomes))
    on = f" on {encoders[0]}" if len(encoders) == 1 else ""
    lines = [
        f"{shown(data.root)}: {classes} class{'' if classes == 1 else 'es'} in one model{on}, {sizes}, "
        f"{len(data.train)} training and {len(data.test)} test images; each fit had {comparison.budget}.",
        "Metrics in per cent, mean over the classes; the image score is the map's maximum, for all detectors alike."
        + (f" ±: deviation over {len(comparison.seeds)} seeds." if len(comparison.seeds) > 1 else ""),
        "fit: seconds of a whole fit, with reading, encoding and the threshold (and its steps). score: ms of one "
        "image's encoder, detector and map, reading left out: median and 99th percentile; and images a second of a "
        f"batch of {BATCH}. MB: 10⁶ bytes of the model file.",
    ]
    failed = [outcome for outcome in comparison.outcomes if outcome.error not in ("", OUT_OF_MEMORY)]
    lines += [f"{outcome.variant.name} failed: {outcome.error}" for outcome in failed]
    cells = [cell for outcome in comparison.outcomes for cell in outcome.cells]
    for kind, why in (("image_auroc", "its test images are all good, or all anomalous"), ("pixel_auroc", "no masks")):
        lacking = [name for cell in cells for name, values in cell["classes"].items() if values[kind] is None]
        lines += [f"no {kind.split('_')[0]} metrics of {shown(name)}: {why}" for name in dict.fromkeys(lacking)]
    return [*lines, *dict.fromkeys(note for cell in cells for note in cell["notes"])]


def _cells(comparison: Comparison, wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table; a cell has one or two lines of text. A terminal has no room for the last column."""
    mixed = len({outcome.variant.encoder for outcome in comparison.outcomes}) > 1
    heads = ["detector" + "\nencoder" * mixed, *(title.replace(" ", "\n") for title in METRICS.values())]
    heads += ["fit, s\n(steps)", "score,\nms", "a sec.\n(MB)"]
    rows = []
    for outcome in comparison.outcomes:
        lines = [outcome.variant.name, outcome.variant.encoder * mixed, _shortfall(outcome, comparison.seeds)]
        row = ["\n".join(line for line in lines if line), *(_percent(figure) for figure in metrics(outcome).values())]
        spent = times(outcome)
        fitted = number(spent["fit_seconds"].mean)
        fitted += f"\n({spent['steps'].mean:.0f})" if spent["steps"].mean else ""
        scored = [number(_times(1e3, spent[key].mean)) for key in ("score_seconds", "score_seconds_p99")]
        rate, size = number(spent["images_a_second"].mean), number(_times(1e-6, spent["file_bytes"].mean))
        rows.append([*row, fitted, "\n".join(scored), f"{rate}\n({size})"])
    return (heads, rows) if wide else (heads[:-1], [row[:-1] for row in rows])


def _shortfall(outcome: Outcome, seeds: Sequence[int]) -> str:
    """Why there are fewer seeds than were asked for, in few words; a long reason stands in the notes."""
    if not outcome.error:
        return ""
    some = f" ({len(outcome.cells)} of {len(seeds)} seeds)" if outcome.cells else ""
    return (OUT_OF_MEMORY if outcome.error == OUT_OF_MEMORY else "failed: see below") + some


def _percent(figure: OverSeeds) -> str:
    if figure.mean is None:
        return UNKNOWN
    spread = "" if figure.deviation is None else f"\n± {100 * figure.deviation:.1f}"
    return f"{100 * figure.mean:.1f}{spread}"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
