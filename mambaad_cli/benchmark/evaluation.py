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
from mambaad_cli.data.masks import mask_files, read_mask, resize_mask
from mambaad_cli.files import shown
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.overlays import output_paths, write_maps
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import BATCH, Prediction, PredictOptions
from mambaad_cli.inspection.product import Products, threshold_of
from mambaad_cli.inspection.scorer import Scorer

MAX_EXACT_PIXELS = 200_000_000  # of a class; they take 5 bytes each, and the metrics of more are streamed
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
class EvaluationOptions:
    """What an evaluation measures and keeps, and how it runs."""

    batch: int = BATCH  # images that go through the model together
    workers: int = WORKERS  # threads that read files
    full_size: bool = False  # pixel metrics at the size of the photos, not of the model's maps
    maps: Path | None = None  # folder for the overlays of all test images, and contact sheets of them
    pictures: bool = False  # each Prediction carries its map, its picture and its regions


@dataclass(frozen=True)
class Proportion:
    """A number of images out of a total.

    >>> str(Proportion(3, 4)), Proportion(3, 4).rate, Proportion(0, 0).rate
    ('3/4', 0.75, None)
    """

    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.count}/{self.total}"

    @property
    def rate(self) -> float | None:
        return self.count / self.total if self.total else None


class ImageResult(NamedTuple):
    """The score of a test image; `threshold` is None where the model has none yet."""

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
    """The metrics of the test images of one class. A metric that they do not define is None."""

    name: str
    known: bool  # whether the model was trained on this class
    threshold: float | None
    held_out: bool  # whether the threshold comes from images that the model was not trained on
    results: list[ImageResult]  # of the images that could be read, in the samples' order
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
        return sum(not result.sample.anomalous for result in self.results)

    @property
    def anomalous(self) -> int:
        return len(self.results) - self.good

    @property
    def false_rejects(self) -> Proportion | None:
        """Good images above the threshold; None without a threshold, as are `misses`."""
        if self.threshold is None:
            return None
        return Proportion(sum(result.rejected for result in self.results if not result.sample.anomalous), self.good)

    @property
    def misses(self) -> Proportion | None:
        """Anomalous images not above the threshold."""
        if self.threshold is None:
            return None
        missed = sum(not result.rejected for result in self.results if result.sample.anomalous)
        return Proportion(missed, self.anomalous)

    @property
    def recall(self) -> dict[str, Proportion]:
        """Anomalous images above the threshold, by the kind of defect; empty without a threshold."""
        if self.threshold is None:
            return {}
        rejected: dict[str, list[bool]] = {}
        for result in self.results:
            if result.sample.anomalous:
                rejected.setdefault(result.sample.defect, []).append(result.rejected)
        return {defect: Proportion(sum(flags), len(flags)) for defect, flags in rejected.items()}


@dataclass(frozen=True)
class Evaluation:
    """All classes, in the samples' order."""

    classes: list[ClassMetrics]
    unfinished: list[str]  # classes that an interrupt kept from being evaluated; they are not in `classes`

    @property
    def held_out(self) -> bool:
        """Whether every class has a threshold from images that the model was not trained on."""
        return all(metrics.held_out for metrics in self.classes)

    @property
    def mean(self) -> dict[str, float | None]:
        """Each metric's mean over the classes that have it, under the keys of METRICS."""
        columns = {key: [metrics.metrics[key] for metrics in self.classes] for key in METRICS}
        defined = {key: [value for value in column if value is not None] for key, column in columns.items()}
        return {key: float(np.mean(values)) if values else None for key, values in defined.items()}

    @property
    def false_rejects(self) -> Proportion | None:
        return _total(metrics.false_rejects for metrics in self.classes)

    @property
    def misses(self) -> Proportion | None:
        return _total(metrics.misses for metrics in self.classes)


def _total(proportions: Iterable[Proportion | None]) -> Proportion | None:
    known = [proportion for proportion in proportions if proportion is not None]
    if not known:
        return None
    return Proportion(sum(proportion.count for proportion in known), sum(proportion.total for proportion in known))


def evaluate(
    scorer: Scorer,
    samples: Sequence[Sample],
    options: EvaluationOptions | None = None,
    on_result: Callable[[Prediction], None] = lambda prediction: None,
) -> Evaluation:
    """Score the test samples and measure each class separately; training samples are ignored.

    With `full_size` maps are scaled to their photos, otherwise masks are scaled to the maps. `on_result` is called with
    the prediction of each image, also of those that cannot be read. Images and masks that cannot be read are left out
    and listed. After an interrupt, the classes that are complete are returned; without any, the interrupt is raised on.

    Raises MambaADError: no test samples, scores that are not finite, and with `maps` a model without a threshold or a
    folder where an overlay would replace an image or a mask.
    """
    groups = _by_class(sample for sample in samples if sample.split == "test")
    if not groups:
        raise MambaADError("the dataset has no test images: expected test/good/ and test/<defect>/, or split test")
    classes: list[ClassMetrics] = []
    options = options or EvaluationOptions()
    tallies = (_Tally(name, group, scorer.products, options.full_size) for name, group in groups.items())
    predictions = _measured(scorer, tallies, classes, _predict_options(options), on_result)
    try:
        if options.maps is None:
            deque(predictions, maxlen=0)
        else:
            _write_overlays(
                predictions, [sample for group in groups.values() for sample in group], scorer, options.maps
            )
    except KeyboardInterrupt:
        if not classes:
            raise
    return Evaluation(classes, list(groups)[len(classes) :])


