"""MambaAD (He et al., NeurIPS 2024, arXiv 2404.06564): a Half-FPN bottleneck and a Mamba decoder that reconstruct
the features of a frozen encoder. Where the reconstruction fails, the image is anomalous.

Between modules all tensors are channels last, (b, h, w, c), so that a product with a weight matrix reads contiguous
rows. Letters: b batch, h × w positions, c channels, d inner channels, k directions, n states, r rank of dt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambaad_cli import MambaADError
from mambaad_cli.model.anomaly_map import Residual, fuse, residuals
from mambaad_cli.model.kernels.depthwise import depthwise
from mambaad_cli.model.kernels.fused_norms import gated_norm, normed_silu
from mambaad_cli.model.kernels.linear_attention import gated_linear_attention
from mambaad_cli.model.kernels.selective_scan import selective_scan
from mambaad_cli.model.losses import LOSSES, cosine_distances
from mambaad_cli.model.scan_orders import directions as walks

MIN_STAGES = 2  # of the decoder, which reconstructs one scale less
HEAD = 16  # channels of a head of linear attention, or the largest divisor of both
MAX_BLOCKS = 1000  # of a decoder, which come from a model file; the paper's has 16


class HSSBlock(nn.Module):
    """Hybrid State Space block (section 3.3): x + DropPath(SS2D(LayerNorm(x))), (b, h, w, c) to the same.

    SS2D runs a selective scan over the grid in several `directions` of one scan `order`, each with projections and
    states of its own, then adds the results and gates them.
    """

    def __init__(self, channels: int, order: str, directions: int, drop_path: float = 0.0, states: int = 16) -> None:
        super().__init__()
        self.order, self.directions, self.drop_path, self.states = order, directions, drop_path, states
        inner = 2 * channels
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self._add_recurrence(inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self._initialise()

    def _add_recurrence(self, inner: int) -> None:
        """Its parameters, for `inner` channels."""
        rank = math.ceil(inner / 32)
        self.x_weight = nn.Parameter(torch.empty(self.directions, rank + 2 * self.states, inner))
        self.dt_weight = nn.Parameter(torch.empty(self.directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(self.directions, inner))
        self.A_log = nn.Parameter(torch.empty(self.directions, inner, self.states))
        self.D = nn.Parameter(torch.ones(self.directions, inner))

    def _initialise(self) -> None:
        """As in Mamba (section 3.6 there): softplus(dt_bias) log-uniform in 0.001 … 0.1."""
        if self.dt_bias.is_meta:
            return  # nothing holds numbers, and random ones would import torch._dynamo: a second
        nn.init.uniform_(self.x_weight, -(self.x_weight.shape[2] ** -0.5), self.x_weight.shape[2] ** -0.5)
        self._initialise_decay()
        with torch.no_grad():
            step = torch.exp(torch.rand_like(self.dt_bias) * math.log(0.1 / 0.001) + math.log(0.001))
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        for linear in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def _initialise_decay(self) -> None:
        """A = −1 … −n, and weights for dt."""
        rank = self.dt_weight.shape[2]
        nn.init.uniform_(self.dt_weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.A_log.copy_(torch.log(torch.arange(1, self.states + 1)).expand_as(self.A_log))

    def forward(self, x: Tensor) -> Tensor:
        return x + drop_path(self._ss2d(self.norm(x)), self.drop_path if self.training else 0.0)

    def _ss2d(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        for_scan, for_gate = self.in_proj.weight.chunk(2)  # two products, so that each result is contiguous
        u = F.silu(depthwise(F.linear(x, for_scan), self.conv.weight, self.conv.bias))
        selected = F.linear(u, self.x_weight.flatten(0, 1))
        order = _walks_on(x.device, self.order, h, w, self.directions)
        y = self._recur(u.flatten(1, 2), selected.view(b, h * w, self.directions, -1), order)
        gate = F.linear(x, for_gate)
        return self.out_proj(gated_norm(y.view_as(gate), gate, self.out_norm.weight, self.out_norm.bias))

    def _recur(self, u: Tensor, x: Tensor, order: Tensor) -> Tensor:
        """(b, l, d) inputs and (b, l, k, ·) what is selected by them, to (b, l, d)."""
        A = -torch.exp(self.A_log.float())
        return selective_scan(u, x, self.dt_weight, self.dt_bias, A, self.D, order)


class LinearAttentionBlock(HSSBlock):
    """The same with gated linear attention in place of the selective scan: one decay for each head of channels, the
    form of Mamba-2 (arXiv 2405.21060). Without a compiled scan it is faster, as in exported files."""

    def _add_recurrence(self, inner: int) -> None:
        heads = inner // math.gcd(inner, HEAD)
        self.x_weight = nn.Parameter(torch.empty(self.directions, heads + 2 * self.states, inner))
        self.dt_bias = nn.Parameter(torch.empty(self.directions, heads))
        self.A_log = nn.Parameter(torch.empty(self.directions, heads))
        self.D = nn.Parameter(torch.ones(self.directions, heads))

    def _initialise_decay(self) -> None:
        """A uniform in −16 … −1, as in Mamba-2."""
        with torch.no_grad():
            self.A_log.copy_(torch.log(1 + 15 * torch.rand_like(self.A_log)))

    def _recur(self, u: Tensor, x: Tensor, order: Tensor) -> Tensor:
        return gated_linear_attention(u, x, self.dt_bias, -torch.exp(self.A_log.float()), self.D, order)


BLOCKS = {"mamba": HSSBlock, "gla": LinearAttentionBlock}


class LocalBranch(nn.Module):
    """1×1 conv → depth-wise k×k conv → 1×1 conv, each with InstanceNorm and SiLU (section 3.2): (b, h, w, c)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.before = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.after = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = normed_silu(self.before(x))
        x = normed_silu(depthwise(x, self.depthwise.weight))
        return normed_silu(self.after(x))


