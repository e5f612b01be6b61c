"""Anomaly maps -> score, threshold, p-value and verdict, inside the graph, exactly as they are printed.

Scores are compared in six digits (calibration.six_digits). A graph cannot print a number, so that each number that a
score is compared with becomes the largest float32 that is printed like it.

Letters: n images, k products, H × W pixels of a map, r rows of the tables, s scores of good images, t calibrations.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambaad_cli.inspection.calibration import six_digits
from mambaad_cli.inspection.exported_scorer import VERDICTS
from mambaad_cli.inspection.product import Calibration, Products, calibrations_of, threshold_of

GOOD, ANOMALOUS, UNKNOWN, UNCALIBRATED, ERROR = range(len(VERDICTS))
NONE_KNOWN = -1  # in place of a product's number


class GraphOutputs(NamedTuple):
    """The outputs of the graph, one of each an image. NaN: there is none."""

    map: Tensor  # (n, H, W) float32
    score: Tensor  # (n,) float32: the maximum of the map, of a letterboxed image inside its box
    threshold: Tensor  # (n,) float32
    p_value: Tensor  # (n,) float32
    verdict: Tensor  # (n,) int64: its place in exported_scorer.VERDICTS
    product: Tensor  # (n,) int64: its place in the list of products; −1: none
    certainty: Tensor  # (n,) float32: 0 … 1 if the product was recognised


class Verdicts(nn.Module):
    """The verdicts of a model on images of k products. Row k of its tables is for images of no known product."""

    thresholds: Tensor
    limits: Tensor
    good: Tensor
    count: Tensor
    applies: Tensor

    def __init__(self, products: Products, names: Sequence[str]) -> None:
        super().__init__()
        self.products = len(names)
        rows = [*names, ""] if len(names) > 1 else list(names)
        thresholds = [threshold_of(products, name) for name in rows]
        self.calibrated = thresholds[0] is not None  # either all products have a threshold or none has
        as_printed = [math.nan if threshold is None else six_digits(threshold) for threshold in thresholds]
        of_rows = [calibrations_of(products, name) for name in rows]
        promising = _promising(of_rows)
        longest = max((len(calibration.scores) for calibration in promising), default=0)
        tables = {
            "thresholds": torch.tensor(as_printed),  # (r,)
            "limits": torch.tensor([largest_printed_as(threshold) for threshold in as_printed]),  # (r,)
            "good": torch.tensor([_good_scores(calibration, longest) for calibration in promising]),  # (t, s)
            "count": torch.tensor([float(len(calibration.scores)) for calibration in promising]),  # (t,)
            "applies": torch.tensor([[_among(each, row) for each in promising] for row in of_rows]),  # (r, t)
        }
        for name, table in tables.items():
            self.register_buffer(name, table)

    def forward(
        self, anomaly_map: Tensor, on_image: Tensor | None, product: Tensor, certainty: Tensor, known: Tensor
    ) -> GraphOutputs:
        """
        anomaly_map: (n, H, W).
        on_image: (n, H, W) bool, which of its values count; None: all.
        product: (n,) its place among the products; −1: of none.
        certainty, known: (n,) of a recognised product.
        """
        values = torch.where(anomaly_map.isnan(), math.inf, anomaly_map)  # a broken map must not look good
        score = (values if on_image is None else torch.where(on_image, values, -math.inf)).amax((1, 2))
        finite = score.abs() < math.inf
        judged = known & finite
        row = torch.where(product < 0, self.products, product)
        verdict = torch.where(score > self.limits[row], ANOMALOUS, GOOD) if self.calibrated else row * 0 + UNCALIBRATED
        verdict = torch.where(finite, torch.where(known, verdict, UNKNOWN), ERROR)
        nan = torch.full_like(score, math.nan)
        return GraphOutputs(
            anomaly_map,
            score,
            torch.where(judged, self.thresholds[row], nan),
            torch.where(judged, self._p_value(score, row), nan),
            verdict,
            torch.where(known, product, NONE_KNOWN),
            certainty,
        )

    def _p_value(self, score: Tensor, row: Tensor) -> Tensor:
        """(n,), as product.p_value_of: the highest of the calibrations that apply to the row of each image."""
        if not len(self.good):
            return torch.full_like(score, math.nan)
        as_high = (score[:, None, None] <= self.good).float().sum(-1)  # (n, t)
        highest = torch.where(self.applies[row], (1 + as_high) / (self.count + 1), -1.0).amax(1)
        return torch.where(highest < 0, math.nan, highest)


def _promising(of_rows: Sequence[Sequence[Calibration]]) -> list[Calibration]:
    """The calibrations of all rows that promise something, each once."""
    distinct = {id(calibration): calibration for row in of_rows for calibration in row if calibration.promising}
    return list(distinct.values())


def _among(calibration: Calibration, row: Sequence[Calibration]) -> bool:
    return any(other is calibration for other in row)


def _good_scores(calibration: Calibration, length: int) -> list[float]:
    """The scores of good images as the graph compares them, made `length` long by scores that every image exceeds."""
    scores = [largest_printed_as(score) for score in calibration.scores]
    return scores + [-math.inf] * (length - len(scores))


def largest_printed_as(value: float) -> float:
    """The largest float32 whose six digits are not above those of `value`.

    >>> largest_printed_as(3.0)
    3.000004768371582
    """
    if not math.isfinite(value):
        return value
    printed, largest = six_digits(value), np.float32(value)
    while six_digits(float(largest)) > printed:
        largest = np.nextafter(largest, np.float32(-math.inf))
    while six_digits(float(after := np.nextafter(largest, np.float32(math.inf)))) <= printed:
        largest = after
    return float(largest)
