"""One block of EfficientNet-lite in one pass: a kernel (cpu_inverted.h), on the CPU alone.

Letters: b batch, h × w positions and c channels that go in; wide: channels after the expansion, narrow: that come out.
"""

import ctypes
import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli.model.kernels import cpu

PANEL = 16  # channels that lie together, as cpu.c has it
STEM_KERNEL, STEM_STRIDE = 3, 2


class Block(NamedTuple):
    """The weights of a block as the kernel takes them. The first block has the stem in place of the expansion."""

    stem: bool
    wide: int
    narrow: int
    kernel: int  # side of the depthwise convolution's filter
    stride: int  # of the depthwise convolution
    shortcut: bool
    tensors: dict[str, Tensor]


def packed(expand: nn.Conv2d, deepen: nn.Conv2d, project: nn.Conv2d, shortcut: bool) -> Block:
    """A block of three convolutions, whose batch norms are folded into them. `expand` of 3×3 is the stem.

    Raises ValueError where the kernel does not know its shape.
    """
    wide, narrow = deepen.out_channels, project.out_channels
    kernel, stride, stem = deepen.kernel_size[0], deepen.stride[0], expand.kernel_size[0] > 1
    if (
        wide % PANEL
        or narrow % 8
        or kernel not in (3, 5)
        or stride not in (1, 2)
        or (not stem and expand.in_channels % 8)
    ):
        raise ValueError(f"no kernel for a block of {expand.in_channels}, {wide} and {narrow} channels")
    weights = [conv.weight.detach().float() for conv in (expand, deepen, project)]
    biases = [conv.bias.detach().float() for conv in (expand, deepen, project) if conv.bias is not None]
    tensors = {
        "expand": _panels(weights[0].flatten(1)),
        "expand_bias": biases[0].contiguous(),
        "taps": weights[1].flatten(1).view(-1, PANEL, kernel * kernel).transpose(1, 2).contiguous(),
        "taps_bias": biases[1].contiguous(),
        "project": _panels(weights[2].flatten(1)),
        "project_bias": F.pad(biases[2], (0, -narrow % PANEL)).contiguous(),
    }
    return Block(stem, wide, narrow, kernel, stride, shortcut, tensors)


def _panels(weight: Tensor) -> Tensor:
    """A matrix (outputs, inputs) as (panels, inputs, PANEL), zeros behind the last output."""
    outputs, inputs = weight.shape
    padded = F.pad(weight, (0, 0, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, inputs).transpose(1, 2).contiguous()


def inverted_residual(block: Block, x: Tensor, normalise: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """x (b, h, w, c), contiguous float32, to the block's result (b, ⌈h / stride⌉, ⌈w / stride⌉, narrow).

    The block with the stem takes images (b, 3, H, W) and what they are normalised by: mean and 1 / deviation (3,).
    """
    tensors, numbers = {"x": x} | block.tensors, {}
    if block.stem:
        assert normalise is not None
        b, _, height, width = x.shape
        h, w, c = math.ceil(height / STEM_STRIDE), math.ceil(width / STEM_STRIDE), 3 * STEM_KERNEL**2
        top, left = (zeros_before(side, STEM_KERNEL, STEM_STRIDE) for side in (height, width))
        numbers = {"stem": 1, "stem_h": height, "stem_w": width, "stem_top": top, "stem_left": left}
        tensors |= {"mean": normalise[0], "scale": normalise[1]}
    else:
        b, h, w, c = x.shape
    rows, columns = math.ceil(h / block.stride), math.ceil(w / block.stride)
    tensors["y"] = x.new_empty(b, rows, columns, block.narrow)
    numbers |= {"b": b, "h": h, "w": w, "c": c, "wide": block.wide, "narrow": block.narrow, "size": block.kernel}
    numbers |= {"stride": block.stride, "rows": rows, "columns": columns, "shortcut": int(block.shortcut)}
    numbers |= {"top": zeros_before(h, block.kernel, block.stride), "left": zeros_before(w, block.kernel, block.stride)}
    cpu.call("mambaad_inverted", _Inverted, tensors, **numbers)
    return tensors["y"]


def zeros_before(side: int, kernel: int, stride: int) -> int:
    """TensorFlow's padding before the first position, of what gives ⌈side / stride⌉ positions.

    >>> zeros_before(256, 3, 2), zeros_before(255, 3, 2), zeros_before(32, 5, 1)
    (0, 1, 2)
    """
    return max(0, (math.ceil(side / stride) - 1) * stride + kernel - side) // 2


class _Inverted(ctypes.Structure):
    """struct Inverted of cpu.c."""

    _fields_ = cpu.fields(
        "b h w c wide narrow size stride top left rows columns shortcut stem stem_h stem_w stem_top stem_left bands",
        "x expand expand_bias taps taps_bias project project_bias mean scale y",
    )
