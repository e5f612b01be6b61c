"""Good images -> a memory of good patches for each view of a product, and how each image compares with the others.

Letters: n images, m patches, h × w positions of the memory's maps.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mambaad_cli.inspection.network import levelled, unusual
from mambaad_cli.model.memory import (
    Memory,
    distances,
    expected_distances,
    looks_of,
    memory_of,
    power_of_positions,
    spacing_of,
)
from mambaad_cli.training.features import Features
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.places import places_of

CANDIDATES = 30_000  # random good patches of a product that the memory is chosen from
FEW_IMAGES = 15  # of a product: each is compared with a memory that was made without it
KNOWN = -1  # in place of an image's number, and all numbers below it: see `Remembered`


class Remembered(NamedTuple):
    """A memory of one view of some good images, and which image each of its patches is of."""

    memory: Memory
    owners: Tensor  # (m,): numbers of images; KNOWN − j of patch j of an earlier memory
    places: Tensor | None = None  # (m, 2): x, y in shares of the photo's width and height; NaN of earlier patches

    def without(self, *images: int) -> Memory:
        """The memory of the other images. Where there are no others it stays whole."""
        kept = ~torch.isin(self.owners, torch.tensor(images))
        if not kept.any():
            return self.memory
        kept = kept.to(self.memory.patches.device)
        return self.memory._replace(patches=self.memory.patches[kept], spacing=self.memory.spacing[kept])

    def first(self, size: int) -> "Remembered":
        """The coreset of at most `size` patches: k-centre chose these first."""
        patches = self.memory.patches[:size]
        places = None if self.places is None else self.places[:size]
        return Remembered(
            self.memory._replace(patches=patches, spacing=spacing_of(patches)), self.owners[:size], places
        )


RememberedViews: TypeAlias = tuple[Remembered, ...]  # the coarse view, then the close one


def remember(job: Job, good: GoodImages, images: Sequence[int], known: Sequence[Memory] = ()) -> RememberedViews:
    """The memory of each view of some images of one class, and of their moved views where new photos may look so.

    known: earlier memories of the same product, one a view, whose patches are candidates as well.
    """
    recipe, device = job.recipe, job.run.device
    two = job.network.settings.two_looks
    generator = torch.Generator().manual_seed(recipe.seed)
    # patches that lie in the memory twice would have no distance between them that others could be measured by
    images = good.features.distinct(images)
    each = -(-CANDIDATES // len(images))
    candidates: list[list[Tensor]] = [[] for _ in range(1 + two)]
    everywhere: list[list[Tensor]] = [[] for _ in range(1 + two)]
    for i in images:
        features = [stage.to(device) for stage in good.features.remembered_views(i)]
        for view, positions, patches in zip(candidates, everywhere, looks_of(features, two), strict=True):
            counting = _of_interest(patches, good.features, [i] * len(patches))
            places = places_of(good.features.seen[i], job.input_size(good.names[i]), patches.shape[:3])
            chosen = torch.randperm(int(counting.sum()), generator=generator)[:each]
            view.append(patches[counting.to(patches.device)][chosen])
            positions.append(places[counting][chosen])
    remembered = []
    for number, (view, positions) in enumerate(zip(candidates, everywhere, strict=True)):
        owners = [torch.full((len(patches),), i) for i, patches in zip(images, view, strict=True)]
        if known:
            earlier = as_seen(known[number])
            view, owners = [*view, earlier], [*owners, KNOWN - torch.arange(len(earlier))]
            positions = [*positions, torch.full((len(earlier), 2), math.nan)]
        memory, kept = memory_of(torch.cat(view), recipe.memory_size, recipe.seed)
        remembered.append(Remembered(memory, torch.cat(owners)[kept], torch.cat(positions)[kept]))
    return tuple(remembered)


def as_seen(memory: Memory) -> Tensor:
    """The patches (m, c) of a memory as they were before they were whitened."""
    return (torch.linalg.solve(memory.whitening.double().T, memory.patches.double().T).T).float() + memory.mean


def _of_interest(patches: Tensor, features: Features, images: Sequence[int]) -> Tensor:
    """Which patches (b, h, w, c) of some images lie in their regions of interest: (b, h, w) of bool."""
    inside = features.inside(images, (patches.shape[1], patches.shape[2]))
    return torch.ones(patches.shape[:3], dtype=torch.bool) if inside is None else inside


class Compared(NamedTuple):
    """One view of good images that were compared with the memory of the others, as if they were new."""

    distances: Tensor  # (n, h, w), outside regions of interest as usual as inside
    inside: Tensor | None  # (n, h, w) of bool: their regions of interest
    power: float = 1.0  # of what good images have at a position, see `power_of_positions`

    @property
    def expected(self) -> Tensor:
        """What distances are divided by at each position, (h, w)."""
        return expected_distances(self.distances, self.power)

    def expected_without(self, i: int) -> Tensor:
        """The same, from all images but the i-th of these."""
        others = torch.cat([self.distances[:i], self.distances[i + 1 :]])
        return expected_distances(others if len(others) else self.distances, self.power)

    @property
    def maps(self) -> Tensor:
        """How unusual each position is, (n, h, w), in units of what the other images have there."""
        inside = [None] * len(self.distances) if self.inside is None else self.inside.split(1)
        pairs = zip(self.distances.split(1), inside, strict=True)
        return torch.cat([unusual(one, self.expected_without(i), region) for i, (one, region) in enumerate(pairs)])


def compare(
    views: RememberedViews,
    good: GoodImages,
    images: Sequence[int],
    device: str,
    made_without: Callable[[Sequence[int]], RememberedViews] | None = None,
) -> list[Compared]:
    """Compare some images of one class each with the patches of the others, in each view.

    Images that show nearly the same are no others: they are left out with it.
    made_without: the memory made as if some images had never been there. Without it, the patches of an image are left
        out, but it still has a share in the whitening, which shows where images are few.
    """
    found: list[list[Tensor]] = [[] for _ in views]
    for i in images:
        features = [stage.to(device) for stage in good.features[torch.tensor([i])]]
        patches = looks_of(features, len(views) > 1)
        alike = good.features.alike(i)
        if made_without is None:
            others = [view.without(*alike) for view in views]
        else:
            others = [view.memory for view in made_without(alike)]
        for rows, memory, own in zip(found, others, patches, strict=True):
            rows.append(distances(memory, own))
    return _with_power([_compared(torch.cat(rows), good.features, images) for rows in found])


def compare_closest(views: RememberedViews, good: GoodImages, images: Sequence[int], device: str) -> Compared:
    """The same in the last view alone."""
    rows = []
    for i in images:
        features = [stage.to(device) for stage in good.features[torch.tensor([i])]]
        rows.append(distances(views[-1].without(*good.features.alike(i)), looks_of(features, len(views) > 1)[-1]))
    return _compared(torch.cat(rows), good.features, images)


def _compared(rows: Tensor, features: Features, images: Sequence[int]) -> Compared:
    inside = features.inside(images, (rows.shape[1], rows.shape[2]))
    if inside is None:
        return Compared(rows, None)
    inside = inside.to(rows.device)
    return Compared(levelled(rows, inside), inside)


def _with_power(views: list[Compared]) -> list[Compared]:
    """The views, with what the position says of the distance in the mean of them."""
    powers = []
    for view in views:
        counting = None if view.inside is None else view.inside.all(0)
        powers.append(power_of_positions(view.distances, counting))
    power = sum(powers) / max(1, len(powers))
    return [view._replace(power=power) for view in views]


def compared_with_others(
    job: Job, good: GoodImages, name: str, views: RememberedViews, images: Sequence[int]
) -> list[Compared]:
    """Some images of a product, each compared with the memory of its others as a new image will be."""
    members, known = good.of(name), job.products[name].learnt.memories

    def made_without(left_out: Sequence[int]) -> RememberedViews:
        others = [i for i in members if i not in left_out]
        return remember(job, good, others, known) if others else views

    few = 1 < len(good.features.first_of_alike(members)) < FEW_IMAGES
    return compare(views, good, images, job.run.device, made_without if few else None)
