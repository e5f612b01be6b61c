"""The worst mistakes of an evaluation, as contact sheets of overlays."""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

from mambaad_cli.benchmark.evaluation import Evaluation, Result, known_class
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.heatmap import Tile, contact_sheet, overlay, thumbnail
from mambaad_cli.inspection.overlays import colour_scale
from mambaad_cli.inspection.predict import PredictOptions, predict

WORST = 12  # images of a contact sheet of misses or of false alarms


def worst(evaluation: Evaluation, n: int = WORST) -> tuple[list[Result], list[Result]]:
    """(misses, false alarms): at most n of each, the furthest on the wrong side of their threshold first."""
    results = [one for metrics in evaluation.classes for one in metrics.results if one.threshold is not None]
    misses = (one for one in results if one.sample.anomalous and not one.rejected)
    alarms = (one for one in results if not one.sample.anomalous and one.rejected)
    return heapq.nsmallest(n, misses, key=_margin), heapq.nlargest(n, alarms, key=_margin)


def _margin(one: Result) -> float:
    return one.margin


def write_worst(evaluation: Evaluation, model: FittedModel, folder: Path, n: int = WORST) -> list[Path]:
    """Write worst_misses.png and worst_false_alarms.png, contact sheets of overlays; returns the files written.

    Where there are none, there is no file, nor one left of an earlier evaluation.
    """
    written = []
    for name, results in zip(("worst_misses.png", "worst_false_alarms.png"), worst(evaluation, n), strict=True):
        path, tiles = folder / name, list(_tiles(results, model))
        if tiles:
            images.write(path, contact_sheet(tiles))
            written.append(path)
        elif path.is_file():
            path.unlink()
    return written


def _tiles(results: Sequence[Result], model: FittedModel) -> Iterator[Tile]:
    """Overlays of a few images, which are scored again: sooner than keeping the pictures of all."""
    for one in results:
        sample = one.sample
        options = PredictOptions(known_class(model, sample.class_name), maps=True)
        (again,) = predict(model, [ImageFile(sample.path, sample.path, sample.class_name)], options)
        if again.anomaly_map is None or again.picture is None:
            continue  # no longer there
        scale = colour_scale(model, sample.class_name)
        picture = overlay(thumbnail(again.picture), again.anomaly_map, scale)
        title = f"{sample.class_name}/{sample.defect}/{sample.path.name}"
        yield Tile(picture, shown(title), one.score, "anomalous" if one.rejected else "good")