class LSSModule(nn.Module):
    """Locality-Enhanced State Space module (section 3.2): HSS blocks in cascade for global context, and two
    convolutional branches beside them for local context. (b, h, w, c) to the same. Without local branches it is the
    cascade alone.

    With `recompute` training keeps only the input and computes the rest again in the backward pass.
    """

    recompute = False

    def __init__(
        self,
        channels: int,
        order: str,
        directions: int,
        drop_paths: Sequence[float],
        local_branches: bool = True,
        ssm: str = "mamba",
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(BLOCKS[ssm](channels, order, directions, rate) for rate in drop_paths))
        self.local = nn.ModuleList(LocalBranch(channels, kernel) for kernel in (5, 7) if local_branches)
        self.merge = nn.Linear(3 * channels, channels) if local_branches else None

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        whole = self.blocks(x)
        if self.merge is None:
            return whole
        return x + self.merge(torch.cat([whole, *(branch(x) for branch in self.local)], dim=-1))


class PatchExpand(nn.Module):
    """Twice the sides: each position's channels are spread over 2 × 2 positions, then LayerNorm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 4 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)
        nn.init.trunc_normal_(self.expand.weight, std=0.02)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(b, h, w, c) to (b, *size, out_channels); size is the finer grid's, at most 2h × 2w."""
        b, h, w, _ = x.shape
        x = self.expand(x).view(b, h, w, 2, 2, -1).transpose(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return self.norm(x[:, : size[0], : size[1]])


@dataclass(frozen=True)
class DecoderOptions:
    """What the decoder is made of."""

    depths: Sequence[int] = (3, 4, 6, 3)  # HSS blocks of the stages, coarse to fine; three leave out the finest scale
    order: str = "hilbert"  # sweep, scan, zorder, zigzag or hilbert
    directions: int = 8  # 2, 4, 8, or 6: the distinct ones of the 8 (only for hilbert and scan, see scan_orders.py)
    local_branches: bool = True  # False: a plain Mamba decoder
    ssm: str = "mamba"  # the recurrence along the walks: mamba, the selective scan, or gla, gated linear attention
    drop_path: float = 0.2  # of the first block; the rates fall linearly to 0


class MambaDecoder(nn.Module):
    """Stages of LSS modules from coarse to fine, with patch expansion between them (section 3.1)."""

    def __init__(self, channels: Sequence[int], options: DecoderOptions) -> None:
        super().__init__()
        blocks = sum(options.depths)
        if blocks > MAX_BLOCKS:
            raise MambaADError(f"a decoder of {blocks} blocks is too deep: at most {MAX_BLOCKS}")
        rates = iter(torch.linspace(options.drop_path, 0, blocks, device="cpu").tolist())
        if not MIN_STAGES <= len(options.depths) <= len(channels):
            raise MambaADError(f"no decoder of {len(options.depths)} stages: {MIN_STAGES} to {len(channels)}")
        channels = channels[: len(options.depths)]
        self.expands = nn.ModuleList(PatchExpand(c, finer) for c, finer in pairwise(channels))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_lss_module(c, options, list(islice(rates, size))) for size in module_depths(depth)))
            for c, depth in zip(channels, options.depths, strict=True)
        )

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(b, h, w, c) and the finer grids' sizes, coarse to fine, to one (b, h, w, c) for each of these."""
        x = self.stages[0](x)
        reconstructed = []
        for expand, stage, size in zip(self.expands, self.stages[1:], sizes, strict=True):
            x = stage(expand(x, size))
            reconstructed.append(x)
        return reconstructed


def _lss_module(channels: int, options: DecoderOptions, drop_paths: Sequence[float]) -> LSSModule:
    return LSSModule(channels, options.order, options.directions, drop_paths, options.local_branches, options.ssm)


