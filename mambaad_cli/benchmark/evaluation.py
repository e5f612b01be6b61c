"""Labelled samples -> table of metrics: how well a fitted model does on a benchmark's test images.

Nothing is tuned on them: the threshold is the model's own. A label is its sample's, never read from a resized mask.
Anomaly maps are compared with their masks at the model's resolution, as in published numbers.
"""

import heapq
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.metrics import (
    ImageMetrics,
    PixelMetrics,
    StreamingPixelMetrics,
    image_metrics,
    mad,
    pixel_metrics,
)
from mambaad_cli.data import images
from mambaad_cli.data.datasets import Sample, read_mask, resize_mask
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.heatmap import Tile, contact_sheet, overlay, thumbnail
from mambaad_cli.inspection.model_file import Model
from mambaad_cli.inspection.overlays import colour_scale, output_paths, write_maps
from mambaad_cli.inspection.predict import BATCH, WORKERS, Prediction, predict
from mambaad_cli.inspection.rows import csv_line

EXACT_PIXELS = 200_000_000  # of a class; they take 5 bytes each, and the metrics of more are streamed
WORST = 12  # images of a contact sheet of misses or of false alarms
METRICS = {
    "image_auroc": "image AU-ROC",
    "image_ap": "image AP",
    "image_f1max": "image F1max",
    "pixel_auroc": "pixel AU-ROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1max",
    "pixel_aupro": "pixel AU-PRO",
    "mad": "mAD",
}
TITLES = ["class", *METRICS.values(), "false rejects", "misses"]
RECALL_TITLES = ["class", "defect", "found", "recall"]


@dataclass(frozen=True)
class Share:
    """So many of a total.

    >>> str(Share(3, 4)), Share(3, 4).rate, Share(0, 0).rate
    ('3/4', 0.75, None)
    """

    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.count}/{self.total}"

    @property
    def rate(self) -> float | None:
        return self.count / self.total if self.total else None


class Result(NamedTuple):
    """The score of one test image; `threshold` is None where the model has none yet."""

    sample: Sample
    score: float
    threshold: float | None

    @property
    def rejected(self) -> bool:
        """Whether the model calls it anomalous."""
        return self.threshold is not None and exceeds(self.score, self.threshold)

    @property
    def margin(self) -> float:
        """How far the score lies above the threshold, in thresholds: comparable between classes."""
        threshold = self.threshold or 0.0
        return (self.score - threshold) / (abs(threshold) or 1.0)


@dataclass(frozen=True)
class ClassMetrics:
    """What the test images of one class say. A metric that they do not define is None."""

    name: str
    known: bool  # whether the model was trained on this class
    threshold: float | None
    results: list[Result]  # of the images that could be read, in the samples' order
    image: ImageMetrics | None  # None where all images are good, or all anomalous
    pixel: PixelMetrics | None  # None where no mask marks a defect
    pixel_error: PixelMetrics | None  # pixel ± pixel_error holds the exact values; None: they are exact
    unreadable: list[str]  # a line for each image that was left out
    without_mask: list[str]  # a line for each anomalous image left out of the pixel metrics, where others have masks

    @property
    def metrics(self) -> dict[str, float | None]:
        """The seven metrics and their mean, under the keys of METRICS; mAD only where there are all seven."""
        image, pixel = self.image or (None,) * 3, self.pixel or (None,) * 4
        mean = mad(self.image, self.pixel) if self.image and self.pixel else None
        return dict(zip(METRICS, [*image, *pixel, mean], strict=True))

    @property
    def good(self) -> int:
        return sum(not one.sample.anomalous for one in self.results)

    @property
    def anomalous(self) -> int:
        return len(self.results) - self.good

    @property
    def false_rejects(self) -> Share | None:
        """Good images above the threshold; None without a threshold, as are `misses`."""
        if self.threshold is None:
            return None
        return Share(sum(one.rejected for one in self.results if not one.sample.anomalous), self.good)

    @property
    def misses(self) -> Share | None:
        """Anomalous images not above the threshold."""
        if self.threshold is None:
            return None
        return Share(sum(not one.rejected for one in self.results if one.sample.anomalous), self.anomalous)

    @property
    def recall(self) -> dict[str, Share]:
        """Anomalous images above the threshold, by the kind of defect; empty without a threshold."""
        if self.threshold is None:
            return {}
        found: dict[str, list[bool]] = {}
        for one in self.results:
            if one.sample.anomalous:
                found.setdefault(one.sample.defect, []).append(one.rejected)
        return {defect: Share(sum(rejected), len(rejected)) for defect, rejected in found.items()}


