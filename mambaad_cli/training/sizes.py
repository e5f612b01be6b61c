"""The size that the model sees each product at: a number of pixels in the product's own aspect."""

import math
from collections.abc import Sequence

import numpy as np

from mambaad_cli.data.images import ImageError, ImageFile, shape_of
from mambaad_cli.model.settings import STEP

LEAST = 64  # pixels a side
LOOKED_AT = 50  # images of a product that tell its aspect
WIDEST = 4.0  # the longest side in units of the shortest: beyond that, images are squeezed


def own_size(shapes: Sequence[tuple[int, int]], pixels: int, step: int = STEP) -> tuple[int, int]:
    """(height, width) of about so many pixels in the median aspect of images of these shapes (height, width).

    step: of the encoder, which both are multiples of.

    >>> own_size([(1240, 500)] * 3, 256 * 256), own_size([(300, 300)], 256 * 256), own_size([(9, 9)], 256 * 256, 14)
    ((400, 160), (256, 256), (252, 252))
    """
    aspect = float(np.median([width / height for height, width in shapes]))
    aspect = min(max(aspect, 1 / WIDEST), WIDEST)
    height = math.sqrt(pixels / aspect)
    return _rounded(height, step), _rounded(pixels / height, step)


def _rounded(side: float, step: int) -> int:
    return step * max(math.ceil(LEAST / step), round(side / step))


def shapes_of(files: Sequence[ImageFile], classes: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """(height, width) of some files of each class, from their headers. A class without a readable file is left out."""
    shapes_by_class = {}
    for name in dict.fromkeys(classes):
        of_class = [file for file, other in zip(files, classes, strict=True) if other == name]
        some = of_class[:: -(-len(of_class) // LOOKED_AT)]
        shapes = [shape for file in some if (shape := _shape(file)) is not None]
        if shapes:
            shapes_by_class[name] = shapes
    return shapes_by_class


def median_shape(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """
    >>> median_shape([(10, 20), (30, 40), (50, 60)])
    (30, 40)
    """
    height, width = np.median(np.array(shapes), axis=0)
    return round(float(height)), round(float(width))


def _shape(file: ImageFile) -> tuple[int, int] | None:
    try:
        return shape_of(file.path)
    except ImageError:
        return None
