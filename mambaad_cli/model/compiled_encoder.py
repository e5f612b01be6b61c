"""EfficientNet-lite on a CPU, a block a pass, by a kernel of our own: the same features but for rounding.

Letters: b batch, H × W pixels, c channels, h × w positions of a stage.
"""

from typing import Any

from torch import Tensor, nn

from mambaad_cli.model.efficientnet_lite import EfficientNetLite, InvertedResidual
from mambaad_cli.model.encoder import Encoder, SamePadded
from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.inverted_residual import Block, inverted_residual, packed


def suits(encoder: Encoder) -> bool:
    """Whether the kernel can run this encoder: an EfficientNet-lite, as the default is, on a CPU, with the kernel."""
    return isinstance(encoder.net, EfficientNetLite) and cpu.suit(encoder.mean)


class CompiledEncoder(Encoder):
    """A folded encoder (see `for_inference`) that the kernel runs; its weights are a copy, in the kernel's order."""

    def __init__(self, folded: Encoder) -> None:
        super().__init__(nn.Identity(), folded.channels, folded.mean.flatten().tolist(), folded.std.flatten().tolist())
        net: Any = folded.net
        self.normalise = self.mean.flatten(), 1 / self.std.flatten()
        self.stages: list[tuple[list[Block], bool]] = []  # its blocks, and whether its result is wanted
        first = net.blocks[0][0]
        stem = packed(_conv(net.conv_stem), _conv(first.conv_dw), _conv(first.conv_pw), shortcut=False)
        for place, blocks in enumerate(net.blocks):
            rest = [_packed(block) for block in blocks if isinstance(block, InvertedResidual)]
            self.stages.append(([stem, *rest] if place == 0 else rest, place in net.taken))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to one (b, c, h, w) a stage, channels last in memory."""
        x, found = images.float().contiguous(), []
        for blocks, wanted in self.stages:
            for block in blocks:
                x = inverted_residual(block, x, self.normalise)
            if wanted:
                found.append(x.permute(0, 3, 1, 2))
        return found


def _conv(layer: Any) -> nn.Conv2d:
    conv: nn.Conv2d = layer.conv if isinstance(layer, SamePadded) else layer
    return conv


def _packed(block: Any) -> Block:
    return packed(_conv(block.conv_pw), _conv(block.conv_dw), _conv(block.conv_pwl), block.shortcut)