@dataclass(frozen=True)
class Evaluation:
    """All classes, in the samples' order."""

    classes: list[ClassMetrics]
    unfinished: list[str]  # classes that an interrupt kept from being evaluated; they are not in `classes`
    held_out: bool = True  # False: the threshold comes from images that the model was trained on

    @property
    def mean(self) -> dict[str, float | None]:
        """Each metric's mean over the classes that have it, under the keys of METRICS."""
        columns = {key: [one.metrics[key] for one in self.classes] for key in METRICS}
        known = {key: [value for value in column if value is not None] for key, column in columns.items()}
        return {key: float(np.mean(values)) if values else None for key, values in known.items()}

    @property
    def false_rejects(self) -> Share | None:
        return _total(one.false_rejects for one in self.classes)

    @property
    def misses(self) -> Share | None:
        return _total(one.misses for one in self.classes)


def _total(shares: Iterable[Share | None]) -> Share | None:
    known = [share for share in shares if share is not None]
    return Share(sum(one.count for one in known), sum(one.total for one in known)) if known else None


# ---- evaluate ----


def evaluate(
    model: Model,
    samples: Sequence[Sample],
    *,
    batch: int = BATCH,
    workers: int = WORKERS,
    device: str = "cpu",
    maps: Path | None = None,
    on_result: Callable[[Prediction], None] = lambda one: None,
) -> Evaluation:
    """Score the test samples and measure each class by itself; training samples are not looked at.

    `maps`: a folder for the overlays of all test images and contact sheets of them. `on_result` is told of each image,
    unreadable ones included. Images and masks that cannot be read are left out and listed. An interrupt ends it with
    the classes done so far; where there are none, it is raised on.

    Raises MambaADError: no test samples, scores that are not finite, and with `maps` a model without a threshold or a
    folder where an overlay would replace an image or a mask.
    """
    groups = _by_class(sample for sample in samples if sample.split == "test")
    if not groups:
        raise MambaADError("the dataset has no test images: expected test/good/ and test/<defect>/, or split test")
    classes: list[ClassMetrics] = []
    predictions = _measured(model, groups, classes, batch, workers, device, maps is not None, on_result)
    try:
        if maps is None:
            deque(predictions, maxlen=0)
        else:
            _write_overlays(predictions, [sample for own in groups.values() for sample in own], model, maps)
    except KeyboardInterrupt:
        if not classes:
            raise
    return Evaluation(classes, list(groups)[len(classes) :], model.held_out)


def _by_class(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.class_name, []).append(sample)
    return groups


def _measured(
    model: Model,
    groups: dict[str, list[Sample]],
    classes: list[ClassMetrics],
    batch: int,
    workers: int,
    device: str,
    overlays: bool,
    on_result: Callable[[Prediction], None],
) -> Iterator[Prediction]:
    """Pass the predictions on, class by class, and add each class to `classes` when it is complete."""
    for name, own in groups.items():
        tally = _Tally(name, own, model)
        files = [ImageFile(sample.path, sample.path, name) for sample in own]
        with_maps = overlays or tally.masked
        found = predict(model, files, class_name=name, batch=batch, workers=workers, device=device, maps=with_maps)
        for sample, one in zip(own, found, strict=True):
            tally.add(sample, one)
            on_result(one)
            yield one
        classes.append(tally.metrics())


