"""Photos that show nearly the same: bursts of a camera, frames of a video, photos that were sent twice.

Compared with each other they look too usual, so that a threshold from them would reject new good photos. They are left
out together, and count as one photo for the threshold.

Letters: n images, d numbers of an image.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mambaad_cli.model.precision import exact_float32
from mambaad_cli.training.features import Features

OF_NEAREST = 0.5  # of the median distance between nearest images: what is nearer is nearly the same
OF_ANY = 0.2  # of the median distance between any two: where all images have a copy, the nearest tell nothing
PROJECTED = 256  # numbers of an image, a random projection of its features
SAMPLED = 1000  # images that tell the median distance between any two
ROWS = 512  # images that are compared with all others at once


def near_copies(features: Features, images: Sequence[int]) -> list[list[int]]:
    """The groups of two and more among images of one product that show nearly the same."""
    if len(images) < 3:
        return []
    points = _points(features, images)
    nearest = torch.cat([_without_itself(rows, start).amin(1) for start, rows in _distances(points, points)])
    some = points[:: math.ceil(len(points) / SAMPLED)]
    between = torch.cat([rows for _, rows in _distances(some, some)])
    apart = between[between.new_ones(between.shape).triu(1).bool()].median()
    limit = max(OF_NEAREST * float(nearest.median()), OF_ANY * float(apart))
    pairs = [(rows < limit).nonzero() + torch.tensor([start, 0]) for start, rows in _distances(points, points)]
    first, second = torch.cat(pairs).numpy().T
    graph = coo_matrix(([True] * len(first), (first, second)), shape=(len(images), len(images)))
    _, numbers = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for image, number in zip(images, numbers.tolist(), strict=True):
        groups.setdefault(number, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def _points(features: Features, images: Sequence[int]) -> Tensor:
    """Each image as a point (n, d): its coarsest features of the decoder, each channel in units of its deviation."""
    stage = features.coarsest(images[:1])
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(stage[0].numel(), PROJECTED, generator=generator) / math.sqrt(PROJECTED)
    some = torch.cat([features.coarsest([i]) for i in images[:: math.ceil(len(images) / SAMPLED)]])
    deviation, mean = torch.std_mean(some, dim=(0, 2, 3), keepdim=True)
    standard = ((features.coarsest([i]) - mean) / deviation.clamp(min=1e-6) for i in images)
    return torch.cat([image.flatten(1) @ projection for image in standard])


def _distances(points: Tensor, others: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Distances of some points at a time to all others, and the number of the first of these points."""
    for start in range(0, len(points), ROWS):
        with exact_float32(points.device):
            yield start, torch.cdist(points[start : start + ROWS], others, compute_mode="donot_use_mm_for_euclid_dist")


def _without_itself(rows: Tensor, start: int) -> Tensor:
    places = torch.arange(len(rows))
    rows[places, start + places] = math.inf
    return rows
