"""A model whose anomaly map is the image's brightness, and test images of one grey value.

Every number is known: an image of one grey value v has a map of v / 255 everywhere.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor, nn

from mambaad_cli.data.datasets import Sample
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.encoder import Encoder
from mambaad_cli.model.settings import Settings
from tests.conftest import calibrated

SIZE = (64, 64)


class Seen(nn.Module):
    """An encoder's net that shows its detector the image itself."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class Brightness(nn.Module):
    strides = (1,)
    scales = 0
    gain = 1.0

    def anomaly_map(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.gain * features[0].amax(1)


def brightness_model(
    threshold: float | None = None,
    size: tuple[int, int] = SIZE,
    scores: Mapping[str, float] | None = None,
    promising: Collection[str] = ("nut", "gear"),
    **settings: Any,
) -> TorchScorer:
    """Calls an image anomalous if any of its pixels is brighter than the threshold of nuts, 0…255.

    scores: instead of the threshold, one calibration score in 0 … 1 of each product. promising: products whose
    thresholds come from images that were held out. settings: other fields of Settings.
    """
    network = Network(Settings(size=size, **settings), Encoder(Seen(), [3], [0.0] * 3, [1.0] * 3), Brightness())
    if scores is None:
        scores = {} if threshold is None else {"nut": float(np.float32(threshold) / np.float32(255))}
    products = {
        name: calibrated(Product(name, size, images=1), [score], promising=name in promising)
        for name, score in scores.items()
    }
    return TorchScorer(ModelRecord(network, products))


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    return path


def grey(root: Path, defect: str, value: int, class_name: str = "nut", square: slice | None = None) -> Sample:
    """A test image of one value; with `square` only there, the rest black, and that square its mask."""
    picture = np.full(SIZE, value, np.uint8)
    if square is not None:
        picture = np.zeros(SIZE, np.uint8)
        picture[square, square] = value
    mask = None
    if square is not None and defect != "good":
        mask = write(root / class_name / "ground_truth" / defect / f"{value}_mask.png", (picture > 0) * np.uint8(255))
    path = write(root / class_name / "test" / defect / f"{value}.png", picture)
    return Sample(path, class_name, "test", defect, mask)