class _Tally:
    """One class while its predictions come in."""

    def __init__(self, name: str, samples: Sequence[Sample], model: Model) -> None:
        height, width = model.settings.size
        self.name, self.threshold = name, model.threshold(name)
        self.known = not model.trained_on or name in model.trained_on
        self.masked = any(sample.mask is not None for sample in samples)
        self.pixels = _Pixels(streamed=len(samples) * height * width > EXACT_PIXELS)
        self.results: list[Result] = []
        self.unreadable: list[str] = []
        self.without_mask: list[str] = []

    def add(self, sample: Sample, one: Prediction) -> None:
        if one.score is None:
            self.unreadable.append(f"{shown(sample.path)}: {one.error}")
            return
        if not math.isfinite(one.score):
            raise MambaADError(f"{shown(sample.path)}: its score is {one.score}: fit the model again")
        self.results.append(Result(sample, one.score, one.threshold))
        if self.masked and one.anomaly_map is not None and one.picture is not None:
            self.add_pixels(sample, one.anomaly_map, one.picture.shape[:2])

    def add_pixels(self, sample: Sample, anomaly_map: np.ndarray, shape: tuple[int, int]) -> None:
        try:
            mask = read_mask(sample, shape)
        except MambaADError as error:
            self.without_mask.append(str(error))
            return
        self.pixels.add(anomaly_map, resize_mask(mask, anomaly_map.shape))

    def metrics(self) -> ClassMetrics:
        labels, scores = [one.sample.anomalous for one in self.results], [one.score for one in self.results]
        image = image_metrics(labels, scores) if len(set(labels)) == 2 else None
        pixel, pixel_error = self.pixels.metrics()
        return ClassMetrics(
            self.name,
            self.known,
            self.threshold,
            self.results,
            image,
            pixel,
            pixel_error,
            self.unreadable,
            self.without_mask,
        )


class _Pixels:
    """The maps and masks of one class: held until their metrics are asked for, or only counted."""

    def __init__(self, streamed: bool) -> None:
        self.stream = StreamingPixelMetrics() if streamed else None
        self.maps: deque[np.ndarray] = deque()
        self.masks: deque[np.ndarray] = deque()
        self.good = self.defect = 0

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        defect = int(mask.sum())
        self.good, self.defect = self.good + mask.size - defect, self.defect + defect
        if self.stream is not None:
            self.stream.add(anomaly_map, mask)
            return
        self.maps.append(anomaly_map)
        self.masks.append(mask)

    def metrics(self) -> tuple[PixelMetrics | None, PixelMetrics | None]:
        """(value, error): None where they are undefined, and no error where they are exact. To be asked once."""
        if not (self.good and self.defect):
            return None, None
        if self.stream is not None:
            return self.stream.result()
        return pixel_metrics(_drained(self.maps), _drained(self.masks)), None


def _drained(arrays: "deque[np.ndarray]") -> Iterator[np.ndarray]:
    """Each array once: it is freed as soon as its pixels are taken, so that memory never holds them twice."""
    while arrays:
        yield arrays.popleft()


def _write_overlays(predictions: Iterable[Prediction], samples: Sequence[Sample], model: Model, folder: Path) -> None:
    """Write the overlay of each sample, in the dataset's own folders."""
    paths = [Path(os.path.abspath(sample.path)) for sample in samples]  # noqa: PTH100 (Path.absolute keeps ..)
    top = os.path.commonpath([path.parent for path in paths])
    files = [
        ImageFile(sample.path, path.relative_to(top), sample.class_name)
        for sample, path in zip(samples, paths, strict=True)
    ]
    masks = {os.path.realpath(sample.mask) for sample in samples if sample.mask is not None}
    if any(os.path.realpath(path) in masks for path in output_paths(files, folder)):
        raise MambaADError(f"overlays in {shown(folder)} would replace the dataset's masks: choose another folder")
    named = (one._replace(file=file) for one, file in zip(predictions, files, strict=True))
    write_maps(named, files, model, folder)


# ---- the worst ----


