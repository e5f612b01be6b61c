"""Residuals of a reconstruction -> anomaly map, image score: why an image is anomalous.

Letters: b batch, c channels, h × w positions of a feature map, H × W pixels of the anomaly map.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli.model.precision import exact_float32

MAP_SIGMA = 4.0  # pixels; MambaAD, section 3.4
WIDE = 3 / 64  # sigma of the surroundings that a value is compared with, in units of the root of H · W
RESIDUAL_SHRINKAGE = 0.01  # of the covariance of the residuals, towards a multiple of the identity
RIDGE = 0.001  # of the regression that predicts distances, relative to the mean square of its inputs
# Where more than HARD times the mean distance of good images is expected, distances are divided by at most MAX_DIVISOR.
HARD, MAX_DIVISOR = 1.75, 4.0


class Residual(NamedTuple):
    """What the decoder could not reconstruct at one scale, and its reconstruction."""

    difference: Tensor  # (b, h, w, c) of unit vectors: half its squared length is the cosine distance
    reconstructed: Tensor  # (b, h, w, c): unit vectors


class ResidualStatistics(NamedTuple):
    """What the residuals of one scale, of c channels, are like on good images of one product."""

    mean: Tensor  # (c,)
    whitening: Tensor  # (c, c): the squared length of (difference − mean) @ whitening is its Mahalanobis distance
    expected: Tensor  # (c + 1,): weights and constant; they predict the log of the distance to expect
    moments: Tensor  # (2,): mean and standard deviation of the distances


def residuals(features: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> list[Residual]:
    """The Residual of each pair of (b, c, h, w)."""
    units = [[F.normalize(f.float(), dim=1).permute(0, 2, 3, 1) for f in maps] for maps in (features, reconstructed)]
    return [Residual(f - r, r) for f, r in zip(*units, strict=True)]


def residual_statistics(
    batches: Callable[[], Iterable[Sequence[Residual]]], predict_distance: bool = True
) -> list[ResidualStatistics]:
    """The statistics of each scale from the residuals of good images.

    `batches` gives these residuals one batch at a time. It is called three times, so memory holds one batch and
    one or two numbers per position. With `predict_distance` each distance is divided by its expected value.
    """
    first: list[_Moments] = []
    for batch in batches():
        first = first or [_Moments() for _ in batch]
        for moments, residual in zip(first, batch, strict=True):
            moments.add(residual.difference.flatten(0, 2))
    whitened = [moments.whitening() for moments in first]
    second = [_Regression() for _ in whitened]
    for batch in batches():
        for regression, residual, (mean, whitening) in zip(second, batch, whitened, strict=True):
            distances = _mahalanobis(residual.difference, mean, whitening)
            regression.add(residual.reconstructed.flatten(0, 2), distances.flatten())
    if not predict_distance:
        return [_statistics(*white, None, regression) for white, regression in zip(whitened, second, strict=True)]
    weights = [regression.weights() for regression in second]
    for batch in batches():
        for regression, residual, scale_weights in zip(second, batch, weights, strict=True):
            regression.predict(residual.reconstructed.flatten(0, 2), scale_weights)
    scales = zip(whitened, weights, second, strict=True)
    return [_statistics(*white, scale_weights, regression) for white, scale_weights, regression in scales]


class _Moments:
    """Count, sum and sum of outer products of vectors (positions, c), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.outer = torch.zeros((), dtype=torch.double)

    def add(self, vectors: Tensor) -> None:
        vectors = vectors.double()
        self.count += len(vectors)
        self.total = self.total.to(vectors.device) + vectors.sum(0)
        self.outer = self.outer.to(vectors.device) + vectors.T @ vectors

    def whitening(self) -> tuple[Tensor, Tensor]:
        """Mean (c,) and whitening (c, c) of all vectors, float32."""
        mean = self.total / self.count
        covariance = self.outer / self.count - torch.outer(mean, mean)
        size = covariance.diagonal().mean().clamp(min=1e-12)
        covariance = (1 - RESIDUAL_SHRINKAGE) * covariance + RESIDUAL_SHRINKAGE * size * torch.eye(len(mean)).to(
            covariance
        )
        return mean.float(), torch.linalg.cholesky(torch.linalg.inv(covariance)).float()


class _Regression:
    """Ridge regression of the log distance on the reconstructed vector, in float64. It keeps the distances."""

    def __init__(self) -> None:
        self.gram = self.target = torch.zeros((), dtype=torch.double)
        self.distances: list[Tensor] = []
        self.predicted: list[Tensor] = []  # log of the expected distance at each of them

    def add(self, reconstructed: Tensor, distances: Tensor) -> None:
        """Reconstructed vectors (positions, c) with their distances (positions,)."""
        inputs = F.pad(reconstructed, (0, 1), value=1.0).double()
        self.gram = self.gram.to(inputs.device) + inputs.T @ inputs
        self.target = self.target.to(inputs.device) + inputs.T @ distances.clamp(min=1e-3).log().double()
        self.distances.append(distances)

    def weights(self) -> Tensor:
        """(c + 1,): weights and constant."""
        ridge = RIDGE * self.gram.diagonal().mean() * torch.eye(len(self.gram)).to(self.gram)
        return torch.linalg.solve(self.gram + ridge, self.target).float()

    def predict(self, reconstructed: Tensor, weights: Tensor) -> None:
        with exact_float32(reconstructed.device):
            self.predicted.append(reconstructed @ weights[:-1] + weights[-1])


