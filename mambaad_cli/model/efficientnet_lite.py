"""EfficientNet-lite, the default encoder's network, as far as stride 16: MBConv blocks (Tan & Le, ICML 2019) without
squeeze-and-excitation, and ReLU6.

Its tensors have timm's names. timm has this network as well, but importing timm takes longer than scoring an image.

Letters: b batch, H × W pixels, c channels, h × w positions of a stage.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32  # channels
# blocks, kernel, stride, expansion and channels of each stage of lite0
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
LAST = {2: 0, 4: 1, 8: 2, 16: 4}  # the last stage of each stride
# factors on the channels and the blocks of lite0
FACTORS = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
EPSILON = 1e-3  # of the batch norms; TensorFlow's


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding: ⌈side / stride⌉ positions come out."""

    def forward(self, x: Tensor) -> Tensor:
        paddings: list[int] = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            padding = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
            paddings += [padding // 2, padding - padding // 2]
        return F.conv2d(F.pad(x, paddings), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def conv(inputs: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(inputs, channels, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, groups=groups, bias=False)


class NormAct(nn.BatchNorm2d):
    """Batch norm, then ReLU6; `act` is what is left of it where the norm is folded into a convolution."""

    def __init__(self, channels: int, active: bool = True) -> None:
        super().__init__(channels, eps=EPSILON)
        self.act: nn.Module = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


class DepthwiseSeparable(nn.Module):
    """A depthwise convolution and a pointwise one: the block without expansion."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = conv(inputs, inputs, kernel, stride, groups=inputs), NormAct(inputs)
        self.conv_pw, self.bn2 = conv(inputs, channels), NormAct(channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection; what goes in is added where its shape is that of the result."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.conv_pw, self.bn1 = conv(inputs, wide), NormAct(wide)
        self.conv_dw, self.bn2 = conv(wide, wide, kernel, stride, groups=wide), NormAct(wide)
        self.conv_pwl, self.bn3 = conv(wide, channels), NormAct(channels, active=False)
        self.shortcut = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        wide = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        y: Tensor = self.bn3(self.conv_pwl(wide))
        return y + x if self.shortcut else y


def stages_of(name: str) -> list[tuple[int, int, int, int, int]]:
    """The stages of a network of `FACTORS`. The stem and the number of blocks of the first stage never grow.

    >>> [(blocks, channels) for blocks, *_, channels in stages_of("efficientnet_lite2")]
    [(1, 16), (3, 24), (3, 48), (4, 88), (4, 120)]
    """
    wider, deeper = FACTORS[name]
    grown = []
    for i, (blocks, kernel, stride, expansion, channels) in enumerate(STAGES):
        number = math.ceil(deeper * blocks) if i else blocks
        grown.append((number, kernel, stride, expansion, _in_eights(wider * channels)))
    return grown


def _in_eights(channels: float) -> int:
    """The multiple of eight next to a number of channels, but not below 0.9 of it."""
    nearest = int(channels + 4) // 8 * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


class EfficientNetLite(nn.Module):
    """(b, 3, H, W) to one (b, c, h, w) for each of some strides, finest first. `name` is one of `FACTORS`."""

    def __init__(self, name: str, strides: Sequence[int]) -> None:
        super().__init__()
        shapes = stages_of(name)
        self.taken = [LAST[stride] for stride in strides]
        self.channels = [shapes[stage][-1] for stage in self.taken]
        self.conv_stem, self.bn1 = conv(3, STEM, 3, 2), NormAct(STEM)
        stages, inputs = [], STEM
        for number, kernel, stride, expansion, channels in shapes[: max(self.taken) + 1]:
            blocks: list[nn.Module] = []
            for i in range(number):
                step = stride if i == 0 else 1
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(inputs, channels, kernel, step))
                else:
                    blocks.append(InvertedResidual(inputs, channels, kernel, step, expansion))
                inputs = channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(x))
        features = []
        for stage, blocks in enumerate(self.blocks):
            x = blocks(x)
            if stage in self.taken:
                features.append(x)
        return features
