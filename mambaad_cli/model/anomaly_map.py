"""Pairs of feature maps -> loss, anomaly map, image score: why an image is anomalous.

Letters: b batch, c channels, h × w positions of a feature map, H × W pixels of the anomaly map.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = 4.0  # pixels; MambaAD, section 3.4
HARDEST = 4.0  # times an image's mean distance: the most that a position's weight in the loss grows to
SHRINKAGE = 0.01  # of the residuals' covariance towards a multiple of the identity
RIDGE = 0.001  # of the regression that tells hard places, relative to its inputs' mean square
HARD, MOST = 1.75, 4.0  # times the mean distance of good images: where a hard place begins, and the most it is forgiven


def cosine_distances(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> list[Tensor]:
    """1 − cosine similarity at each position, 0 (alike) … 2: for each pair of (b, c, h, w) one (b, h, w), float32."""
    return [1 - F.cosine_similarity(f.float(), r.float(), dim=1) for f, r in zip(features, rebuilt, strict=True)]


def mse_loss(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each scale, summed (MambaAD, section 3.4): the paper's loss."""
    return torch.stack([F.mse_loss(r.float(), f.float()) for f, r in zip(features, rebuilt, strict=True)]).sum()


def cosine_loss(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Mean cosine distance of each scale, summed: trains what the anomaly map measures."""
    return torch.stack([distance.mean() for distance in cosine_distances(features, rebuilt)]).sum()


def hard_cosine_loss(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Cosine distances weighted by themselves, so that the rare is learnt as well as the frequent; summed over scales.

    Positions that are rebuilt already pull no more (compare hard mining in Dinomaly, Guo et al., CVPR 2025). Weights
    are relative to the image's own mean: a batch's loss is the mean of its images'.
    """
    losses = []
    for distance in cosine_distances(features, rebuilt):
        weights = distance.detach() / distance.detach().mean((1, 2), keepdim=True).clamp(min=1e-12)
        weights = weights.clamp(max=HARDEST)
        weights = weights / weights.mean((1, 2), keepdim=True).clamp(min=1e-12)
        losses.append((distance * weights).mean())
    return torch.stack(losses).sum()


LOSSES = {"mse": mse_loss, "cosine": cosine_loss, "hard-cosine": hard_cosine_loss}


class Residual(NamedTuple):
    """What the decoder could not rebuild of one scale, and what it did."""

    difference: Tensor  # (b, h, w, c) of unit vectors: half its squared length is the cosine distance
    rebuilt: Tensor  # (b, h, w, c): unit vectors


class Normal(NamedTuple):
    """What the residuals of one scale are like on good images of one product, c channels."""

    mean: Tensor  # (c,)
    whitening: Tensor  # (c, c): the squared length of (difference − mean) @ whitening is its Mahalanobis distance
    hard: Tensor  # (c + 1,): weights and constant; log of the distance to expect where r is rebuilt, in units of HARD
    moments: Tensor  # (2,): mean and deviation of the distances


def residuals(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> list[Residual]:
    """The Residual of each pair of (b, c, h, w)."""
    units = [[F.normalize(f.float(), dim=1).permute(0, 2, 3, 1) for f in maps] for maps in (features, rebuilt)]
    return [Residual(f - r, r) for f, r in zip(*units, strict=True)]


def normal_of(parts: Iterable[Sequence[Residual]], forgive: bool = True) -> list[Normal]:
    """The Normal of each scale from the residuals of good images, a batch at a time; `forgive` what is hard on them."""
    scales = (zip(*batches, strict=True) for batches in zip(*parts, strict=True))
    whole = ((torch.cat([maps.flatten(0, 2) for maps in part]) for part in scale) for scale in scales)
    return [_normal(*pair, forgive=forgive) for pair in whole]


def _normal(difference: Tensor, rebuilt: Tensor, *, forgive: bool) -> Normal:
    """Of (positions, c) each."""
    mean = difference.mean(0)
    centred = difference - mean
    covariance = (centred.T @ centred).double() / len(centred)
    size = covariance.diagonal().mean().clamp(min=1e-12)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * torch.eye(len(mean)).to(covariance)
    whitening = torch.linalg.cholesky(torch.linalg.inv(covariance)).float()
    distance = (centred @ whitening).square().sum(-1)
    hard = _hard(rebuilt, distance) if forgive else torch.zeros(len(mean) + 1).to(mean)
    distance = distance / _forgiven(rebuilt, hard)
    return Normal(mean, whitening, hard, torch.stack([distance.mean(), distance.std().clamp(min=1e-6)]))


def _hard(rebuilt: Tensor, distance: Tensor) -> Tensor:
    """Ridge regression of log distance (positions,) on what was rebuilt there (positions, c): Normal.hard."""
    inputs = F.pad(rebuilt, (0, 1), value=1.0)
    gram = (inputs.T @ inputs).double()
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    wanted = inputs.T @ distance.clamp(min=1e-3).log()
    hard = torch.linalg.solve(gram, wanted.double()).float()
    hard[-1] -= (HARD * (inputs @ hard).exp().mean()).log()
    return hard


def _forgiven(rebuilt: Tensor, hard: Tensor) -> Tensor:
    """What the distances at hard places are divided by: 1 … MOST, of (…, c) rebuilt vectors."""
    return (rebuilt @ hard[:-1] + hard[-1]).clamp(0, math.log(MOST)).exp()


def unusual(residual: Sequence[Residual], normal: Sequence[Normal]) -> list[Tensor]:
    """How unusual each scale's residuals are for good images: (b, h, w) each, around 0.

    A Mahalanobis distance for the cosine distance: a direction in which good images vary counts for less, one in which
    they never do counts for more. Some places are hard to rebuild on good images too, a hole that the border cuts off
    for one: there the distance is divided by the one to expect (locally weighted residuals: Lei et al., JASA 2018),
    which what was rebuilt foretells. Each scale is then counted by how unusual it is (on rough surfaces the finest is
    grain that nothing can predict), and in proportion to its stride: what spoils a part is rarely one pixel wide.
    """
    maps = []
    for scale, (one, good) in enumerate(zip(residual, normal, strict=True)):
        distance = ((one.difference - good.mean) @ good.whitening).square().sum(-1) / _forgiven(one.rebuilt, good.hard)
        maps.append((distance - good.moments[0]) / good.moments[1] / 2 ** (len(normal) - 1 - scale))
    return maps


def fuse(distances: Sequence[Tensor], size: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """Sum the scales' (b, h, w) distances to one anomaly map (b, H, W).

    Each is upsampled bilinearly (align_corners=True), and the sum smoothed by a Gaussian of `sigma` pixels. Both are
    linear and separable, so one small matrix an axis does the two at once.
    """
    fused = torch.zeros((), device=distances[0].device)
    with torch.autocast(distances[0].device.type, enabled=False):
        for distance in distances:
            rows = _upsample_and_smooth(size[0], distance.shape[1], sigma).to(distance)
            columns = _upsample_and_smooth(size[1], distance.shape[2], sigma).to(distance)
            fused = fused + rows @ distance @ columns.T
    return fused


def image_score(anomaly_map: Tensor) -> Tensor:
    """The maximum of each (b, H, W) map: one number an image, (b,)."""
    return anomaly_map.flatten(1).amax(1)


@lru_cache(maxsize=64)
def _upsample_and_smooth(pixels: int, positions: int, sigma: float) -> Tensor:
    """(pixels, positions) matrix: linear interpolation with aligned corners, then the Gaussian."""
    with torch.inference_mode(False):  # a normal tensor, whoever asks first
        upsample = F.interpolate(torch.eye(positions)[None], size=pixels, mode="linear", align_corners=True)[0].T
        return (_gaussian(pixels, sigma) @ upsample.double()).float()


def _gaussian(pixels: int, sigma: float) -> Tensor:
    """(pixels, pixels) smoothing matrix: Gaussian cut off at 4 σ, the axis mirrored at its ends as scipy does.

    >>> _gaussian(3, 0.0).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if sigma == 0:
        return torch.eye(pixels, dtype=torch.double)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    folded = (torch.arange(pixels)[:, None] + offsets) % (2 * pixels)
    folded = torch.minimum(folded, 2 * pixels - 1 - folded)
    matrix = torch.zeros(pixels, pixels, dtype=torch.double)
    return matrix.scatter_add_(1, folded, weights.expand(pixels, -1))