class Bottleneck(nn.Module):
    """ResNet's bottleneck block: 1×1, 3×3 (with the stride), 1×1, each with batch norm, around a shortcut."""

    def __init__(self, channels: int, width: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.reduce = conv_norm(channels, width, 1)
        self.conv = conv_norm(width, width, 3, stride)
        self.expand = conv_norm(width, out_channels, 1)
        same = stride == 1 and channels == out_channels
        self.shortcut = nn.Identity() if same else conv_norm(channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.reduce(x))))
        return F.relu(self.expand(y) + self.shortcut(x))


class HalfFPN(nn.Module):
    """Merges three scales at the coarsest resolution, then halves that once more (section 3.1): (b, c, h, w) each."""

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.fine_down = conv_norm(fine, middle, 3, 2)
        self.middle_in = conv_norm(middle, middle, 1, bias=True)
        self.middle_down = conv_norm(middle, coarse, 3, 2)
        self.coarse_in = conv_norm(coarse, coarse, 1, bias=True)
        self.fuse = conv_norm(coarse, coarse, 1, bias=True)
        width = out_channels // 4
        self.blocks = nn.Sequential(
            Bottleneck(coarse, width, out_channels, stride=2),
            Bottleneck(out_channels, width, out_channels),
            Bottleneck(out_channels, width, out_channels),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, middle, coarse = features
        x = F.relu(self.fine_down(fine)) + F.relu(self.middle_in(middle))
        x = F.relu(self.middle_down(x)) + F.relu(self.coarse_in(coarse))
        return self.blocks(F.relu(self.fuse(x)))


class MambaAD(nn.Module):
    """The detector: reconstructs the encoder's features of strides 4, 8 and 16, or the coarser of them, from all three.

    channels: the encoder's, finest first; the decoder's are the same, with twice the coarsest before them. Stages of
    the decoder that are left out are the finest: most positions are theirs, and a map hardly needs them.
    loss: "mse" as in the paper; "cosine", what the map measures; "hard-cosine", with more weight on rare patterns.
    options: of the decoder, see DecoderOptions.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16)

    def __init__(self, channels: Sequence[int], loss: str = "mse", **options: Any) -> None:
        super().__init__()
        self.dropout = 0.0  # of the bottleneck's output in training: a choice of the recipe
        self.loss_function = LOSSES[loss]
        widths = [2 * channels[-1], *reversed(channels)]
        self.bottleneck = HalfFPN(channels, widths[0])
        self.decoder = MambaDecoder(widths, DecoderOptions(**options))

    @property
    def scales(self) -> int:
        """How many of the features it reconstructs."""
        return len(self.decoder.expands)

    def reconstructed(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of the features that it reconstructs, finest first."""
        return features[-self.scales :]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What it makes of the features that it reconstructs: the same shapes, finest first."""
        x = F.dropout(self.bottleneck(features), self.dropout, self.training).permute(0, 2, 3, 1)
        sizes = [(f.shape[2], f.shape[3]) for f in reversed(self.reconstructed(features))]
        return [y.permute(0, 3, 1, 2) for y in reversed(self.decoder(x, sizes))]

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        """Falls as good features are reconstructed better, from themselves or from the corrupted ones in `seen`."""
        return self.loss_function(self.reconstructed(features), self(features if seen is None else seen))

    def distances(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Cosine distance of the features from their reconstruction: (b, h, w) for each scale, 0 … 2."""
        return cosine_distances(self.reconstructed(features), self(features))

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """What it cannot reconstruct at each scale."""
        return residuals(self.reconstructed(features), self(features))

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(b, *size), higher where the image is less like what was learnt."""
        return fuse(self.distances(features), size)

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """AdamW as in section 4.1; weight decay applies to A_log as well."""
        return torch.optim.AdamW(self.parameters(), lr=lr or 0.005, betas=(0.9, 0.999), weight_decay=1e-4, fused=True)


@lru_cache(maxsize=64)
def _walks_on(device: torch.device, order: str, h: int, w: int, k: int) -> Tensor:
    """`directions` as a tensor on a device, made once per grid; a normal tensor, even if made in inference mode."""
    with torch.inference_mode(False):
        return torch.from_numpy(walks(order, h, w, k).copy()).to(device)


def module_depths(depth: int) -> list[int]:
    """How a stage's blocks are grouped into LSS modules: by threes, else by twos as in the paper; an odd one is alone.

    >>> module_depths(6), module_depths(4), module_depths(5), module_depths(1)
    ([3, 3], [2, 2], [2, 2, 1], [1])
    """
    size = 3 if depth % 3 == 0 else 2
    return [size] * (depth // size) + [1] * (depth % size)


def conv_norm(channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the size (except for its stride), followed by batch norm."""
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Leave out this path for a share `rate` of the images (Huang et al., ECCV 2016), keeping the mean."""
    if rate == 0.0:
        return x
    kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * kept / (1 - rate)
