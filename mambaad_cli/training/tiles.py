"""Good photos at their own resolution -> a memory of their tiles, and how their map joins that of the whole photo.

Letters: h × w pixels of the scaled photo, u × v values of its map.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.augmentation import moved
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import Input, at_size, prepared, read_ahead, within
from mambaad_cli.data.roi import scaled
from mambaad_cli.data.simulated_defects import KINDS, simulate
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.tiles import (
    OVERLAP,
    PIXELS_A_VALUE,
    STRIDE,
    Tiles,
    at_scale,
    close_grid,
    crop,
    enlarged,
    expecting,
    fused,
    map_size,
    padded_to_tiles,
    smoothed,
    tile_distances,
    tile_patches,
)
from mambaad_cli.model.fusion import Fusion, witness_of
from mambaad_cli.model.memory import PRIOR, Memory, distances, memory_of
from mambaad_cli.model.settings import STEP
from mambaad_cli.training.memories import CANDIDATES, SIMULATED, Looks, Remembered
from mambaad_cli.training.recipe import Recipe
from mambaad_cli.training.splits import evenly_spread

LEARNT = 200  # tiles of a product that the memory is chosen from
COMPARED = 40  # of them, that tell which distance is expected
SCORED = 40  # photos that give the threshold: held-out ones, and learnt ones where these are fewer
TRIES = 20  # at a place that lies in the region of interest
MOSTLY = 0.5  # share of a tile, or of a smaller region, that does
WEIGHT = 0.3  # of the tiles' map; the rest is that of the whole photo's
FEWEST = 8  # photos that tell what is expected at each place
NEAR = 3  # positions, along a side, whose mean tells what is expected in their middle


class Photos(NamedTuple):
    """The photos of one product, by number."""

    name: str
    paths: Sequence[Path]  # of all photos
    train: Sequence[int]  # learnt from
    held_out: Sequence[int]  # kept for the threshold
    whole: Looks | None = None  # the memory of whole photos, where there is one
    turned: bool = False  # the product lies any way round
    flips: bool = False  # good parts may be mirrored

    @property
    def learnt(self) -> list[int]:
        """The photos whose tiles are remembered: where photos are compared with the others, held-out ones too."""
        return list(self.train) if self.whole is None else sorted({*self.train, *self.held_out})

    @property
    def scored(self) -> list[int]:
        """The photos that give the threshold. A decoder alone may not have seen any of them."""
        if self.whole is None:
            return list(self.held_out or self.train[:SCORED])
        return [*self.held_out, *evenly_spread(self.train, max(0, SCORED - len(self.held_out)))]


class _Seen(NamedTuple):
    """A good photo as the model sees it."""

    whole: Tensor  # (u, v): the map of the whole photo, enlarged
    grid: Tensor  # (r, c): how unusual each position is for any tile
    region: np.ndarray | None  # of interest


@torch.inference_mode()
def describe_tiles(model: FittedModel, photos: Photos, recipe: Recipe) -> None:
    """Set what the model knows of good tiles of one product, and take its scores from whole photos seen so.

    Raises MambaADError where no photo can be read any more.
    """
    folded = model.for_inference()
    tiles = _remember_tiles(folded, photos, recipe)
    seen = []
    for i, one in _read(model, photos, photos.scored):
        other, memory = _of_others(folded, photos, tiles, i)
        seen.append(_seen(other, memory, photos.name, one))
    if not seen:
        raise MambaADError(f"no photo of {photos.name} can be read any more")
    grids = [one.grid for one in seen]
    closes = [_close(one, expected_from([*grids[:i], *grids[i + 1 :]])) for i, one in enumerate(seen)]
    whole = torch.cat([_inside(one.whole, one.region) for one in seen])
    close = torch.cat([_inside(found, one.region) for found, one in zip(closes, seen, strict=True)])
    fusion = Fusion(witness_of(whole, 1 - WEIGHT), witness_of(close, WEIGHT))
    own = Tiles(tiles.memory, expected_from(grids), fusion)
    model.tiles[photos.name] = folded.tiles[photos.name] = own
    scores = [float(fused(own, one.whole, found, one.region).max()) for one, found in zip(seen, closes, strict=True)]
    model.scores[photos.name] = scores
    model.simulated[photos.name] = _simulated(folded, photos, tiles, scores, recipe.seed) if photos.held_out else []


def _of_others(model: FittedModel, photos: Photos, tiles: Remembered, i: int) -> tuple[FittedModel, Memory]:
    """The model, and the memory of tiles, without what they remember of one photo."""
    if photos.whole is None:
        return model, tiles.memory
    looks = zip(photos.whole, model.memories[photos.name], strict=True)
    memory = tuple(own.without(i)._replace(expected=one.expected) for own, one in looks)
    return replace(model, memories=model.memories | {photos.name: memory}), tiles.without(i)


def _remember_tiles(model: FittedModel, photos: Photos, recipe: Recipe) -> Remembered:
    """Of tiles at random places, of some photos or of all; turned and mirrored ones where parts lie so."""
    learnt = photos.learnt[:LEARNT]
    each = math.ceil(LEARNT / len(learnt))
    generator = torch.Generator().manual_seed(recipe.seed)
    patches: list[Tensor] = []
    owners: list[int] = []
    some: list[tuple[int, Tensor]] = []
    for place, (i, one) in enumerate(_read(model, photos, learnt)):
        for number, (pixels, inside) in enumerate(_random_tiles(model, one, each, generator)):
            if photos.turned or photos.flips:
                moving = recipe.seed * 1_000_003 + place * each + number
                pixels = moved(pixels, 1, moving, photos.flips, photos.turned)[0]
            found = tile_patches(model, pixels[None])[0]
            own = found[at_size(inside, (found.shape[0], found.shape[1])).to(found.device)]
            chosen = torch.randperm(len(own), generator=generator)[: math.ceil(CANDIDATES / (len(learnt) * each))]
            patches.append(own[chosen])
            owners += [i] * len(chosen)
            if len(some) < COMPARED and number == 0:
                some.append((i, own))
    if not patches:
        raise MambaADError(f"no photo of {photos.name} can be read any more")
    memory, kept = memory_of(torch.cat(patches), recipe.memory_size, recipe.seed)
    tiles = Remembered(memory, torch.tensor(owners)[kept])
    usual = torch.cat([distances(tiles.without(i), own[None, None]).flatten() for i, own in some]).mean()
    return tiles._replace(memory=memory._replace(expected=usual.view(1, 1)))


def _random_tiles(
    model: FittedModel, one: Input, number: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tiles (3, H, W) in 0 … 1 at random places of a photo, and the region of interest in each, (H, W) of bool."""
    assert one.source is not None
    photo = at_scale(one.source, model.settings.scale, one.region)
    region = np.ones(photo.shape[:2], bool) if one.region is None else scaled(one.region, photo.shape[:2])
    height, width = model.tile_size
    photo = padded_to_tiles(photo, (height, width))
    region = np.pad(region, [(0, big - side) for side, big in zip(region.shape, photo.shape[:2], strict=True)])
    for _ in range(number):
        for _ in range(TRIES):
            top, left = (
                int(torch.randint((side - tile) // STEP + 1, (), generator=generator)) * STEP
                for side, tile in zip(photo.shape[:2], (height, width), strict=True)
            )
            inside = region[top : top + height, left : left + width]
            if inside.mean() >= MOSTLY * min(1.0, float(region.sum()) / (height * width)):
                break
        if inside.any():
            yield crop(photo, (top, left), (height, width)), torch.from_numpy(np.ascontiguousarray(inside))


def _simulated(
    model: FittedModel, photos: Photos, tiles: Remembered, scores: Sequence[float], seed: int
) -> list[tuple[str, float, float]]:
    """Kind, length in pixels of the photo, and score of defects that are drawn into held-out photos, a tile's at most.

    A photo's score with a defect is the highest of its own and of what its map has where the defect is.
    """
    rows: list[tuple[str, float, float]] = []
    chosen = photos.held_out[:SIMULATED]
    generator = torch.Generator().manual_seed(seed)
    for place, (i, one) in enumerate(_read(model, photos, chosen)):
        other, memory = _of_others(model, photos, tiles, i)
        for number in range(place, SIMULATED, len(chosen)):
            kind = KINDS[number % len(KINDS)]
            found = _with_defect(other, memory, photos.name, one, kind, seed * 1_000_003 + number, generator)
            if found is not None:
                rows.append((kind, round(found[0] / model.settings.scale, 1), max(scores[place], found[1])))
    return rows


def _with_defect(
    model: FittedModel, memory: Memory, name: str, one: Input, kind: str, seed: int, generator: torch.Generator
) -> tuple[float, float] | None:
    """Length in pixels of the scaled photo, and highest value of the map around a defect at a random place."""
    assert one.source is not None
    photo = at_scale(one.source, model.settings.scale, one.region)
    height, width = (min(side, tile) for side, tile in zip(photo.shape[:2], model.tile_size, strict=True))
    region = np.ones(photo.shape[:2], bool) if one.region is None else scaled(one.region, photo.shape[:2])
    for _ in range(TRIES):
        places = [
            (int(torch.randint(photo.shape[0] - height + 1, (), generator=generator)),
             int(torch.randint(photo.shape[1] - width + 1, (), generator=generator)))
            for _ in range(2)
        ]  # fmt: skip
        (top, left), other = places
        inside = region[top : top + height, left : left + width]
        if inside.mean() >= MOSTLY * min(1.0, float(region.sum()) / (height * width)):
            break
    if not inside.any():
        return None
    drawn = simulate(
        crop(photo, (top, left), (height, width)),
        crop(photo, other, (height, width)),
        kind,
        seed,
        torch.from_numpy(np.ascontiguousarray(inside)),
    )
    changed = photo.copy()
    pixels = (drawn.pixels * 255).permute(1, 2, 0).numpy()
    changed[top : top + height, left : left + width] = pixels.round() if changed.dtype == np.uint8 else pixels
    corner = max(0, top - OVERLAP) // STEP * STEP, max(0, left - OVERLAP) // STEP * STEP
    near = np.s_[corner[0] : top + height + OVERLAP, corner[1] : left + width + OVERLAP]
    seen = prepared(changed, model.size_of(name), model.settings.letterbox, region=one.region)
    own = model.tiles[name]
    whole = whole_map(model, name, seen)
    whole = enlarged(whole, (photo.shape[0] // PIXELS_A_VALUE, photo.shape[1] // PIXELS_A_VALUE))
    rows, columns = (slice(part.start // PIXELS_A_VALUE, part.stop // PIXELS_A_VALUE) for part in near)
    part = whole[rows, columns]
    grid = close_grid(partial(tile_distances, model, memory), model.tile_size, changed[near])
    whole_grid = (math.ceil(photo.shape[0] / STRIDE), math.ceil(photo.shape[1] / STRIDE))
    expected = enlarged(own.expected, whole_grid)[
        tuple(slice(s.start // STRIDE, math.ceil(s.stop / STRIDE)) for s in near)
    ]
    close = smoothed(expecting(grid, expected), (part.shape[0], part.shape[1]))
    return drawn.length, float(fused(own, part, close, region[near]).max())


def whole_map(model: FittedModel, name: str, one: Input) -> Tensor:
    """The map of the whole photo, without padding and cold outside its region of interest."""
    pixels = one.pixels[None].to(model.device)
    size = model.map_size((pixels.shape[2], pixels.shape[3]))
    return within(model.maps_of(model.features(pixels), size, [name])[0].float().cpu(), one.box, one.inside)


def _seen(model: FittedModel, memory: Memory, name: str, one: Input) -> _Seen:
    assert one.source is not None
    photo = at_scale(one.source, model.settings.scale, one.region)
    whole = enlarged(whole_map(model, name, one), map_size(photo))
    grid = close_grid(partial(tile_distances, model, memory), model.tile_size, photo)
    return _Seen(whole, grid, one.region)


def _close(one: _Seen, expected: Tensor) -> Tensor:
    """The map (u, v) of a photo's tiles."""
    return smoothed(expecting(one.grid, expected), (one.whole.shape[0], one.whole.shape[1]))


def expected_from(grids: Sequence[Tensor]) -> Tensor:
    """What good photos have at each place (r, c), from how unusual their positions are for any tile.

    A place's mean is taken with its neighbours', and drawn to the mean over all places where photos are few. Of very
    few nothing is said.
    """
    if len(grids) < FEWEST:
        return torch.ones(1, 1)
    rows, columns = grids[0].shape
    same = [cv2.resize(one.numpy(), (columns, rows), interpolation=cv2.INTER_LINEAR) for one in grids]
    mean = np.mean(same, axis=0)
    local = cv2.blur(mean, (NEAR, NEAR), borderType=cv2.BORDER_REFLECT)
    return torch.from_numpy((len(same) * local + PRIOR * mean.mean()) / (len(same) + PRIOR)).float()


def _read(model: FittedModel, photos: Photos, chosen: Sequence[int]) -> Iterator[tuple[int, Input]]:
    """Some photos by number, with what their tiles are cut from; those that cannot be read are left out."""
    wanted = model.wanted(model.size_of(photos.name), photos.name, sources=True)
    for i, one in zip(chosen, read_ahead([photos.paths[i] for i in chosen], wanted), strict=True):
        if not isinstance(one, ImageError):
            yield i, one


def _inside(values: Tensor, region: np.ndarray | None) -> Tensor:
    """The values of a map (u, v) in a region of interest."""
    if region is None:
        return values.flatten()
    return values[at_size(torch.from_numpy(region), (values.shape[0], values.shape[1]))]
