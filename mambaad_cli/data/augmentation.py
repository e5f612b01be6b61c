"""Augmentation: randomly moved views of the good images, and corrupted features that the decoder learns to restore.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, TURN, ZOOM = 0.15, 3.0, 0.25  # largest shift (share of a side), rotation (degrees), log of the scale
NUDGE = 1 / 16  # largest shift by `nudged`, as a share of a side


def with_moved(pixels: Tensor, views: int, seed: int, flips: bool = False, turned: bool = False) -> list[Tensor]:
    """An image (c, H, W) itself, then `views` randomly moved views of it."""
    return [pixels, *(moved(pixels, views, seed, flips, turned) if views else ())]


def moved(pixels: Tensor, views: int, seed: int, flips: bool = False, turned: bool = False) -> Tensor:
    """Random views (views, c, H, W) of an image (c, H, W): slightly shifted, rotated and scaled, padded by reflection.

    They keep a decoder from overfitting to a few images: positions vary as they do between photos. With `flips` half of
    the views are also mirrored along each axis; with `turned` they are rotated by any angle. They are made where the
    image is, by random numbers of the CPU, which are the same on each device.
    """
    affine = moves((pixels.shape[1], pixels.shape[2]), views, seed, flips, turned)
    grid = F.affine_grid(affine.to(pixels), [views, *pixels.shape], align_corners=False)
    whole = pixels.expand(views, -1, -1, -1)
    return F.grid_sample(whole, grid, padding_mode="reflection", align_corners=False)


def moves(size: tuple[int, int], views: int, seed: int, flips: bool = False, turned: bool = False) -> Tensor:
    """How `moved` moves an image of `size` (H, W): (views, 2, 3), from the place in a view to that in the image.

    Places x, y count from −1 to 1 along each side.
    """
    generator = torch.Generator().manual_seed(seed)
    shift, turn, zoom = (2 * torch.rand(views, n, generator=generator) - 1 for n in (2, 1, 1))
    angle, scale = turn[:, 0] * math.radians(180 if turned else TURN), torch.exp(zoom[:, 0] * ZOOM)
    height, width = size
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack([cos, -sin * height / width], 1), torch.stack([sin * width / height, cos], 1)]
    affine = torch.cat([torch.stack(rows, 1), 2 * SHIFT * shift[:, :, None]], 2)
    if flips:
        affine = affine * (1 - 2 * torch.randint(2, (views, 2, 1), generator=generator))
    return affine


def before_moving(places: Tensor, move: Tensor) -> Tensor:
    """Where places (…, 2) of a moved view come from in its image: x, y in shares of width and height.

    move: (2, 3), one of `moves`. A place in the padding shows the reflection of another.

    >>> mirrored = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> before_moving(torch.tensor([0.25, 0.5]), mirrored).tolist()
    [0.75, 0.5]
    """
    found = (2 * places - 1) @ move[:, :2].T + move[:, 2]
    return ((found - 1) % 4 - 2).abs() / 2


def nudged(pixels: Tensor, seed: int) -> Tensor:
    """An image (c, H, W) randomly shifted by whole pixels, as the next photo may be, and padded by reflection."""
    generator = torch.Generator().manual_seed(seed)
    reach = [int(NUDGE * side) for side in pixels.shape[1:]]
    top, left = (int(torch.randint(2 * most + 1, (), generator=generator)) for most in reach)
    wider = F.pad(pixels, [reach[1], reach[1], reach[0], reach[0]], mode="reflect")
    return wider[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]


def cut_paste(features: Sequence[Tensor], share: float = 0.7, most: int = 3, largest: float = 0.375) -> list[Tensor]:
    """Corrupt the features of a share of the images: up to `most` rectangles are copied from other places and images.

    This is CutPaste (Li et al., CVPR 2021) on features instead of pixels. `features` holds one tensor (b, c, h, w) for
    each stage; the same rectangles are replaced in all stages. `largest` is the longest side that a rectangle may have,
    as a share of the image's. The decoder learns to restore the original features from the corrupted copies returned.
    """
    corrupted = [stage.clone() for stage in features]
    b = len(corrupted[0])
    counts = torch.where(torch.rand(b) < share, torch.randint(1, most + 1, (b,)), 0).tolist()
    others = torch.randint(b, (b, most)).tolist()
    places = torch.rand(b, most, 6).tolist()  # shares: height, width, then top and left of the target and of the source
    for image, count in enumerate(counts):
        for other, (high, wide, *corners) in zip(others[image][:count], places[image][:count], strict=True):
            for stage, copy in zip(features, corrupted, strict=True):
                rows, columns = stage.shape[2:]
                h, w = max(1, round(high * largest * rows)), max(1, round(wide * largest * columns))
                top, from_top = (round(corner * (rows - h)) for corner in corners[::2])
                left, from_left = (round(corner * (columns - w)) for corner in corners[1::2])
                piece = stage[other, :, from_top : from_top + h, from_left : from_left + w]
                copy[image, :, top : top + h, left : left + w] = piece
    return corrupted
