"""Labelled samples -> metrics of each class: how well a fitted model does on a benchmark's test images.

Nothing is tuned on them: the threshold is the model's own. A label is its sample's, never read from a resized mask.
Anomaly maps are compared with their masks at the model's resolution, as in published numbers, or at that of the photos.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.metrics import (
    ImageMetrics,
    PixelMetrics,
    StreamingPixelMetrics,
    image_metrics,
    mad,
    pixel_metrics,
)
from mambaad_cli.data.datasets import Sample
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import WORKERS
from mambaad_cli.data.masks import read_mask, resize_mask
from mambaad_cli.files import shown
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.overlays import output_paths, write_maps
from mambaad_cli.inspection.predict import BATCH, Prediction, PredictOptions, predict

EXACT_PIXELS = 200_000_000  # of a class; they take 5 bytes each, and the metrics of more are streamed
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
    held_out: bool  # whether the threshold promises something
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

    @property
    def held_out(self) -> bool:
        """Whether every class has a threshold from images that the model was not trained on."""
        return all(one.held_out for one in self.classes)

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


def evaluate(
    model: FittedModel,
    samples: Sequence[Sample],
    *,
    batch: int = BATCH,
    workers: int = WORKERS,
    full_size: bool = False,
    maps: Path | None = None,
    pictures: bool = False,
    on_result: Callable[[Prediction], None] = lambda one: None,
) -> Evaluation:
    """Score the test samples and measure each class by itself; training samples are not looked at.

    `full_size`: pixel metrics at the size of the photos, to which maps are scaled; else masks are scaled to the maps.
    `maps`: a folder for the overlays of all test images and contact sheets of them. `on_result` is told of each image,
    unreadable ones included; with `pictures` also its map, its picture and its regions. Images and masks that cannot be
    read are left out and listed. An interrupt ends it with the classes done so far; where there are none, it is raised
    on.

    Raises MambaADError: no test samples, scores that are not finite, and with `maps` a model without a threshold or a
    folder where an overlay would replace an image or a mask.
    """
    groups = _by_class(sample for sample in samples if sample.split == "test")
    if not groups:
        raise MambaADError("the dataset has no test images: expected test/good/ and test/<defect>/, or split test")
    classes: list[ClassMetrics] = []
    options = PredictOptions(batch=batch, workers=workers, maps=pictures or maps is not None)
    if pictures:
        options = replace(options, min_area=0)
    tallies = (_Tally(name, own, model, full_size) for name, own in groups.items())
    predictions = _measured(model, tallies, classes, options, on_result)
    try:
        if maps is None:
            deque(predictions, maxlen=0)
        else:
            _write_overlays(predictions, [sample for own in groups.values() for sample in own], model, maps)
    except KeyboardInterrupt:
        if not classes:
            raise
    return Evaluation(classes, list(groups)[len(classes) :])


def _by_class(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.class_name, []).append(sample)
    return groups


def _measured(
    model: FittedModel,
    tallies: Iterable["_Tally"],
    classes: list[ClassMetrics],
    options: PredictOptions,
    on_result: Callable[[Prediction], None],
) -> Iterator[Prediction]:
    """Pass the predictions on, class by class, and add each class to `classes` when it is complete."""
    for tally in tallies:
        name = tally.name
        files = [ImageFile(sample.path, sample.path, name) for sample in tally.samples]
        own_options = replace(options, class_name=known_class(model, name), maps=options.maps or tally.masked)
        for sample, one in zip(tally.samples, predict(model, files, own_options), strict=True):
            one = one._replace(class_name=name)
            tally.add(sample, one)
            on_result(one)
            yield one
        classes.append(tally.metrics())


def known_class(model: FittedModel, name: str) -> str | None:
    """The class as `predict` wants it told; None where the model does not know it, and finds what it looks like."""
    return name if name in model.trained_on else None


def _is_held_out(model: FittedModel, class_name: str) -> bool:
    """Whether the class's threshold promises something.

    The threshold of a class that the model does not know is one of those it knows, so then of all of these.
    """
    return class_name in model.held_out if class_name in model.scores else set(model.scores) <= model.held_out


class _Tally:
    """One class while its predictions come in."""

    def __init__(self, name: str, samples: Sequence[Sample], model: FittedModel, full_size: bool) -> None:
        self.samples, self.full_size = samples, full_size
        self.name, self.threshold, self.held_out = name, model.threshold(name), _is_held_out(model, name)
        self.known = not model.trained_on or name in model.trained_on
        self.masked = any(sample.mask is not None for sample in samples)
        self.pixels = _Pixels()
        self.results: list[Result] = []
        self.unreadable: list[str] = []
        self.without_mask: list[str] = []

    def add(self, sample: Sample, one: Prediction) -> None:
        if one.score is None:
            self.unreadable.append(f"{shown(sample.path)}: {one.error}")
            return
        if not math.isfinite(one.score):
            raise MambaADError(f"{shown(sample.path)}: its score is {one.score}: fit the model again")
        self.results.append(Result(sample, one.score, self.threshold))
        if self.masked and one.anomaly_map is not None and one.picture is not None:
            self.add_pixels(sample, one.anomaly_map, one.picture.shape[:2])

    def add_pixels(self, sample: Sample, anomaly_map: np.ndarray, shape: tuple[int, int]) -> None:
        try:
            mask = read_mask(sample, shape)
        except MambaADError as error:
            self.without_mask.append(str(error))
            return
        if self.full_size:  # as overlays show it
            anomaly_map = cv2.resize(anomaly_map, shape[::-1], interpolation=cv2.INTER_LINEAR)
        self.pixels.add(anomaly_map, resize_mask(mask, anomaly_map.shape))

    def metrics(self) -> ClassMetrics:
        labels, scores = [one.sample.anomalous for one in self.results], [one.score for one in self.results]
        image = image_metrics(labels, scores) if len(set(labels)) == 2 else None
        pixel, pixel_error = self.pixels.metrics()
        return ClassMetrics(
            self.name,
            self.known,
            self.threshold,
            self.held_out,
            self.results,
            image,
            pixel,
            pixel_error,
            self.unreadable,
            self.without_mask,
        )


class _Pixels:
    """The maps and masks of one class: held until their metrics are asked for; where they are many, only counted."""

    def __init__(self) -> None:
        self.stream: StreamingPixelMetrics | None = None
        self.maps: deque[np.ndarray] = deque()
        self.masks: deque[np.ndarray] = deque()
        self.good = self.defect = 0

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        defect = int(mask.sum())
        self.good, self.defect = self.good + mask.size - defect, self.defect + defect
        self.maps.append(anomaly_map)
        self.masks.append(mask)
        if self.good + self.defect > EXACT_PIXELS:
            self.stream = self.stream or StreamingPixelMetrics()
            for held, its_mask in zip(_drained(self.maps), _drained(self.masks), strict=True):
                self.stream.add(held, its_mask)

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


def _write_overlays(
    predictions: Iterable[Prediction], samples: Sequence[Sample], model: FittedModel, folder: Path
) -> None:
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