def worst(evaluation: Evaluation, n: int = WORST) -> tuple[list[Result], list[Result]]:
    """(misses, false alarms): at most n of each, the furthest on the wrong side of their threshold first."""
    results = [one for metrics in evaluation.classes for one in metrics.results if one.threshold is not None]
    misses = (one for one in results if one.sample.anomalous and not one.rejected)
    alarms = (one for one in results if not one.sample.anomalous and one.rejected)
    return heapq.nsmallest(n, misses, key=_margin), heapq.nlargest(n, alarms, key=_margin)


def _margin(one: Result) -> float:
    return one.margin


def write_worst(
    evaluation: Evaluation, model: Model, folder: Path, *, n: int = WORST, workers: int = WORKERS, device: str = "cpu"
) -> list[Path]:
    """Write worst_misses.png and worst_false_alarms.png, contact sheets of overlays; returns the files written.

    Where there are none, there is no file, nor one left of an earlier evaluation.
    """
    written = []
    for name, results in zip(("worst_misses.png", "worst_false_alarms.png"), worst(evaluation, n), strict=True):
        path, tiles = folder / name, list(_tiles(results, model, workers, device))
        if tiles:
            images.write(path, contact_sheet(tiles))
            written.append(path)
        elif path.is_file():
            path.unlink()
    return written


def _tiles(results: Sequence[Result], model: Model, workers: int, device: str) -> Iterator[Tile]:
    """Overlays of a few images, which are scored again: sooner than keeping the pictures of all."""
    files = [ImageFile(one.sample.path, one.sample.path, one.sample.class_name) for one in results]
    predictions = predict(model, files, workers=workers, device=device, maps=True)
    for one, again in zip(results, predictions, strict=True):
        if again.anomaly_map is None or again.picture is None:
            continue  # no longer there
        sample, scale = one.sample, colour_scale(model, one.sample.class_name)
        picture = overlay(thumbnail(again.picture), again.anomaly_map, scale)
        title = f"{sample.class_name}/{sample.defect}/{sample.path.name}"
        yield Tile(picture, shown(title), one.score, "anomalous" if one.rejected else "good")


# ---- tables ----


def to_table(evaluation: Evaluation) -> Table:
    """Classes and their mean; metrics in per cent, – where undefined; false rejects and misses of so many images."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, title in enumerate(TITLES):
        table.add_column(title.replace(" ", "\n"), justify="right" if i else "left", overflow="fold")
    rows = _rows(evaluation)
    for cells in rows:
        table.add_row(*map(Text, cells), style="bold" if cells is rows[-1] else None)
    return table


def recall_table(evaluation: Evaluation) -> Table:
    """Recall of each kind of defect at the model's threshold; without rows where the model has none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(RECALL_TITLES):
        table.add_column(title, justify="left" if i < 2 else "right", overflow="fold")
    for cells in _recall_rows(evaluation):
        table.add_row(*map(Text, cells))
    return table


def to_markdown(evaluation: Evaluation) -> str:
    """Both tables in Markdown, and the notes."""
    parts = [_markdown(TITLES, _rows(evaluation), left=1)]
    if recalls := _recall_rows(evaluation):
        parts.append(_markdown(RECALL_TITLES, recalls, left=2))
    if said := notes(evaluation):
        parts.append("".join(f"- {line}\n" for line in said))
    return "\n".join(parts)


def to_csv(evaluation: Evaluation) -> str:
    """Header, classes and their mean; metrics in per cent with one decimal, empty where undefined."""
    counts = ("false_rejects", "good", "misses", "anomalous", "unreadable")
    lines = [csv_line(["class", *METRICS, *counts])]
    for values in (*map(_facts, evaluation.classes), _summary(evaluation)):
        percents = ("" if values[key] is None else _percent(values[key]) for key in METRICS)
        lines.append(csv_line([values["class"], *percents, *(values[key] for key in counts)]))
    return "".join(lines)


