"""Good images -> a memory of good patches for each product, and how its map is fused with the decoder's.

Letters: n images, m patches, h × w positions of the memory's maps, H × W pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mambaad_cli.data.loading import cold_outside
from mambaad_cli.data.simulated_defects import KINDS, Simulated, simulate
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.fusion import Fusion, fuse_witnesses, witness_of
from mambaad_cli.model.memory import (
    Memory,
    distances,
    expected_distances,
    looks_of,
    memory_of,
    spacing_of,
    unusual_patches,
    without_border,
)
from mambaad_cli.training.features import Features, features_of_pixels
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.recipe import Recipe, RunOptions
from mambaad_cli.training.splits import evenly_spread

CANDIDATES = 30_000  # random good patches of a product that the memory is chosen from
SCORED = 100  # good images of a product that give its threshold: held-out ones, and learnt ones where these are fewer
SIMULATED = 50  # defects of a product that tell what is found
FEW = 15  # images of a product, of which each is compared with a memory that was made without it
WEIGHTS = (1 / 3, 2 / 3)  # of decoder and memory; choosing them by simulated defects gained nothing on eight products
Maps: TypeAlias = "tuple[Tensor | None, Tensor]"  # of the decoder, where it has a say, and of the memory


class Remembered(NamedTuple):
    """A memory of one look at some good images, and which image each of its patches is of."""

    memory: Memory
    owners: Tensor  # (m,): numbers of images

    def without(self, *images: int) -> Memory:
        """The memory of the other images. Where there are no others it stays whole."""
        kept = ~torch.isin(self.owners, torch.tensor(images))
        if not kept.any():
            return self.memory
        kept = kept.to(self.memory.patches.device)
        return self.memory._replace(patches=self.memory.patches[kept], spacing=self.memory.spacing[kept])

    def first(self, size: int) -> "Remembered":
        """The coreset of at most so many patches: k-centre chose these first."""
        patches = self.memory.patches[:size]
        return Remembered(self.memory._replace(patches=patches, spacing=spacing_of(patches)), self.owners[:size])


Looks: TypeAlias = tuple[Remembered, ...]


def remember(good: GoodImages, images: Sequence[int], two: bool, recipe: Recipe, run: RunOptions) -> Looks:
    """The memory of each look at some images of one class, and at their views where it shows them any way round.

    two: whether there are two looks, see `looks_of`.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    each = -(-CANDIDATES // len(images))
    candidates: list[list[Tensor]] = [[] for _ in range(1 + two)]
    for i in images:
        views = [stage.to(run.device) for stage in good.features.remembered_views(i)]
        for own, patches in zip(candidates, looks_of(views, two), strict=True):
            flat = _of_interest(patches, good.features, [i] * len(patches))
            own.append(flat[torch.randperm(len(flat), generator=generator)[:each]])
    looks = []
    for own in candidates:
        memory, kept = memory_of(torch.cat(own), recipe.memory_size, recipe.seed)
        owners = torch.tensor([i for i, patches in zip(images, own, strict=True) for _ in patches])
        looks.append(Remembered(memory, owners[kept]))
    return tuple(looks)


def _of_interest(patches: Tensor, features: Features, images: Sequence[int]) -> Tensor:
    """The patches (b, h, w, c) of some images that lie in their regions of interest: (p, c)."""
    inside = features.inside(images, (patches.shape[1], patches.shape[2]))
    return patches.flatten(0, 2) if inside is None else patches[inside.to(patches.device)]


class Compared(NamedTuple):
    """One look at good images that were compared with the memory of the others, as if they were new."""

    seen: Tensor  # (n, h, w): their distances
    inside: Tensor | None  # (n, h, w) of bool: their regions of interest

    @property
    def expected(self) -> Tensor:
        """What good images have at each position, (h, w)."""
        return expected_distances(self.seen)

    def expected_without(self, i: int) -> Tensor:
        """The same, from all images but the i-th of these."""
        others = torch.cat([self.seen[:i], self.seen[i + 1 :]])
        return expected_distances(others if len(others) else self.seen)

    @property
    def maps(self) -> Tensor:
        """How unusual each position is, (n, h, w), in units of what the other images have there."""
        found = torch.stack([one / self.expected_without(i) for i, one in enumerate(self.seen)])
        maps = without_border(found)
        return maps if self.inside is None else cold_outside(maps, self.inside)


def compare(
    looks: Looks,
    good: GoodImages,
    images: Sequence[int],
    run: RunOptions,
    anew: Callable[[int], Looks] | None = None,
    closest: bool = False,
) -> list[Compared]:
    """Compare some images of one class each with the patches of the others, in each look, or in the closest one alone.

    anew: the memory without an image, made as if the image had never been there. Without it, the patches of an image
    are left out, but it still has a share in the whitening, which shows where the images are FEW.
    """
    first = len(looks) - 1 if closest else 0
    found: list[list[Tensor]] = [[] for _ in looks[first:]]
    for i in images:
        patches = looks_of([stage.to(run.device) for stage in good.features[torch.tensor([i])]], len(looks) > 1)
        others = [one.without(i) for one in looks] if anew is None else [one.memory for one in anew(i)]
        for seen, memory, own in zip(found, others[first:], patches[first:], strict=True):
            seen.append(distances(memory, own))
    return [_compared(torch.cat(seen), good.features, images) for seen in found]


def _compared(seen: Tensor, features: Features, images: Sequence[int]) -> Compared:
    inside = features.inside(images, (seen.shape[1], seen.shape[2]))
    if inside is not None:  # outside, what is usual inside
        inside = inside.to(seen.device)
        seen = torch.where(inside, seen, seen[inside].mean())
    return Compared(seen, inside)


def images_to_score(good: GoodImages, name: str, most: int = SCORED) -> list[int]:
    """The good images of a class that its threshold comes from: held-out ones first, then others up to so many."""
    train, held_out = ([i for i in part if good.names[i] == name] for part in good.parts)
    return held_out + evenly_spread(train, max(0, most - len(held_out)))


class Trial(NamedTuple):
    """Maps (n, H, W) of good images and of simulated defects in good images, by decoder and memory.

    The memory knows none of these images: their own patches are left out. The decoder knows some of the good ones.
    """

    good: Maps
    defects: Maps
    simulated: list[Simulated]
    values: Maps  # of the maps of good images, in their regions of interest

    def of_good(self, fusion: Fusion | None) -> Tensor:
        """Fused maps (n, H, W) of the good images."""
        return _fused(fusion, self.good)

    def scored(self, fusion: Fusion | None, scale: float) -> list[tuple[str, float, float]]:
        """Kind, length in pixels of the photo, and image score of the defects."""
        scores = _fused(fusion, self.defects).flatten(1).amax(1).tolist()
        rows = zip(self.simulated, scores, strict=True)
        return [(one.kind, round(one.length * scale, 1), score) for one, score in rows]


def trial_of(
    model: FittedModel,
    good: GoodImages,
    images: Sequence[int],
    looks: Looks,
    compared: Sequence[Compared],
    recipe: Recipe,
    run: RunOptions,
) -> Trial:
    """Try both witnesses of one class on good images, which were compared with the memory, and on simulated defects.

    The defects are drawn into held-out images.
    """
    name = good.names[images[0]]
    size = model.map_size(model.size_of(name))
    inside = good.features.inside(images, size)
    decoder = _decoder_maps(model, good.features, images, name, run)
    memory = _cold(model.memory_map([one.maps for one in compared], size), inside)
    held_out = [i for i in good.held_out if good.names[i] == name]
    drawn = simulated_defects(good, held_out, SIMULATED, recipe.seed)
    simulated = [one for one, _ in drawn]
    features = features_of_pixels(model, (one.pixels for one in simulated), len(simulated), run)
    features.insides = [one.inside for one in simulated]
    numbers = range(len(simulated))
    unusual = memory.new_empty(len(simulated), *size)
    for number, (_, of) in enumerate(drawn):
        here = images.index(of[0])
        own = model.patches([stage.to(run.device) for stage in features[torch.tensor([number])]])
        found = [
            unusual_patches(remembered.without(*of)._replace(expected=one.expected_without(here)), patches)
            for remembered, one, patches in zip(looks, compared, own, strict=True)
        ]
        unusual[number] = model.memory_map(found, size)[0]
    defects = _decoder_maps(model, features, numbers, name, run), _cold(unusual, features.inside(numbers, size))
    values = None if decoder is None else _inside(decoder, inside), _inside(memory, inside)
    return Trial((decoder, memory), defects, simulated, values)


def _cold(maps: Tensor, inside: Tensor | None) -> Tensor:
    return maps if inside is None else cold_outside(maps, inside)


def _inside(maps: Tensor, regions: Tensor | None) -> Tensor:
    """The values of maps (n, H, W) in regions of interest (n, H, W)."""
    return maps if regions is None else maps[regions.to(maps.device)]


def fusion_of(trial: Trial) -> Fusion:
    """The fusion of both witnesses, each in units of its values on good images."""
    decoder, memory = trial.values
    assert decoder is not None
    return Fusion(witness_of(decoder, WEIGHTS[0]), witness_of(memory, WEIGHTS[1]))


def _fused(fusion: Fusion | None, maps: Maps) -> Tensor:
    return maps[1] if fusion is None else fuse_witnesses(fusion, *maps)


def _decoder_maps(
    model: FittedModel, features: Features, chosen: Sequence[int], name: str, run: RunOptions
) -> Tensor | None:
    """The decoder's maps (n, H, W) of images of one class; None where it has no say."""
    if name not in model.statistics:
        return None
    size = model.map_size(model.size_of(name))
    found = [model.decoder_map(batch, size, name) for _, batch in features.batches(chosen, run.device)]
    maps = torch.cat([one for one in found if one is not None]) if found else torch.zeros(0, *size)
    return _cold(maps, features.inside(chosen, size))


def simulated_defects(
    good: GoodImages, chosen: Sequence[int], count: int, seed: int
) -> list[tuple[Simulated, tuple[int, int]]]:
    """So many defects of all kinds in turn, in some good images; each with the image that it is drawn into, and the one
    that it takes pieces from."""
    found: list[tuple[Simulated, tuple[int, int]]] = []
    pictures = {i: pixels for i in chosen if (pixels := good.pixels(i)) is not None}
    present = list(pictures)
    for number in range(count if present else 0):
        kind = KINDS[number // 2 % len(KINDS)]
        here, other = present[number % len(present)], present[(number + 1) % len(present)]
        inside = good.features.insides[here]
        one = simulate(pictures[here], pictures[other], kind, seed * 1_000_003 + number, inside)
        found.append((one, (here, other)))
    return found
