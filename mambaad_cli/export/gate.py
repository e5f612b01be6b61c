"""The gate: an exported file must score as the model that it was made from, or it is not written.

Differences are relative to the image's score or its threshold, whichever is larger in size, because scores may lie
around zero. The tolerance holds for each score, and for the mean over each map. A single value of a map may differ by
LOCAL times as much: where two patches of the memory are equally near, the last digit decides which of them counts, and
the model's own map would differ as much on another processor. Thresholds must be equal in the six digits that are
printed, and p-values must be those that the model gives for the same score. Certainties lie in 0 … 1, and may differ by
the tolerance.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import roi
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input, blank_outside, placed
from mambaad_cli.inspection.calibration import six_digits
from mambaad_cli.inspection.exported_scorer import ExportedScorer
from mambaad_cli.inspection.model_record import Example
from mambaad_cli.inspection.predict import Reading, predict, predictions
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Product, Products, Size, p_value_of
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.training.examples import box_of, pixels_of

TOLERANCE = 1e-3
LOCAL = 30
ON_THE_THRESHOLD = 1e-5  # relative; so near, the last of six digits decides, and a verdict that differs means nothing
SAME_P_VALUE = 1e-6  # between p-values of which one went through float32


@dataclass
class Agreement:
    """How a model and its exported file agree. Differences are relative, of the image where they are largest."""

    images: int = 0
    score: float = 0.0
    map: float = 0.0  # the mean over its values
    map_value: float = 0.0  # a single value
    certainty: float = 0.0  # of the recognised product, absolute
    verdicts: int = 0  # images whose verdicts differ
    on_threshold: int = 0  # other images whose verdicts differ, with scores that equal the threshold but for rounding
    products: int = 0  # images that are recognised as another product
    thresholds: int = 0  # images whose thresholds differ in six digits
    p_values: int = 0  # images whose p-values differ though their scores do not

    def add(self, expected: Prediction, exported: Prediction) -> None:
        """Compare what the model and the file predict of an image; images that cannot be read do not count.

        The expected p-value is that of the exported score, see `with_p_value`.
        """
        if expected.score is None and expected.anomaly_map is None and exported.anomaly_map is None:
            return
        self.images += 1
        if (
            expected.score is None
            or exported.score is None
            or expected.anomaly_map is None
            or exported.anomaly_map is None
        ):
            self.score = self.map = self.map_value = math.inf
            self.verdicts += 1
            return
        scale = max(abs(expected.score), abs(expected.threshold or 0.0), 1e-12)
        self.score = max(self.score, abs(expected.score - exported.score) / scale)
        away = np.abs(expected.anomaly_map - exported.anomaly_map)
        self.map = max(self.map, float(away.mean()) / scale)
        self.map_value = max(self.map_value, float(away.max()) / scale)
        self.products += expected.class_name != exported.class_name
        if expected.verdict != exported.verdict:
            threshold = expected.threshold
            near = threshold is not None and abs(expected.score - threshold) <= ON_THE_THRESHOLD * scale
            self.on_threshold += near
            self.verdicts += not near
        self.certainty = max(self.certainty, _apart(expected.certainty, exported.certainty))
        self.thresholds += _apart(_as_printed(expected.threshold), _as_printed(exported.threshold)) > 0
        self.p_values += _apart(expected.p_value, exported.p_value) > SAME_P_VALUE

    def within(self, tolerance: float) -> bool:
        """Whether the file may be written."""
        differ = self.verdicts or self.products or self.thresholds or self.p_values
        return max(self.score, self.certainty, self.map_needs) <= tolerance and not differ

    @property
    def map_needs(self) -> float:
        """The tolerance that accepts the maps."""
        return max(self.map, self.map_value / LOCAL)

    @property
    def line(self) -> str:
        """
        >>> Agreement(44, 2.13e-6, 3e-6, 4e-4).line.split(";")
        ['on 44 images scores differ by at most 2.1e-06, maps by 3.0e-06, single values by 4.0e-04 (relative)', \
' no verdict differs']
        """
        text = f"on {self.images} images scores differ by at most {self.score:.1e}, maps by {self.map:.1e}"
        text += f", single values by {self.map_value:.1e} (relative)"
        text += f"; {self.verdicts or 'no'} verdict{'s differ' if self.verdicts > 1 else ' differs'}"
        if self.on_threshold:
            text += f" but for {self.on_threshold} where the score equals the threshold"
        if self.products:
            text += f", {self.products} are taken for another product"
        if self.certainty > TOLERANCE:
            text += f", certainties differ by up to {self.certainty:.1e}"
        for count, what in ((self.thresholds, "threshold"), (self.p_values, "p-value")):
            if count:
                text += f", {count} {what}{'s differ' if count > 1 else ' differs'}"
        return text

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _apart(expected: float | None, exported: float | None) -> float:
    """How far two numbers lie apart, of which both may be missing."""
    if expected is None or exported is None:
        return 0.0 if expected is exported else math.inf
    return abs(expected - exported)


def _as_printed(threshold: float | None) -> float | None:
    return None if threshold is None else six_digits(threshold)


def compare(scorer: TorchScorer, exported: ExportedScorer, files: Sequence[ImageFile]) -> Agreement:
    """Both on the examples that the model keeps of the file's products, and on image files.

    Raises MambaADError where there is neither, or no file can be read.
    """
    several = len(exported.names) > 1
    examples = [example for example in scorer.record.examples if example.class_name in exported.names]
    options = PredictOptions(None if several else exported.names[0] or None, maps=True)

    def readings() -> Iterator[Reading]:
        for example in examples:
            product = scorer.products[example.class_name]
            told = "" if several else product.name  # so that recognition is compared as well
            yield ImageFile(Path(), Path(), ""), told, input_of(example, product, exported.input_size)

    pairs: list[tuple[Iterable[Prediction], Iterable[Prediction]]] = [
        (predictions(scorer.expecting(None), readings(), options), predictions(exported, readings(), options)),
        (predict(scorer, files, options), predict(exported, files, options)),
    ]
    agreement = Agreement()
    for of_model, of_file in pairs:
        for expected, actual in zip(of_model, of_file, strict=True):
            agreement.add(with_p_value(scorer.products, expected, actual.score), actual)
    if not agreement.images:
        what = "no image in --check can be read" if files else "the model keeps no examples"
        raise MambaADError(f"{what}, so nothing can be compared: give a folder of photos with --check, or --no-check")
    return agreement


def with_p_value(products: Products, prediction: Prediction, score: float | None) -> Prediction:
    """A model's prediction with the p-value that the model gives to another score.

    A score that differs in its last digit may pass one of the good images', so that the p-value of the own score is
    not comparable.
    """
    if prediction.p_value is None or score is None:
        return prediction
    return prediction._replace(p_value=p_value_of(products, prediction.class_name, score))


def input_of(example: Example, product: Product, size: Size) -> Input:
    """An example, which is kept as the decoder sees it, as a photo of the product at the size of the file's images.

    Its region of interest is the product's of today, which may be another than that of fit.
    """
    region = product.region
    if product.own_masks and example.inside is not None:
        mask = roi.decoded(example.inside.numpy())
        region = mask if region is None else mask & roi.scaled(region, (mask.shape[0], mask.shape[1]))
    pixels = (pixels_of(example, size) * 255).round().clamp(0, 255) / 255
    inside = None if region is None else placed(region, size, None)
    if inside is not None:
        pixels = blank_outside(pixels, inside)
    picture = (pixels * 255).round().byte().permute(1, 2, 0).contiguous().numpy()  # tiles are cut from it
    return Input(pixels, box_of(example, size), picture, size, picture, inside, region)
