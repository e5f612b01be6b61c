"""Good images -> a memory of good patches for each product, and how its map is fused with the decoder's.

Letters: n images, h × w positions of the memory's maps, H × W pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mambaad_cli.data.loading import cold_outside
from mambaad_cli.data.simulated_defects import KINDS, Simulated, simulate
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.fusion import Fusion, Witness, fuse_witnesses, witness_of
from mambaad_cli.model.memory import Memory, distances, expecting, memory_of, patches_of, without_border
from mambaad_cli.training.features import Features, features_of_pixels
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.recipe import Recipe, RunOptions
from mambaad_cli.training.splits import evenly_spread

CANDIDATES = 30_000  # random good patches of a product that the memory is chosen from
COMPARED = 40  # images that tell what is expected, each compared with the memory without its own patches
SIMULATED = 50  # defects of a product that tell what is found, and as many that choose how the maps are fused
LEAST_HELD_OUT = 20  # images for such a choice; else the weights are PRIOR
WEIGHTS = ((1.0, 0.0), (0.8, 0.2), (2 / 3, 1 / 3), (0.5, 0.5), (1 / 3, 2 / 3), (0.0, 1.0))  # of decoder and memory
PRIOR = (0.5, 0.5)
DOUBT = 0.003  # of AU-ROC that a one-sided choice must gain for each natural logarithm of the weights' ratio
Maps: TypeAlias = "tuple[Tensor | None, Tensor]"  # of the decoder, where it has a say, and of the memory


def memory_of_class(good: GoodImages, name: str, recipe: Recipe, run: RunOptions) -> tuple[Memory, Tensor]:
    """The memory of one class from its training images and their views, and memory maps (n, h, w) of some of them.

    Each of these maps is of an image that the memory does not know: its own patches are left out.
    """
    train = [i for i in dict.fromkeys(good.train) if good.names[i] == name]
    return compared_with_others(good, train, evenly_spread(train, COMPARED), recipe, run)


def compared_with_others(
    good: GoodImages, remembered: Sequence[int], compared: Sequence[int], recipe: Recipe, run: RunOptions
) -> tuple[Memory, Tensor]:
    """A memory of some images, and maps (n, h, w) of some of them, each compared with the patches of the others."""
    generator = torch.Generator().manual_seed(recipe.seed)
    each = -(-CANDIDATES // len(remembered))
    candidates, owners = [], []
    for i in remembered:
        every = recipe.flips or good.names[i] in good.turned
        views = good.features.all_views(i) if every else good.features[torch.tensor([i])]
        patches = patches_of([stage.to(run.device) for stage in views])
        flat = _of_interest(patches, good.features, [i] * len(patches))
        chosen = torch.randperm(len(flat), generator=generator)[:each]
        candidates.append(flat[chosen])
        owners += [i] * len(chosen)
    memory, kept = memory_of(torch.cat(candidates), recipe.memory_size, recipe.seed)
    owner = torch.tensor(owners)[kept]
    found = []
    for i in compared:
        own = patches_of([stage.to(run.device) for stage in good.features[torch.tensor([i])]])
        found.append(distances(memory, own, hidden=(owner == i).to(own.device)))
    seen = torch.cat(found)
    inside = good.features.inside(compared, (seen.shape[1], seen.shape[2]))
    if inside is not None:  # outside, what is usual inside
        seen = torch.where(inside.to(seen.device), seen, seen[inside.to(seen.device)].mean())
    memory = expecting(memory, seen)
    maps = without_border(seen / memory.expected)
    return memory, maps if inside is None else cold_outside(maps, inside)


def _of_interest(patches: Tensor, features: Features, images: Sequence[int]) -> Tensor:
    """The patches (b, h, w, c) of some images that lie in their regions of interest: (p, c)."""
    inside = features.inside(images, (patches.shape[1], patches.shape[2]))
    return patches.flatten(0, 2) if inside is None else patches[inside.to(patches.device)]


class Trial(NamedTuple):
    """Maps (n, H, W) of good images and of simulated defects in good images, by decoder and memory.

    Neither witness knows the good images, but for a class of which none are held out.
    """

    good: Maps
    defects: Maps
    simulated: list[Simulated]
    enough: bool  # whether so many images are held out that a choice between the witnesses means something
    values: Maps  # of the maps of good images, in their regions of interest

    def of_good(self, fusion: Fusion | None) -> Tensor:
        """Fused maps (n, H, W) of the good images, the held-out ones first."""
        decoder, memory = self.good
        return _fused(fusion, (decoder, memory if decoder is None else memory[: len(decoder)]))

    def scored(self, fusion: Fusion | None, scale: float) -> list[tuple[str, float, float]]:
        """Kind, length in pixels of the photo, and image score of the defects that were not used for the choice."""
        scores = _fused(fusion, self.defects).flatten(1).amax(1).tolist()
        rows = zip(self.simulated, scores, strict=True)
        found = [(one.kind, round(one.length * scale, 1), score) for one, score in rows]
        return found if fusion is None else found[1::2]


def trial_of(
    model: FittedModel, good: GoodImages, name: str, memory_maps: Tensor, recipe: Recipe, run: RunOptions
) -> Trial:
    """Try both witnesses of one class on held-out images, or where there are none on training images.

    memory_maps: (n, h, w), of training images that the memory was compared with without their own patches.
    """
    held_out = [i for i in good.held_out if good.names[i] == name]
    compared = evenly_spread([i for i in good.train if good.names[i] == name], COMPARED)
    some, size = held_out or compared, model.map_size(model.size_of(name))
    known, inside = model.map_of([memory_maps], size), good.features.inside(compared, size)
    if inside is not None:
        known = cold_outside(known, inside)
    decoder, memory = _maps(model, good.features, some, name, run)
    memory = torch.cat([memory, known]) if held_out else known
    count = SIMULATED if decoder is None else 2 * SIMULATED
    simulated = simulated_defects(good, held_out, count, recipe.seed)
    features = features_of_pixels(model, (one.pixels for one in simulated), len(simulated), run)
    features.insides = [one.inside for one in simulated]
    defects = _maps(model, features, range(len(simulated)), name, run)
    regions = good.features.inside(some, size), good.features.inside([*held_out, *compared], size)
    values = None if decoder is None else _inside(decoder, regions[0]), _inside(memory, regions[1])
    return Trial((decoder, memory), defects, simulated, len(held_out) >= LEAST_HELD_OUT, values)


def _inside(maps: Tensor, regions: Tensor | None) -> Tensor:
    """The values of maps (n, H, W) in regions of interest (n, H, W)."""
    return maps if regions is None else maps[regions.to(maps.device)]


def fusion_of(trial: Trial) -> Fusion:
    """The fusion that tells simulated defects best from good images: of WEIGHTS, those with the highest image AU-ROC.

    A one-sided choice must gain DOUBT. Where hardly any images are held out the weights are PRIOR.
    """
    decoder, memory = trial.good
    usual, usual_of_memory = trial.values
    assert decoder is not None
    assert usual is not None
    fusion = Fusion(witness_of(usual), witness_of(usual_of_memory))
    if not trial.enough:
        return _weighted(fusion, PRIOR)
    good = decoder, memory[: len(decoder)]
    chosen = trial.defects[0], trial.defects[1]
    labels = [0] * len(decoder) + [1] * len(trial.simulated[::2])

    def worth(weights: tuple[float, float]) -> float:
        own = _weighted(fusion, weights)
        scores = [_fused(own, good).flatten(1).amax(1), _fused(own, chosen).flatten(1).amax(1)[::2]]
        one_sided = abs(math.log((weights[0] + 0.1) / (weights[1] + 0.1)))
        return float(roc_auc_score(labels, torch.cat(scores).cpu())) - DOUBT * one_sided

    return _weighted(fusion, max(WEIGHTS, key=worth))


def _weighted(fusion: Fusion, weights: tuple[float, float]) -> Fusion:
    return Fusion(*(Witness(one.centre, one.spread, weight) for one, weight in zip(fusion, weights, strict=True)))


def _fused(fusion: Fusion | None, maps: Maps) -> Tensor:
    return maps[1] if fusion is None else fuse_witnesses(fusion, *maps)


def _maps(model: FittedModel, features: Features, chosen: Sequence[int], name: str, run: RunOptions) -> Maps:
    """The maps (n, H, W) of decoder and memory of images of one class, not yet fused."""
    size = model.map_size(model.size_of(name))
    found = [model.evidence(batch, size, name) for _, batch in features.batches(chosen, run.device)]
    if not found:
        nothing = torch.zeros(0, *size)
        return nothing, nothing
    decoder, memory = ([one for one in maps if one is not None] for maps in zip(*found, strict=True))
    inside = features.inside(chosen, size)
    maps = torch.cat(decoder) if decoder else None, torch.cat(memory)
    if inside is None:
        return maps
    return None if maps[0] is None else cold_outside(maps[0], inside), cold_outside(maps[1], inside)


def simulated_defects(good: GoodImages, chosen: Sequence[int], count: int, seed: int) -> list[Simulated]:
    """So many defects of all kinds in turn, in some good images."""
    found: list[Simulated] = []
    pictures = {i: pixels for i in chosen if (pixels := good.pixels(i)) is not None}
    present = list(pictures)
    for number in range(count if present else 0):
        kind = KINDS[number // 2 % len(KINDS)]
        here, other = present[number % len(present)], present[(number + 1) % len(present)]
        inside = good.features.insides[here]
        found.append(simulate(pictures[here], pictures[other], kind, seed * 1_000_003 + number, inside))
    return found
