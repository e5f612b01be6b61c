"""RD4AD, a baseline: "Anomaly Detection via Reverse Distillation from One-Class Embedding" (Deng & Li, CVPR 2022).

Letters: b batch, c channels, h × w positions of a feature map, H × W pixels of the anomaly map.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli.model.anomaly_map import Residual, fuse, residuals
from mambaad_cli.model.losses import cosine_distances

Block: TypeAlias = Literal["basic", "bottleneck", "wide"]
Resample: TypeAlias = Literal["down", "same", "up"]

# The encoders of the paper by their channels, with the blocks they are made of. Both end a stage in ReLU.
RESNETS: dict[tuple[int, ...], Block] = {(64, 128, 256): "basic", (256, 512, 1024): "wide"}
EXPANSION = 4  # a bottleneck block's output channels over its planes
DEPTHS = (3, 4, 6)  # blocks of the decoder at strides 16, 8, 4: in this order they give the published 80.6 M


class ResidualBlock(nn.Module):
    """A ResNet block, (b, c_in, h, w) -> (b, c_out, …); the 3×3 convolution (2×2 transposed for "up") changes the size.

    With `width` it is a bottleneck block of that inner width; without, a basic block of two convolutions. A decoder's
    features may have both signs: `relu=False` leaves out the ReLU that ends the block.
    """

    def __init__(
        self, c_in: int, c_out: int, width: int | None = None, resample: Resample = "same", relu: bool = True
    ) -> None:
        super().__init__()
        if width is None:
            convs = [_spatial(c_in, c_out, resample), _spatial(c_out, c_out)]
        else:
            convs = [nn.Conv2d(c_in, width, 1, bias=False), _spatial(width, width, resample)]
            convs += [nn.Conv2d(width, c_out, 1, bias=False)]
        layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Identity() if (c_in, resample) == (c_out, "same") else _shortcut(c_in, c_out, resample)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(x) + self.shortcut(x)
        return F.relu(x) if self.relu else x


class MultiScaleFusion(nn.Module):
    """Brings three maps to the size of the coarsest by stride-2 convolutions and stacks them: (b, 3·c3, h3, w3)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        c1, c2, c3 = channels
        self.fine_to_middle = _conv_bn_relu(c1, c2)
        self.fine_to_coarse = _conv_bn_relu(c2, c3)
        self.middle_to_coarse = _conv_bn_relu(c2, c3)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, middle, coarse = features
        size = coarse.shape[-2:]
        fine = self.fine_to_coarse(self.fine_to_middle(fine))
        return torch.cat([fit_size(fine, size), fit_size(self.middle_to_coarse(middle), size), coarse], dim=1)


class ReverseDistillation(nn.Module):
    """RD4AD: a decoder reconstructs the encoder's features from a one-class embedding that has no room for anomalies.

    channels: of the encoder's maps at strides 4, 8, 16.
    bottleneck_width: width per group of 64 planes in the embedding's bottleneck blocks. 64 is what benchmarks print as
        RD4AD (80.6 M parameters with WideResNet50-2), 128 what its authors trained (108.7 M). Not used by basic blocks.
    block: "basic" as in ResNet18/34, "bottleneck" as in ResNet50, "wide" as in WideResNet50-2. By default it is
        the encoder's own for the channels of ResNet34 and WideResNet50-2, and "basic" for all others. These two
        encoders end a stage in ReLU, and so does their decoder. For other encoders the decoder's stages end without
        ReLU, since features may be negative.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16)
    scales = 3

    def __init__(self, channels: Sequence[int], bottleneck_width: int = 64, block: Block | None = None) -> None:
        super().__init__()
        c1, c2, c3 = channels
        resnet = RESNETS.get((c1, c2, c3))
        block = block or resnet or "basic"
        decoder_width = 128 if block == "wide" else 64
        self.fusion = MultiScaleFusion(channels)
        self.embedding = _stage(3 * c3, 2 * c3, 3, _width(block, 2 * c3, bottleneck_width), "down")
        self.decoder = nn.ModuleList(
            _stage(c_in, c_out, depth, _width(block, c_out, decoder_width), "up", relu=resnet is not None)
            for c_in, c_out, depth in zip((2 * c3, c3, c2), (c3, c2, c1), DEPTHS, strict=True)
        )
        self.apply(_initialise)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features reconstructed from the embedding: maps of the same shapes, finest first."""
        x = self.embedding(self.fusion(features))
        reconstructed = []
        for stage, feature in zip(self.decoder, reversed(features), strict=True):
            x = fit_size(stage(x), feature.shape[-2:])
            reconstructed.append(x)
        return reconstructed[::-1]

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        """1 − cosine similarity of the flattened maps: mean over the batch, summed over the scales."""
        pairs = zip(features, self(features if seen is None else seen), strict=True)
        return torch.stack([1 - F.cosine_similarity(f.flatten(1), r.flatten(1)).mean() for f, r in pairs]).sum()

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """1 − cosine similarity per position, upsampled to `size` pixels, summed and smoothed: (b, H, W), 0 … 6."""
        return fuse(cosine_distances(features, self(features)), size)

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """What it cannot reconstruct, one Residual per scale."""
        return residuals(features, self(features))

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """The paper's: Adam, learning rate 0.005 unless given."""
        return torch.optim.Adam(self.parameters(), lr=0.005 if lr is None else lr, betas=(0.5, 0.999))


def fit_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Make (b, c, …, …) exactly `size` at its bottom and right: crop, or repeat the last row and column.

    Where a stride does not divide a side, maps of the encoder differ by one position: 13 rows halved are 7, doubled 14.

    >>> fit_size(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), (1, 3)).tolist()
    [[[[1.0, 2.0, 2.0]]]]
    """
    rows, columns = size[0] - x.shape[2], size[1] - x.shape[3]
    return x if rows == columns == 0 else F.pad(x, (0, columns, 0, rows), mode="replicate")


def _stage(
    c_in: int, c_out: int, depth: int, width: int | None, resample: Resample, relu: bool = True
) -> nn.Sequential:
    """`depth` blocks, of which the first changes the size and the last may end without ReLU."""
    first = ResidualBlock(c_in, c_out, width, resample)
    middle = [ResidualBlock(c_out, c_out, width) for _ in range(depth - 2)]
    return nn.Sequential(first, *middle, ResidualBlock(c_out, c_out, width, relu=relu))


def _width(block: Block, c_out: int, width_per_group: int) -> int | None:
    """Inner width of a bottleneck block with `c_out` output channels; None for a basic block."""
    return None if block == "basic" else max(1, c_out // EXPANSION * width_per_group // 64)


def _spatial(c_in: int, c_out: int, resample: Resample = "same") -> nn.Conv2d | nn.ConvTranspose2d:
    """The convolution of a block that sees neighbouring positions and changes the size."""
    if resample == "up":
        return nn.ConvTranspose2d(c_in, c_out, 2, stride=2, bias=False)
    return nn.Conv2d(c_in, c_out, 3, stride=2 if resample == "down" else 1, padding=1, bias=False)


def _shortcut(c_in: int, c_out: int, resample: Resample) -> nn.Sequential:
    """The projection beside a block whose input and output differ in shape."""
    if resample == "up":
        return nn.Sequential(_spatial(c_in, c_out, "up"), nn.BatchNorm2d(c_out))
    pointwise = nn.Conv2d(c_in, c_out, 1, stride=2 if resample == "down" else 1, bias=False)
    return nn.Sequential(pointwise, nn.BatchNorm2d(c_out))


def _conv_bn_relu(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(_spatial(c_in, c_out, "down"), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
