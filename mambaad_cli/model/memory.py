"""A memory of good patches: how far a patch lies from the nearest ones that good images showed.

After PatchCore (Roth et al., CVPR 2022): features of two strides, averaged over 3×3 positions, and a k-centre coreset
of them. Here they are whitened, a distance is counted in units of the distance between neighbours in the memory there,
and of the distance that good images have at that position of the image.

Letters: b batch, c channels, h × w positions of the finer stage, m patches of the memory, p positions.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli.model.anomaly_map import Residual, fuse
from mambaad_cli.model.kernels.nearest import nearest_distances
from mambaad_cli.model.precision import exact_float32
from mambaad_cli.model.quantised import restored, stored

PATCH_SHRINKAGE = 0.01  # of the patches' covariance, towards a multiple of the identity
PROJECTED = 48  # dimensions of the random projection in which the coreset is chosen
NEIGHBOURS = 5  # nearest patches whose distances are averaged
SPACING_NEIGHBOURS = 3  # nearest other patches of the memory, whose mean distance is a patch's spacing
PRIOR = 4.0  # images that the mean over all positions counts as, beside those seen at a position
FEWEST, POSITIONS = 8, 16  # images, and positions in a group, that tell how distances depend on the position
BINS, UPPER = 8, 0.98  # groups of positions by their mean distance, and the share of distances below the upper ones


class Memory(NamedTuple):
    """Good patches of one product, c channels, as one look at it shows them."""

    mean: Tensor  # (c,)
    whitening: Tensor  # (c, c)
    patches: Tensor  # (m, c), whitened
    spacing: Tensor  # (m,): mean distance to the nearest other patches, in units of its mean over the memory
    expected: Tensor  # (h, w): distance that good images have at each position


def patches_of(features: Sequence[Tensor]) -> Tensor:
    """Patches (b, h, w, c) at the middle stage of an encoder's features, with the coarsest stage beside it.

    features: one (b, c, h, w) a stage, finest first; the last two are used, each averaged over 3×3 positions.
    """
    fine, coarse = (_averaged(stage) for stage in features[-2:])
    coarse = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([fine, coarse], dim=1).permute(0, 2, 3, 1)


def close_patches(features: Sequence[Tensor], binomial: bool = False) -> Tensor:
    """Patches (b, c, h, w) at the coarsest stage, with the stage before it: what a close look remembers.

    A quarter of the positions is enough, because an object covers more of them in larger images. With `binomial`
    weights a patch depends less on its neighbours, and shows smaller defects.
    """
    fine, coarse = (_binomial(stage) if binomial else _averaged(stage) for stage in features[-2:])
    return torch.cat([F.adaptive_avg_pool2d(fine, (coarse.shape[2], coarse.shape[3])), coarse], dim=1)


def _averaged(stage: Tensor) -> Tensor:
    return F.avg_pool2d(stage.float(), 3, 1, 1, count_include_pad=False)


def _binomial(stage: Tensor) -> Tensor:
    """The mean over 3×3 positions with the weights 1, 2, 1 along each side: two means over 2×2."""
    return F.avg_pool2d(F.avg_pool2d(stage.float(), 2, 1, 1, count_include_pad=False), 2, 1)


def looks_of(features: Sequence[Tensor], two: bool) -> list[Tensor]:
    """The patches (b, h, w, c) of each look: of the last two stages, or, where the last one holds those of a close
    look, of the two before it and these."""
    return [patches_of(features[:-1]), features[-1].permute(0, 2, 3, 1)] if two else [patches_of(features)]


def whitening_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (c,) and whitening (c, c) of patches (p, c), by their principal components."""
    mean = patches.mean(0)
    covariance = torch.cov((patches - mean).T.double())
    size = covariance.diagonal().mean().clamp(min=1e-12)
    covariance = (1 - PATCH_SHRINKAGE) * covariance + PATCH_SHRINKAGE * size * torch.eye(len(covariance)).to(covariance)
    variances, directions = torch.linalg.eigh(covariance)
    return mean, (directions / variances.sqrt()).float()


def k_centre(patches: Tensor, size: int, seed: int) -> Tensor:
    """Indices of a coreset of patches (p, c): each next one is the farthest from those before (Gonzalez, 1985).

    Distances are those of a random projection to few dimensions (Johnson & Lindenstrauss, 1984).
    """
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(patches.shape[1], PROJECTED, generator=generator) / math.sqrt(PROJECTED)
    with exact_float32(patches.device):
        points = patches @ projection.to(patches)
        lengths = points.square().sum(1)
        nearest = torch.full((len(points),), math.inf).to(points)
        # the indices stay on the device until all are known: to read each of them would make a GPU wait each time
        chosen = [torch.randint(len(points), (1,), generator=generator).to(points.device)]
        for _ in range(min(size, len(points)) - 1):
            last = points.index_select(0, chosen[-1])[0]
            nearest = torch.minimum(nearest, lengths - 2 * (points @ last) + last @ last)
            chosen.append(nearest.argmax(0, keepdim=True))
    return torch.cat(chosen).cpu()


def memory_of(patches: Tensor, size: int, seed: int) -> tuple[Memory, Tensor]:
    """A memory of at most `size` of the patches (p, c), nothing expected yet, and which ones these are."""
    mean, whitening = whitening_of(patches)
    with exact_float32(patches.device):
        white = (patches - mean) @ whitening
    chosen = k_centre(white, size, seed)
    kept = restored(*stored(white[chosen]))
    return Memory(mean, whitening, kept, spacing_of(kept), torch.ones(1, 1).to(kept)), chosen


