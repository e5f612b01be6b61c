"""How a photo was taken, in a few numbers: they tell a dark lamp or a camera out of focus from a change of the part."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

KEPT = 200  # photos of a product whose statistics a model keeps
WIDER = 0.5  # of the range of good photos, on either side: what lies beyond it is unlike any of them
LEAST_RANGE = 0.02  # of the logarithms: good photos under one lamp hardly differ
DARKEST = 1e-3  # below it, logarithms say nothing
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class PhotoStatistics(NamedTuple):
    """Of a photo as the model sees it, at the size of its input. Earlier models keep the first three alone."""

    brightness: float  # mean grey, 0 … 1
    contrast: float  # standard deviation of grey, 0 … 0.5
    sharpness: float  # standard deviation of grey's Laplacian, in units of the contrast
    focus: float | None = None  # the Laplacian's standard deviation, in units of that at half the size
    left_right: float | None = None  # log of the brightness of the left half, in units of that of the right half
    top_bottom: float | None = None  # log of the brightness of the upper half, in units of that of the lower half


# What is said of a photo whose statistic lies below, or above, those of good photos
WORDS = {
    "brightness": ("darker than good photos", "brighter than good photos"),
    "contrast": ("of less contrast than good photos", "of more contrast than good photos"),
    "sharpness": ("less sharp than good photos", "sharper or noisier than good photos"),
    "focus": ("less sharp than good photos", "sharper or noisier than good photos"),
    "left_right": ("darker on its left than good photos", "darker on its right than good photos"),
    "top_bottom": ("darker at its top than good photos", "darker at its bottom than good photos"),
}


def photo_statistics(pixels: Tensor) -> PhotoStatistics:
    """Statistics of a photo (3, H, W) in 0 … 1.

    The variance of the Laplacian is a usual measure of focus (Pech-Pacheco et al., ICPR 2000). Divided by the contrast,
    it does not change with the lamp. It does depend on H × W: compare photos of one size only. Out of focus, a photo
    loses more at its full size than at half of it, whatever it shows.

    >>> import torch
    >>> photo_statistics(torch.full((3, 8, 8), 0.25))
    PhotoStatistics(brightness=0.25, contrast=0.0, sharpness=0.0, focus=0.0, left_right=0.0, top_bottom=0.0)
    """
    red, green, blue = (weight * channel for weight, channel in zip(_GREY, pixels.numpy(), strict=True))
    grey = red + green + blue  # not a product of matrices: the threads of its library would wait busily, on our cores
    brightness, contrast = float(grey.mean()), float(grey.std())
    height, width = (max(1, side // 2) for side in grey.shape)
    halves = _log_ratio(grey[:, :width], grey[:, width:]), _log_ratio(grey[:height], grey[height:])
    if contrast < 1e-6:  # no edge to judge the focus by
        return PhotoStatistics(brightness, 0.0, 0.0, 0.0, *halves)
    edges = _edges(grey)
    smaller = _edges(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))
    return PhotoStatistics(brightness, contrast, edges / contrast, edges / max(smaller, 1e-6), *halves)


def _edges(grey: np.ndarray) -> float:
    return float(cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE).std())


def _log_ratio(one: np.ndarray, other: np.ndarray) -> float:
    bright, beside = (float(half.mean()) if half.size else 0.0 for half in (one, other))
    return math.log((bright + DARKEST) / (beside + DARKEST))


def unlike(photo: PhotoStatistics, good: Sequence[PhotoStatistics]) -> str:
    """What about a photo no good photo of its product shows, in words; empty where it may be one of them.

    Each statistic may lie beyond the range of good photos by half of that range, by its logarithm.

    >>> good = [PhotoStatistics(0.4, 0.1, 0.5), PhotoStatistics(0.5, 0.1, 0.5)]
    >>> unlike(PhotoStatistics(0.45, 0.1, 0.5), good), unlike(PhotoStatistics(0.1, 0.1, 0.2), good)
    ('', 'darker than good photos, less sharp than good photos')
    """
    said: dict[str, None] = {}
    for name, (below, above) in WORDS.items():
        value, limits = _comparable(photo, name), _limits(tuple(good), name)
        if value is not None and limits is not None and not limits[0] <= value <= limits[1]:
            said[below if value < limits[0] else above] = None
    return ", ".join(said)


@lru_cache(maxsize=1024)  # asked for each photo that is scored
def _limits(good: tuple[PhotoStatistics, ...], name: str) -> tuple[float, float] | None:
    """Between which values a statistic of a photo is like that of good photos; None where it is not known of these."""
    values = [value for photo in good if (value := _comparable(photo, name)) is not None]
    if not values:
        return None
    room = WIDER * max(max(values) - min(values), LEAST_RANGE)
    return min(values) - room, max(values) + room


def _comparable(photo: PhotoStatistics, name: str) -> float | None:
    """A statistic whose differences mean the same everywhere; None of an earlier model."""
    value: float | None = getattr(photo, name)
    if value is None or name in ("left_right", "top_bottom"):
        return value
    return math.log(max(value, DARKEST))