def to_json(evaluation: Evaluation) -> str:
    """All that is known: metrics and rates in 0 … 1, unrounded; null where undefined."""
    classes = [_facts(one) | _details(one) for one in evaluation.classes]
    whole = {
        "classes": classes,
        "mean": _summary(evaluation),
        "held_out": evaluation.held_out,
        "unfinished": evaluation.unfinished,
    }
    return json.dumps(whole, indent=2) + "\n"


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the table must know besides: a line for each thing left out or not as usual."""
    lines = []
    for one in evaluation.classes:
        if not one.known:
            lines.append(f"{one.name}: the model was not trained on this class")
        if one.pixel_error is not None:
            lines.append(f"{one.name}: pixel metrics are streamed, exact to ± {max(one.pixel_error):.1g}")
        if one.without_mask:
            left_out = f"{len(one.without_mask)} of {one.anomalous} anomalous images left out of pixel metrics"
            lines.append(f"{one.name}: {left_out}, the first: {one.without_mask[0]}")
        lines += [f"{one.name}: left out {line}" for line in one.unreadable]
    if evaluation.classes and evaluation.false_rejects is None:
        lines.append("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR to count its mistakes")
    elif not evaluation.held_out:
        lines.append(
            "the threshold comes from training images, too few to hold some out, so it is too low: "
            "mambaad calibrate MODEL GOOD_DIR sets it anew"
        )
    if evaluation.unfinished:
        lines.append(f"interrupted: nothing is known of {', '.join(evaluation.unfinished)}")
    return [shown(line) for line in lines]


def _rows(evaluation: Evaluation) -> list[list[str]]:
    """The cells of the table: a row for each class, then their mean with the counts of all."""
    rows = [_row(one.name, one.metrics, one.false_rejects, one.misses) for one in evaluation.classes]
    return [*rows, _row("mean", evaluation.mean, evaluation.false_rejects, evaluation.misses)]


def _row(name: str, metrics: dict[str, float | None], false_rejects: Share | None, misses: Share | None) -> list[str]:
    counts = ["–" if share is None else str(share) for share in (false_rejects, misses)]
    return [shown(name), *map(_percent, metrics.values()), *counts]


def _recall_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [shown(one.name), shown(defect), str(share), _percent(share.rate)]
        for one in evaluation.classes
        for defect, share in one.recall.items()
    ]


def _percent(value: float | None) -> str:
    """As papers print it.

    >>> _percent(0.98649), _percent(None)
    ('98.6', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    r"""A Markdown table, its first `left` columns aligned left.

    >>> print(_markdown(["class", "mAD"], [["a|b", "86.0"]], left=1), end="")
    | class | mAD |
    |:---|---:|
    | a\|b | 86.0 |
    """
    rule = [":---" if i < left else "---:" for i in range(len(titles))]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]]) + "\n"


def _facts(one: ClassMetrics) -> dict[str, Any]:
    """A class's row for programs."""
    counts = {"good": one.good, "anomalous": one.anomalous, "unreadable": len(one.unreadable)}
    return {"class": one.name, **one.metrics, **_mistakes(one.false_rejects, one.misses), **counts}


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """The mean's row for programs, with the counts of all."""
    facts = [_facts(one) for one in evaluation.classes]
    counts = {key: sum(row[key] for row in facts) for key in ("good", "anomalous", "unreadable")}
    return {
        "class": "mean",
        **evaluation.mean,
        **_mistakes(evaluation.false_rejects, evaluation.misses),
        **counts,
    }


def _mistakes(false_rejects: Share | None, misses: Share | None) -> dict[str, Any]:
    return {
        "false_rejects": false_rejects and false_rejects.count,
        "false_reject_rate": false_rejects and false_rejects.rate,
        "misses": misses and misses.count,
        "miss_rate": misses and misses.rate,
    }


def _details(one: ClassMetrics) -> dict[str, Any]:
    """What does not fit into a row."""
    recall = {
        defect: {"found": share.count, "total": share.total, "recall": share.rate}
        for defect, share in one.recall.items()
    }
    return {
        "trained_on": one.known,
        "threshold": one.threshold,
        "recall": recall,
        "pixel_error": one.pixel_error and one.pixel_error._asdict(),
        "without_mask": one.without_mask,
        "unreadable_images": one.unreadable,
    }