def _statistics(mean: Tensor, whitening: Tensor, weights: Tensor | None, regression: _Regression) -> ResidualStatistics:
    """The statistics of one scale. Without `weights` no distance is divided."""
    distance = torch.cat(regression.distances)
    if weights is None:
        expected = torch.zeros(len(mean) + 1).to(mean)
    else:
        log = torch.cat(regression.predicted)
        shift = (HARD * log.exp().double().mean()).log().float()
        expected = torch.cat([weights[:-1], weights[-1:] - shift])
        distance = distance / (log - shift).clamp(0, math.log(MAX_DIVISOR)).exp()
    moments = distance.double().mean(), distance.double().std().clamp(min=1e-6)
    return ResidualStatistics(mean, whitening, expected, torch.stack(moments).float())


def _mahalanobis(difference: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Squared Mahalanobis distance of each vector (…, c): (…)."""
    with exact_float32(difference.device):
        return ((difference - mean) @ whitening).square().sum(-1)


def _expected(reconstructed: Tensor, expected: Tensor) -> Tensor:
    """What the distances at (…, c) reconstructed vectors are divided by: 1 … MAX_DIVISOR."""
    with exact_float32(reconstructed.device):
        return (reconstructed @ expected[:-1] + expected[-1]).clamp(0.0, math.log(MAX_DIVISOR)).exp()


def standardised_distances(residuals: Sequence[Residual], good: Sequence[ResidualStatistics]) -> list[Tensor]:
    """How unusual the residuals of each scale are for good images: (b, h, w) each, around 0.

    The Mahalanobis distance replaces the cosine distance: a direction in which good images vary counts for less, one in
    which they do not vary counts for more. Some places are hard to reconstruct on good images too, such as a hole that
    the border cuts off. There the distance is divided by its expected value, predicted from the reconstructed feature
    (locally weighted residuals: Lei et al., JASA 2018). Each scale is then standardised by its mean and deviation on
    good images, because on rough surfaces the finest scale is grain that nothing can predict. It is weighted in
    proportion to its stride, because a defect is rarely one pixel wide.
    """
    maps = []
    for scale, (residual, usual) in enumerate(zip(residuals, good, strict=True)):
        distance = _mahalanobis(residual.difference, usual.mean, usual.whitening)
        distance = distance / _expected(residual.reconstructed, usual.expected)
        maps.append((distance - usual.moments[0]) / usual.moments[1] / 2 ** (len(good) - 1 - scale))
    return maps


def fuse(distances: Sequence[Tensor], size: tuple[int, int], sigma: float = MAP_SIGMA) -> Tensor:
    """Sum the scales' (b, h, w) distances to one anomaly map (b, H, W).

    Each is upsampled bilinearly (align_corners=True), and the sum is smoothed by a Gaussian of `sigma` pixels. Both
    steps are linear and separable, so one small matrix per axis does both.
    """
    device = distances[0].device
    fused = torch.zeros((), device=device)
    with torch.autocast(device.type, enabled=False), exact_float32(device):
        for distance in distances:
            rows, columns = (
                _upsample_and_smooth(pixels, positions, sigma, device, distance.dtype)
                for pixels, positions in zip(size, distance.shape[1:], strict=True)
            )
            fused = fused + rows @ distance @ columns.T
    return fused


def weights_at(at: tuple[int, int], size: tuple[int, int], grid: tuple[int, int], sigma: float = MAP_SIGMA) -> Tensor:
    """How much each distance (h, w) of a grid counts in the value of `fuse` at one pixel (row, column) of its map.

    >>> round(float(weights_at((8, 8), (16, 16), (4, 4)).sum()), 4)
    1.0
    """
    device = torch.device("cpu")
    rows, columns = (
        _upsample_and_smooth(pixels, positions, sigma, device, torch.float32)[place]
        for place, pixels, positions in zip(at, size, grid, strict=True)
    )
    return torch.outer(rows, columns)


def local_contrast(maps: Tensor, share: float) -> Tensor:
    """Maps (b, H, W) less a share of the mean of each value's wider surroundings.

    A defect stands out from what is around it. What is unusual over a wide area, such as another layout or another
    texture, counts for less.

    >>> round(float(local_contrast(torch.ones(1, 64, 64), 0.4).max()), 4)
    0.6
    """
    if share == 0:
        return maps
    sigma = WIDE * math.sqrt(maps.shape[1] * maps.shape[2])
    rows, columns = (_smooth(side, sigma, maps.device, maps.dtype) for side in maps.shape[1:])
    with exact_float32(maps.device):
        return maps - share * (rows @ maps @ columns.T)


# Both matrices are kept on each device: a copy from the CPU would make it wait at every image. They are normal tensors,
# even if the first caller is in inference mode, and hold numbers, even if it builds a network on the device "meta".


@lru_cache(maxsize=64)
def _smooth(pixels: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`_gaussian` in single precision, on a device."""
    with torch.inference_mode(False):
        return _gaussian(pixels, sigma).float().to(device, dtype)


@lru_cache(maxsize=64)
def _upsample_and_smooth(pixels: int, positions: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(pixels, positions) matrix: linear interpolation with aligned corners, then the Gaussian."""
    with torch.inference_mode(False):
        unit = torch.eye(positions, device="cpu")
        upsample = F.interpolate(unit[None], size=pixels, mode="linear", align_corners=True)[0].T
        return (_gaussian(pixels, sigma) @ upsample.double()).float().to(device, dtype)


def _gaussian(pixels: int, sigma: float) -> Tensor:
    """(pixels, pixels) smoothing matrix: a Gaussian cut off at 4 σ, with the axis mirrored at its ends as in scipy.

    >>> _gaussian(3, 0.0).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    with torch.device("cpu"):
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
