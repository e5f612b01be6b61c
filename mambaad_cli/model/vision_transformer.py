"""Feature maps of a vision transformer of timm: tokens after a few of its blocks, on the grids that detectors expect.

A convolutional network has finer maps at smaller strides. A transformer has one grid of tokens, a patch of pixels each,
from its first block to its last. What is taken as a finer stage is an earlier block, whose tokens are scaled to the
finer grid: it has more positions there, but nothing that is smaller than a patch.

Letters: b batch, H × W pixels, c channels, h × w tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli import MambaADError

COARSEST = 16  # the stride that is the coarsest of all detectors
# The share of the blocks after which a stage is taken. They are as far apart as the stages of a convolutional network;
# no others were compared.
TAKEN = {2: 1 / 8, 4: 1 / 4, 8: 1 / 2, 16: 3 / 4}


def is_transformer(getter: Any) -> bool:
    """Whether what timm returns with `features_only` is a transformer: it gives tokens, all on one grid."""
    return hasattr(getter, "model") and len(set(getter.feature_info.reduction())) == 1


def blocks_of(getter: Any) -> int:
    """How many blocks a whole transformer has."""
    return len(getter.model.feature_info)


def blocks_for(strides: Sequence[int], blocks: int) -> list[int]:
    """The block after which the tokens of each stage are taken.

    >>> blocks_for((4, 8, 16), 12), blocks_for((8, 16), 24)
    ([2, 5, 8], [11, 17])
    """
    return [max(0, round(TAKEN[stride] * blocks) - 1) for stride in strides]


def step_of(patch: int) -> int:
    """Pixels that one position of the coarsest stage covers: a patch, or as many small ones as 16 pixels have room for.

    >>> step_of(16), step_of(14), step_of(8)
    (16, 14, 16)
    """
    return patch * max(1, COARSEST // patch)


class TokenMaps(nn.Module):
    """A transformer cut after its last needed block: (b, 3, H, W) to one (b, c, h, w) for each of some strides.

    H and W are multiples of `step`. The coarsest stage has a position for each `step` pixels, and a stage of half the
    stride has twice as many along each side.
    """

    def __init__(self, getter: Any, strides: Sequence[int], taken: Sequence[int]) -> None:
        super().__init__()
        self.model = getter.model
        self.strides, self.taken = tuple(strides), tuple(taken)
        self.patch: int = getter.feature_info.reduction()[0]
        self.step = step_of(self.patch)
        self.channels: list[int] = [getter.feature_info.channels()[0]] * len(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        check_size((height, width), self.step)
        blocks = sorted(set(self.taken))
        tokens = self.model.forward_intermediates(images, indices=blocks, intermediates_only=True)
        stages = dict(zip(blocks, tokens, strict=True))
        rows, columns = height // self.step, width // self.step
        grids = [(rows * COARSEST // stride, columns * COARSEST // stride) for stride in self.strides]
        return [_at(normalised(stages[block]), grid) for block, grid in zip(self.taken, grids, strict=True)]


def check_size(size: tuple[int, int], step: int) -> None:
    """Raises MambaADError for a height and width that are not whole steps."""
    if size[0] % step or size[1] % step:
        near = [step * max(1, round(side / step)) for side in size]
        raise MambaADError(
            f"{size[1]}x{size[0]} pixels: this encoder takes sides that are multiples of {step}, "
            f"such as {near[1]}x{near[0]}"
        )


def normalised(tokens: Tensor) -> Tensor:
    """Tokens (b, c, h, w) with mean 0 and variance 1 over the channels of each: as the next block would begin."""
    return F.layer_norm(tokens.permute(0, 2, 3, 1).float(), [tokens.shape[1]]).permute(0, 3, 1, 2)


def _at(stage: Tensor, grid: tuple[int, int]) -> Tensor:
    """A stage (b, c, h, w) on a finer grid, between its tokens, or on a coarser one, their means."""
    if tuple(stage.shape[2:]) == grid:
        return stage
    if grid[0] < stage.shape[2]:
        return F.adaptive_avg_pool2d(stage, grid)
    return F.interpolate(stage, size=grid, mode="bilinear", align_corners=False)
