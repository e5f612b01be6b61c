"""Anomaly maps -> score, threshold, p-value and verdict, inside the graph, exactly as they are printed.

Scores are compared in six digits (calibration.six_digits). A graph cannot print a number, so that each number that a
score is compared with becomes the largest float32 that is printed like it.

Letters: n images, k products, H × W pixels of a map, s scores of good images.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambaad_cli.inspection.calibration import six_digits
from mambaad_cli.inspection.exported_model import VERDICTS
from mambaad_cli.inspection.fitted_model import FittedModel

GOOD, ANOMALOUS, UNKNOWN, UNCALIBRATED, ERROR = range(len(VERDICTS))


class Found(NamedTuple):
    """The outputs of the graph, one of each an image. NaN: there is none."""

    map: Tensor  # (n, H, W) float32
    score: Tensor  # (n,) float32: the maximum of the map, of a letterboxed image inside its box
    threshold: Tensor  # (n,) float32
    p_value: Tensor  # (n,) float32
    verdict: Tensor  # (n,) int64: its place in exported_model.VERDICTS
    product: Tensor  # (n,) int64: its place in the list of products; −1: none
    certainty: Tensor  # (n,) float32: 0 … 1 if the product was recognised


class Judgement(nn.Module):
    """The verdicts of a calibrated model of k products. Row k of its tables is for images of no known product."""

    thresholds: Tensor
    limits: Tensor
    good: Tensor
    count: Tensor
    promising: Tensor

    def __init__(self, model: FittedModel, products: list[str]) -> None:
        super().__init__()
        self.calibrated = bool(model.scores)
        thresholds = [model.threshold(name) for name in [*products, ""]]
        scores = [model.scores.get(name, []) if name in model.held_out else [] for name in products]
        most = max(1, *(len(own) for own in scores))
        as_printed = [math.nan if one is None else six_digits(one) for one in thresholds]
        good = [[largest_printed_as(one) for one in own] + [-math.inf] * (most - len(own)) for own in scores]
        tables = {
            "thresholds": torch.tensor(as_printed),  # (k + 1,)
            "limits": torch.tensor([largest_printed_as(one) for one in as_printed]),
            "good": torch.tensor(good),  # (k, s)
            "count": torch.tensor([float(len(own)) for own in scores]),
            "promising": torch.tensor([len(own) > 0 for own in scores]),
        }
        for name, table in tables.items():
            self.register_buffer(name, table)

    def forward(
        self, anomaly_map: Tensor, inside: Tensor | None, product: Tensor, certainty: Tensor, known: Tensor
    ) -> Found:
        """
        anomaly_map: (n, H, W).
        inside: (n, H, W) bool, which of its values count; None: all.
        product: (n,) its place among the products; −1: of none.
        certainty, known: (n,) of a recognised product.
        """
        seen = torch.where(anomaly_map.isnan(), math.inf, anomaly_map)  # a broken map must not look good
        score = (seen if inside is None else torch.where(inside, seen, -math.inf)).amax((1, 2))
        finite = score.abs() < math.inf
        judged = known & finite
        row = torch.where(product < 0, len(self.good), product)
        verdict = torch.where(score > self.limits[row], ANOMALOUS, GOOD) if self.calibrated else row * 0 + UNCALIBRATED
        verdict = torch.where(finite, torch.where(known, verdict, UNKNOWN), ERROR)
        nan = torch.full_like(score, math.nan)
        return Found(
            anomaly_map,
            score,
            torch.where(judged, self.thresholds[row], nan),
            torch.where(judged, self._p_value(score).gather(1, row[:, None])[:, 0], nan),
            verdict,
            torch.where(known, product, -1),
            certainty,
        )

    def _p_value(self, score: Tensor) -> Tensor:
        """(n, k + 1), as FittedModel.p_value: in the last column the highest of the others."""
        as_high = (score[:, None, None] <= self.good).float().sum(-1)
        own = torch.where(self.promising, (1 + as_high) / (self.count + 1), -1.0)
        every = torch.cat([own, own.amax(1, keepdim=True)], dim=1)
        return torch.where(every < 0, math.nan, every)


def largest_printed_as(value: float) -> float:
    """The largest float32 whose six digits are not above those of `value`.

    >>> largest_printed_as(3.0)
    3.000004768371582
    """
    if not math.isfinite(value):
        return value
    printed, found = six_digits(value), np.float32(value)
    while six_digits(float(found)) > printed:
        found = np.nextafter(found, np.float32(-math.inf))
    while six_digits(float(after := np.nextafter(found, np.float32(math.inf)))) <= printed:
        found = after
    return float(found)
