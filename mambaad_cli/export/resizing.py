"""Scaling by one matrix for each side: runtimes differ in how they scale images, but not in how they multiply.

Letters: n images, c channels, h × w positions or pixels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli.inspection.product import Size

ROUNDING = 1e-6  # a share of a half is not always exactly a half in a product of matrices


def scaled(stage: Tensor, size: Size) -> Tensor:
    """A stage or images (n, c, h, w) at a smaller size, as `Network.coarse_features` scales them."""
    rows, columns = (resizing_matrix(side, smaller) for side, smaller in zip(stage.shape[2:], size, strict=True))
    # as one row of planes: OpenVINO 2026 takes what is done to each channel afterwards for a part of the product
    return (rows @ stage.flatten(0, 1) @ columns.T).unflatten(0, (-1, stage.shape[1]))


def at_size(inside: Tensor, size: Size) -> Tensor:
    """Regions of interest (n, h, w) of bool at another size, as `loading.at_size`."""
    if tuple(inside.shape[1:]) == size:
        return inside
    rows, columns = (averaging_matrix(side, other) for side, other in zip(inside.shape[1:], size, strict=True))
    share = rows @ inside.float() @ columns.T
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5) - ROUNDING


@lru_cache(maxsize=64)
def averaging_matrix(side: int, size: int) -> Tensor:
    """(size, side): what averages a side as `F.adaptive_avg_pool2d` does.

    >>> averaging_matrix(5, 2).tolist()
    [[0.3333333432674408, 0.3333333432674408, 0.3333333432674408, 0.0, 0.0], \
[0.0, 0.0, 0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]
    """
    with torch.inference_mode(False):  # a normal tensor, even if the first caller is in inference mode
        return F.adaptive_avg_pool1d(torch.eye(side), size).T.contiguous()


@lru_cache(maxsize=64)
def resizing_matrix(side: int, smaller: int) -> Tensor:
    """(smaller, side): what scales a side as `F.interpolate` does, bilinear and antialiased.

    >>> resizing_matrix(4, 2).tolist()
    [[0.4285714328289032, 0.4285714328289032, 0.1428571492433548, 0.0], \
[0.0, 0.1428571492433548, 0.4285714328289032, 0.4285714328289032]]
    """
    with torch.inference_mode(False):
        eye = torch.eye(side)[None, None]
        return F.interpolate(eye, size=(smaller, side), mode="bilinear", antialias=True)[0, 0]
