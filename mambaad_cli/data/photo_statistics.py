"""How a photo was taken, in three numbers: they tell a dark lamp or a camera out of focus from a change of the part."""

from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

KEPT = 200  # photos of a product whose statistics a model keeps
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class PhotoStatistics(NamedTuple):
    """Of a photo as the model sees it, at the size of its input."""

    brightness: float  # mean grey, 0 … 1
    contrast: float  # standard deviation of grey, 0 … 0.5
    sharpness: float  # standard deviation of grey's Laplacian, in units of the contrast


def photo_statistics(pixels: Tensor) -> PhotoStatistics:
    """Statistics of a photo (3, H, W) in 0 … 1.

    The variance of the Laplacian is a usual measure of focus (Pech-Pacheco et al., ICPR 2000). Divided by the contrast,
    it does not change with the lamp. It does depend on H × W: compare photos of one size only.

    >>> import torch
    >>> photo_statistics(torch.full((3, 8, 8), 0.25))
    PhotoStatistics(brightness=0.25, contrast=0.0, sharpness=0.0)
    """
    grey = np.tensordot(_GREY, pixels.numpy(), 1)
    contrast = float(grey.std())
    if contrast < 1e-6:  # no edge to judge the focus by
        return PhotoStatistics(float(grey.mean()), 0.0, 0.0)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE).std()) / contrast
    return PhotoStatistics(float(grey.mean()), contrast, sharpness)