def spacing_of(patches: Tensor) -> Tensor:
    """Mean distance of each patch (m, c) to the nearest other ones, in units of its mean over all: (m,)."""
    if len(patches) == 1:
        return torch.ones(1).to(patches)
    with exact_float32(patches.device):
        between = torch.cdist(patches, patches)
    nearest = between.topk(min(SPACING_NEIGHBOURS + 1, len(patches)), dim=1, largest=False).values
    spacing = nearest[:, 1:].mean(1)
    return (spacing / spacing.mean().clamp(min=1e-12)).clamp(min=1e-3)


def distances(memory: Memory, patches: Tensor) -> Tensor:
    """Distance of each patch (b, h, w, c) from the nearest ones in the memory, in units of their spacing: (b, h, w)."""
    with exact_float32(patches.device):
        white = ((patches - memory.mean) @ memory.whitening).flatten(0, 2)
        nearest = nearest_distances(white, memory.patches, memory.spacing, NEIGHBOURS)
    return nearest.view(patches.shape[:3])


def expected_distances(good: Tensor, power: float = 1.0) -> Tensor:
    """What distances are divided by at each position (h, w), from distances (n, h, w) of good images that are not in a
    memory.

    It is the mean over a position and its neighbours, E. Where images are few, it is drawn towards the mean over all
    positions. A power of 1 divides by E alone, 0 by the same everywhere: E^power · mean(E)^(1 − power).
    """
    overall = good.mean()
    wider = F.pad(good.mean(0)[None, None], (1, 1, 1, 1), mode="replicate")
    local = F.avg_pool2d(wider, 3, 1)[0, 0]
    expected = (len(good) * local + PRIOR * overall) / (len(good) + PRIOR)
    return expected**power * overall ** (1 - power)


def power_of_positions(good: Tensor, counting: Tensor | None = None) -> float:
    """How much the position of a patch says of the distance that good images have there: −1 … 1.

    The upper distances at positions of a mean distance E grow like E^s. On a board, where an edge is always hard, s is
    about 2: to divide by E takes the false alarms there away. Where parts lie anywhere, s is below 1: what is hard on
    average has no heavier tail, and to divide by E would hide the defects of the part. The power is s − 1.

    good: distances (n, h, w) of good images that are not in a memory; positions are sorted by the mean of one half of
    them, and the upper distances are those of the other half. counting: (h, w) bool, positions that count.
    """
    values = good[:, 1:-1, 1:-1].flatten(1)
    if counting is not None:
        values = values[:, counting[1:-1, 1:-1].flatten()]
    if len(good) < FEWEST or values.shape[1] < POSITIONS * BINS:
        return 1.0
    slopes = [_growth(values[::2], values[1::2]), _growth(values[1::2], values[::2])]
    return min(1.0, max(-1.0, sum(slopes) / 2 - 1))


def _growth(sorted_by: Tensor, measured: Tensor) -> float:
    """The slope of the log of the upper distances on the log of the mean, over groups of positions (n, p) each."""
    bins = sorted_by.mean(0).argsort().tensor_split(BINS)
    means = torch.stack([measured[:, some].mean() for some in bins]).clamp(min=1e-12).log().double()
    upper = torch.stack([_quantile(measured[:, some], UPPER) for some in bins]).clamp(min=1e-12).log().double()
    centred = means - means.mean()
    return float((centred * upper).sum() / centred.square().sum().clamp(min=1e-12))


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value that a share of them does not exceed; torch.quantile takes at most 16 million values."""
    flat = values.flatten()
    return flat.kthvalue(max(1, math.ceil(share * len(flat)))).values


def unusual_patches(memory: Memory, patches: Tensor) -> Tensor:
    """How unusual each patch (b, h, w, c) is: its distance in units of the expected one, (b, h, w).

    The outermost positions take the values of their neighbours: there the encoder sees its own padding.
    """
    measured, expected = distances(memory, patches), memory.expected
    if expected.shape != measured.shape[1:]:  # another size than that of fit
        expected = F.interpolate(expected[None, None], size=measured.shape[1:], mode="bilinear")[0, 0]
    return without_border(measured / expected)


def fuse_looks(unusual: Sequence[Tensor], size: tuple[int, int], far_weight: float, sigma: float) -> Tensor:
    """What all looks find, (b, h, w) each, as one map (b, *size), smoothed by a Gaussian of `sigma` pixels.

    Of two looks the far one comes first, and counts by its weight.
    """
    weighted = [far_weight * unusual[0], *unusual[1:]] if len(unusual) > 1 else unusual
    return fuse(weighted, size, sigma)


def without_border(maps: Tensor) -> Tensor:
    """Maps (b, h, w) whose outermost values are those of their neighbours inside."""
    if min(maps.shape[1:]) < 3:
        return maps
    return F.pad(maps[:, None, 1:-1, 1:-1], (1, 1, 1, 1), mode="replicate")[:, 0]


class PatchMemory(nn.Module):
    """The detector without a network: images are compared with a memory alone, and nothing is trained.

    channels: of the encoder's maps at strides 8 and 16.
    """

    strides: ClassVar[tuple[int, ...]] = (8, 16)
    scales = 0

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        raise NotImplementedError("a memory is not trained")

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Zeros (b, *size): before a memory is there, nothing is unusual."""
        return features[0].new_zeros(len(features[0]), *size)

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """None: it reconstructs nothing."""
        return []

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        raise NotImplementedError("a memory is not trained")
