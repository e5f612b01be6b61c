"""More to learn from than the good images show: moved views of them, and features spoilt for the decoder to mend.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, TURN, ZOOM = 0.15, 3.0, 0.25  # at most: share of a side, degrees, natural logarithm
NUDGE = 1 / 16  # at most: share of a side


def with_moved(pixels: Tensor, views: int, seed: int, flips: bool = False) -> list[Tensor]:
    """An image (c, H, W) and `views` less one moved views of it."""
    return [pixels, *(moved(pixels, views - 1, seed, flips) if views > 1 else ())]


def moved(pixels: Tensor, views: int, seed: int, flips: bool = False) -> Tensor:
    """An image (c, H, W) shifted, turned and scaled a little, at random: (views, c, H, W), mirrored at its border.

    So a decoder does not learn few images by heart: what stands where varies as it does between photos. With `flips`
    half the views are mirrored along each axis as well.
    """
    generator = torch.Generator().manual_seed(seed)
    shift, turn, zoom = (2 * torch.rand(views, n, generator=generator) - 1 for n in (2, 1, 1))
    angle, scale = turn[:, 0] * math.radians(TURN), torch.exp(zoom[:, 0] * ZOOM)
    height, width = pixels.shape[1:]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack([cos, -sin * height / width], 1), torch.stack([sin * width / height, cos], 1)]
    affine = torch.cat([torch.stack(rows, 1), 2 * SHIFT * shift[:, :, None]], 2)
    if flips:
        affine = affine * (1 - 2 * torch.randint(2, (views, 2, 1), generator=generator))
    grid = F.affine_grid(affine, [views, *pixels.shape], align_corners=False)
    whole = pixels.expand(views, -1, -1, -1)
    return F.grid_sample(whole, grid, padding_mode="reflection", align_corners=False)


def nudged(pixels: Tensor, seed: int) -> Tensor:
    """An image (c, H, W) shifted by whole pixels, as the next photo may be, at random: mirrored at its border."""
    generator = torch.Generator().manual_seed(seed)
    reach = [int(NUDGE * side) for side in pixels.shape[1:]]
    top, left = (int(torch.randint(2 * most + 1, (), generator=generator)) for most in reach)
    wider = F.pad(pixels, [reach[1], reach[1], reach[0], reach[0]], mode="reflect")
    return wider[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]


def cut_paste(features: Sequence[Tensor], share: float = 0.7, most: int = 3, largest: float = 0.375) -> list[Tensor]:
    """Spoil a share of the images (b, c, h, w a stage): up to `most` rectangles come from other places and images.

    This is CutPaste (Li et al., CVPR 2021) on cached features instead of pixels. `largest` is a rectangle's longest
    side at most, in shares of the image's.
    """
    spoilt = [stage.clone() for stage in features]
    b = len(spoilt[0])
    counts = torch.where(torch.rand(b) < share, torch.randint(1, most + 1, (b,)), 0).tolist()
    others = torch.randint(b, (b, most)).tolist()
    places = torch.rand(b, most, 6).tolist()  # shares: height, width, then top and left of the target and of the source
    for image, count in enumerate(counts):
        for other, (high, wide, *corners) in zip(others[image][:count], places[image][:count], strict=True):
            for stage, copy in zip(features, spoilt, strict=True):
                rows, columns = stage.shape[2:]
                h, w = max(1, round(high * largest * rows)), max(1, round(wide * largest * columns))
                top, from_top = (round(corner * (rows - h)) for corner in corners[::2])
                left, from_left = (round(corner * (columns - w)) for corner in corners[1::2])
                piece = stage[other, :, from_top : from_top + h, from_left : from_left + w]
                copy[image, :, top : top + h, left : left + w] = piece
    return spoilt
