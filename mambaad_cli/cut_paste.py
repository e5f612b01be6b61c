"""Good features with pieces of others in them: what a decoder learns not to let through."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cut_paste(features: Sequence[Tensor], share: float = 0.7, most: int = 3, largest: float = 0.375) -> list[Tensor]:
    """Spoil a share of the images (b, c, h, w a stage): up to `most` rectangles come from other places and images.

    This is CutPaste (Li et al., CVPR 2021) on cached features instead of pixels. `largest` is a rectangle's longest
    side at most, in shares of the image's.
    """
    spoilt = [stage.clone() for stage in features]
    b = len(spoilt[0])
    for image in range(b):
        if torch.rand(()) >= share:
            continue
        for _ in range(int(torch.randint(1, most + 1, ()))):
            size, target, source = torch.rand(3, 2).unbind()
            other = int(torch.randint(b, ()))
            for stage, copy in zip(features, spoilt, strict=True):
                grid = torch.tensor(stage.shape[2:])
                sides = (size * largest * grid).round().clamp(min=1)
                (top, left), (from_top, from_left) = (
                    (place * (grid - sides)).round().int().tolist() for place in (target, source)
                )
                h, w = sides.int().tolist()
                piece = stage[other, :, from_top : from_top + h, from_left : from_left + w]
                copy[image, :, top : top + h, left : left + w] = piece
    return spoilt