def _predict_options(options: EvaluationOptions) -> PredictOptions:
    maps = options.pictures or options.maps is not None
    min_area = 0 if options.pictures else None
    return PredictOptions(batch=options.batch, workers=options.workers, maps=maps, min_area=min_area)


def _by_class(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.class_name, []).append(sample)
    return groups


def _measured(
    scorer: Scorer,
    tallies: Iterable["_Tally"],
    classes: list[ClassMetrics],
    options: PredictOptions,
    on_result: Callable[[Prediction], None],
) -> Iterator[Prediction]:
    """Pass the predictions on, class by class, and add each class to `classes` when it is complete."""
    for tally in tallies:
        name = tally.name
        files = [ImageFile(sample.path, sample.path, name) for sample in tally.samples]
        class_options = replace(
            options, class_name=known_class(scorer.products, name), maps=options.maps or tally.masked
        )
        for sample, prediction in zip(tally.samples, predict(scorer, files, class_options), strict=True):
            prediction = prediction._replace(class_name=name)
            tally.add(sample, prediction)
            on_result(prediction)
            yield prediction
        classes.append(tally.metrics())


def known_class(products: Products, name: str) -> str | None:
    """The class for PredictOptions; None where the model does not know it and has to recognise the product."""
    return name if name in products else None


def _is_held_out(products: Products, class_name: str) -> bool:
    """Whether the class's threshold comes from images that the model was not trained on.

    A class that the model does not know has the threshold of a known class, so all of these have to be held out.
    """
    calibrated = [product for product in products.values() if product.calibration is not None]
    chosen = [product for product in calibrated if product.name == class_name] or calibrated
    return all(product.promising for product in chosen)


class _Tally:
    """The results of one class while its predictions come in."""

    def __init__(self, name: str, samples: Sequence[Sample], products: Products, full_size: bool) -> None:
        self.samples, self.full_size = samples, full_size
        self.name, self.threshold, self.held_out = name, threshold_of(products, name), _is_held_out(products, name)
        self.known = not products or name in products
        self.masked = any(sample.mask is not None for sample in samples)
        self.pixels = _Pixels()
        self.results: list[ImageResult] = []
        self.unreadable: list[str] = []
        self.without_mask: list[str] = []

    def add(self, sample: Sample, prediction: Prediction) -> None:
        if prediction.score is None:
            self.unreadable.append(f"{shown(sample.path)}: {prediction.error}")
            return
        if not math.isfinite(prediction.score):
            raise MambaADError(f"{shown(sample.path)}: its score is {prediction.score}: fit the model again")
        self.results.append(ImageResult(sample, prediction.score, self.threshold))
        if self.masked and prediction.anomaly_map is not None and prediction.picture is not None:
            self.add_pixels(sample, prediction.anomaly_map, prediction.picture.shape[:2])

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
        labels = [result.sample.anomalous for result in self.results]
        scores = [result.score for result in self.results]
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
    """The maps and masks of one class: kept until `metrics` is called, or only counted where there are too many."""

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
        if self.good + self.defect > MAX_EXACT_PIXELS:
            self.stream = self.stream or StreamingPixelMetrics()
            for kept_map, kept_mask in zip(_drained(self.maps), _drained(self.masks), strict=True):
                self.stream.add(kept_map, kept_mask)

    def metrics(self) -> tuple[PixelMetrics | None, PixelMetrics | None]:
        """(value, error): None where they are undefined, and no error where they are exact. To be called once."""
        if not (self.good and self.defect):
            return None, None
        if self.stream is not None:
            return self.stream.result()
        return pixel_metrics(_drained(self.maps), _drained(self.masks)), None


def _drained(arrays: "deque[np.ndarray]") -> Iterator[np.ndarray]:
    """Each array once: it is freed as soon as its pixels are taken, so that memory never holds them twice."""
    while arrays:
        yield arrays.popleft()


def _write_overlays(predictions: Iterable[Prediction], samples: Sequence[Sample], scorer: Scorer, folder: Path) -> None:
    """Write the overlay of each sample, in the dataset's own folders."""
    paths = [Path(os.path.abspath(sample.path)) for sample in samples]  # noqa: PTH100 (Path.absolute keeps ..)
    top = os.path.commonpath([path.parent for path in paths])
    files = [
        ImageFile(sample.path, path.relative_to(top), sample.class_name)
        for sample, path in zip(samples, paths, strict=True)
    ]
    masks = {os.path.realpath(path) for sample in samples for path in mask_files(sample)}
    if any(os.path.realpath(path) in masks for path in output_paths(files, folder)):
        raise MambaADError(f"overlays in {shown(folder)} would replace the dataset's masks: choose another folder")
    placed = (prediction._replace(file=file) for prediction, file in zip(predictions, files, strict=True))
    write_maps(placed, files, scorer, folder)
