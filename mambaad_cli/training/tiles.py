"""Good photos at their own resolution -> a memory of their tiles, and how their map joins that of the whole photo.

Letters: h × w pixels of the scaled photo, u × v values of its map.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Learnt, Product, ScoredDefect
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
)
from mambaad_cli.model.fusion import Fusion, witness_of
from mambaad_cli.model.memory import PRIOR, Memory, distances, memory_of
from mambaad_cli.model.settings import STEP
from mambaad_cli.training.job import Job
from mambaad_cli.training.memories import CANDIDATES, Remembered, RememberedViews
from mambaad_cli.training.splits import evenly_spread
from mambaad_cli.training.trial import MAX_DEFECTS

LEARNT_TILES = 200  # of a product that the memory is chosen from
COMPARED_TILES = 40  # of them, that tell which distance is expected
SCORED_PHOTOS = 40  # that give the threshold: held-out ones, and learnt ones where these are fewer
TRIES = 20  # at a place that lies in the region of interest
MOSTLY = 0.5  # share of a tile, or of a smaller region, that does
WEIGHT = 0.3  # of the tiles' map; the rest is that of the whole photo's
MIN_PHOTOS = 8  # that tell what is expected at each place
NEAR = 3  # positions, along a side, whose mean tells what is expected in their middle


class TilePhotos(NamedTuple):
    """The photos of one product, by number."""

    name: str
    paths: Sequence[Path | None]  # of all photos
    train: Sequence[int]  # learnt from
    held_out: Sequence[int]  # kept for the threshold
    whole: RememberedViews | None = None  # the memory of whole photos, where there is one
    turned: bool = False  # the product lies any way round
    flips: bool = False  # good parts may be mirrored
    alike: Callable[[int], Sequence[int]] = lambda photo: [photo]  # photos that show nearly the same, itself too

    @property
    def learnt(self) -> list[int]:
        """The photos whose tiles are remembered: where photos are compared with the others, held-out ones too."""
        return list(self.train) if self.whole is None else sorted({*self.train, *self.held_out})

    @property
    def scored(self) -> list[int]:
        """The photos that give the threshold. A decoder alone may not have seen any of them."""
        held_out = self.held_out[:SCORED_PHOTOS]
        if self.whole is None:
            return list(held_out or self.train[:SCORED_PHOTOS])
        return [*held_out, *evenly_spread(self.train, max(0, SCORED_PHOTOS - len(held_out)))]


@dataclass(frozen=True)
class TileJob:
    """What is needed to see the photos of one product whole and in tiles."""

    network: Network
    preparation: Preparation
    product: Product
    photos: TilePhotos
    seed: int

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[int, Input]]:
        """Some photos by number, with what their tiles are cut from; those that cannot be read are left out."""
        present = [(i, path) for i in chosen if (path := self.photos.paths[i]) is not None]
        wanted = self.preparation.wanted(self.product.name)
        for (i, _), image in zip(present, read_ahead([path for _, path in present], wanted), strict=True):
            if not isinstance(image, ImageError):
                yield i, image

    def without(self, tiles: Remembered, photo: int) -> tuple[Learnt, Memory]:
        """What is learnt of whole photos, and the memory of tiles, without what they remember of one photo."""
        learnt, alike = self.product.learnt, self.photos.alike(photo)
        if self.photos.whole is None:
            return learnt, tiles.memory
        views = zip(self.photos.whole, learnt.memories, strict=True)
        memories = tuple(view.without(*alike)._replace(expected=memory.expected) for view, memory in views)
        return replace(learnt, memories=memories), tiles.without(*alike)

    def whole_map(self, learnt: Learnt, image: Input) -> Tensor:
        """The map of the whole photo, without padding and cold outside its region of interest."""
        pixels = image.pixels[None].to(self.network.device)
        size = self.network.map_size((pixels.shape[2], pixels.shape[3]))
        inside = None if image.inside is None else at_size(image.inside[None], size)
        maps = self.network.anomaly_maps(self.network.features(pixels), size, learnt, inside)
        return within(maps[0].float().cpu(), image.box)


class _Seen(NamedTuple):
    """A good photo as the model sees it."""

    whole: Tensor  # (u, v): the map of the whole photo, enlarged
    grid: Tensor  # (r, c): how unusual each position is for any tile
    region: np.ndarray | None  # of interest


@torch.inference_mode()
def with_tiles(job: Job, product: Product, photos: TilePhotos) -> Product:
    """The product with what good tiles of it are like, calibrated by whole photos seen so.

    Raises MambaADError where no photo can be read any more.
    """
    work = TileJob(job.fast, job.preparation, product, photos, job.recipe.seed)
    remembered = _remember_tiles(work, job.recipe.memory_size)
    seen = []
    for i, image in work.read(photos.scored):
        learnt, memory = work.without(remembered, i)
        seen.append(_seen(work, learnt, memory, image))
    if not seen:
        raise MambaADError(f"no photo of {photos.name} can be read any more")
    grids = [photo.grid for photo in seen]
    closes = [_close(photo, expected_from([*grids[:i], *grids[i + 1 :]])) for i, photo in enumerate(seen)]
    whole = torch.cat([_inside(photo.whole, photo.region) for photo in seen])
    close = torch.cat([_inside(close, photo.region) for close, photo in zip(closes, seen, strict=True)])
    fusion = Fusion(witness_of(whole, 1 - WEIGHT), witness_of(close, WEIGHT))
    tiles = Tiles(remembered.memory, expected_from(grids), fusion)
    scores = [
        float(fused(tiles, photo.whole, close, photo.region).max()) for photo, close in zip(seen, closes, strict=True)
    ]
    product = replace(product, learnt=replace(product.learnt, tiles=tiles))
    defects = _simulated(replace(work, product=product), remembered, scores) if photos.held_out else ()
    assert product.calibration is not None
    measured = replace(product.calibration, scores=tuple(scores), simulated=tuple(defects))
    return replace(product, calibration=measured)


def _remember_tiles(work: TileJob, memory_size: int) -> Remembered:
    """Of tiles at random places, of some photos or of all; turned and mirrored ones where parts lie so."""
    photos, network = work.photos, work.network
    learnt = photos.learnt[:LEARNT_TILES]
    each = math.ceil(LEARNT_TILES / len(learnt))
    generator = torch.Generator().manual_seed(work.seed)
    patches: list[Tensor] = []
    owners: list[int] = []
    some: list[tuple[int, Tensor]] = []
    for place, (i, image) in enumerate(work.read(learnt)):
        for number, (pixels, inside) in enumerate(_random_tiles(network, image, each, generator)):
            if photos.turned or photos.flips:
                moving = work.seed * 1_000_003 + place * each + number
                pixels = moved(pixels, 1, moving, photos.flips, photos.turned)[0]
            grid = network.tile_patches(pixels[None])[0]
            counting = grid[at_size(inside, (grid.shape[0], grid.shape[1])).to(grid.device)]
            chosen = torch.randperm(len(counting), generator=generator)
            chosen = chosen[: math.ceil(CANDIDATES / (len(learnt) * each))]
            patches.append(counting[chosen])
            owners += [i] * len(chosen)
            if len(some) < COMPARED_TILES and number == 0:
                some.append((i, counting))
    if not patches:
        raise MambaADError(f"no photo of {photos.name} can be read any more")
    memory, kept = memory_of(torch.cat(patches), memory_size, work.seed)
    tiles = Remembered(memory, torch.tensor(owners)[kept])
    usual = torch.cat([distances(tiles.without(i), counting[None, None]).flatten() for i, counting in some]).mean()
    return tiles._replace(memory=memory._replace(expected=usual.view(1, 1)))


def _random_tiles(
    network: Network, image: Input, number: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tiles (3, H, W) in 0 … 1 at random places of a photo, and the region of interest in each, (H, W) of bool."""
    assert image.source is not None
    photo = at_scale(image.source, network.settings.scale, image.region)
    region = np.ones(photo.shape[:2], bool) if image.region is None else scaled(image.region, photo.shape[:2])
    height, width = network.tile_size
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


def _simulated(work: TileJob, remembered: Remembered, scores: Sequence[float]) -> list[ScoredDefect]:
    """Defects that are drawn into held-out photos, a tile's size at most.

    A photo's score with a defect is the highest of its own and of what its map has where the defect is.
    """
    defects: list[ScoredDefect] = []
    chosen = work.photos.held_out[:SCORED_PHOTOS]
    generator = torch.Generator().manual_seed(work.seed)
    for place, (i, image) in enumerate(work.read(chosen)):
        learnt, memory = work.without(remembered, i)
        for number in range(place, MAX_DEFECTS, len(chosen)):
            kind = KINDS[number % len(KINDS)]
            drawn = _drawn(work.network, image, kind, work.seed * 1_000_003 + number, generator)
            if drawn is not None:
                peak = _peak_around(work, learnt, memory, image, drawn)
                length = round(drawn.length / work.network.settings.scale, 1)
                score = max(scores[place], peak) if place < len(scores) else peak
                defects.append(ScoredDefect(kind, length, score))
    return defects


class _Drawn(NamedTuple):
    """A scaled photo (h, w, 3) with a defect in one of its tiles."""

    photo: np.ndarray
    length: float  # of the defect, in pixels of the scaled photo
    corner: tuple[int, int]  # of the tile: top, left
    tile: tuple[int, int]  # its height and width
    region: np.ndarray  # of interest in the scaled photo


def _drawn(network: Network, image: Input, kind: str, seed: int, generator: torch.Generator) -> _Drawn | None:
    """A photo with a defect at a random place in its region of interest; None where none was found."""
    assert image.source is not None
    photo = at_scale(image.source, network.settings.scale, image.region)
    height, width = (min(side, tile) for side, tile in zip(photo.shape[:2], network.tile_size, strict=True))
    region = np.ones(photo.shape[:2], bool) if image.region is None else scaled(image.region, photo.shape[:2])
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
    defect = simulate(
        crop(photo, (top, left), (height, width)),
        crop(photo, other, (height, width)),
        kind,
        seed,
        torch.from_numpy(np.ascontiguousarray(inside)),
    )
    changed = photo.copy()
    pixels = (defect.pixels * 255).permute(1, 2, 0).numpy()
    changed[top : top + height, left : left + width] = pixels.round() if changed.dtype == np.uint8 else pixels
    return _Drawn(changed, defect.length, (top, left), (height, width), region)


def _peak_around(work: TileJob, learnt: Learnt, memory: Memory, image: Input, drawn: _Drawn) -> float:
    """The highest value of the photo's map around a defect."""
    network, tiles, photo = work.network, work.product.learnt.tiles, drawn.photo
    assert tiles is not None
    (top, left), (height, width) = drawn.corner, drawn.tile
    corner = max(0, top - OVERLAP) // STEP * STEP, max(0, left - OVERLAP) // STEP * STEP
    near = np.s_[corner[0] : top + height + OVERLAP, corner[1] : left + width + OVERLAP]
    size = work.preparation.input_size(work.product.name)
    seen = prepared(photo, size, network.settings.letterbox, region=image.region)
    whole = work.whole_map(learnt, seen)
    whole = enlarged(whole, (photo.shape[0] // PIXELS_A_VALUE, photo.shape[1] // PIXELS_A_VALUE))
    rows, columns = (slice(part.start // PIXELS_A_VALUE, part.stop // PIXELS_A_VALUE) for part in near)
    part = whole[rows, columns]
    grid = close_grid(network.tile_view(memory).distances, network.tile_size, photo[near])
    whole_grid = (math.ceil(photo.shape[0] / STRIDE), math.ceil(photo.shape[1] / STRIDE))
    expected = enlarged(tiles.expected, whole_grid)[
        tuple(slice(s.start // STRIDE, math.ceil(s.stop / STRIDE)) for s in near)
    ]
    close = smoothed(expecting(grid, expected), (part.shape[0], part.shape[1]))
    return float(fused(tiles, part, close, drawn.region[near]).max())


def _seen(work: TileJob, learnt: Learnt, memory: Memory, image: Input) -> _Seen:
    assert image.source is not None
    view = work.network.tile_view(memory)
    photo = at_scale(image.source, view.scale, image.region)
    whole = enlarged(work.whole_map(learnt, image), map_size(photo))
    return _Seen(whole, close_grid(view.distances, view.size, photo), image.region)


def _close(seen: _Seen, expected: Tensor) -> Tensor:
    """The map (u, v) of a photo's tiles."""
    return smoothed(expecting(seen.grid, expected), (seen.whole.shape[0], seen.whole.shape[1]))


def expected_from(grids: Sequence[Tensor]) -> Tensor:
    """What good photos have at each place (r, c), from how unusual their positions are for any tile.

    A place's mean is taken with its neighbours', and drawn to the mean over all places where photos are few. Of very
    few nothing is said.
    """
    if len(grids) < MIN_PHOTOS:
        return torch.ones(1, 1)
    rows, columns = grids[0].shape
    same = [cv2.resize(grid.numpy(), (columns, rows), interpolation=cv2.INTER_LINEAR) for grid in grids]
    mean = np.mean(same, axis=0)
    local = cv2.blur(mean, (NEAR, NEAR), borderType=cv2.BORDER_REFLECT)
    return torch.from_numpy((len(same) * local + PRIOR * mean.mean()) / (len(same) + PRIOR)).float()


def _inside(values: Tensor, region: np.ndarray | None) -> Tensor:
    """The values of a map (u, v) in a region of interest."""
    if region is None:
        return values.flatten()
    return values[at_size(torch.from_numpy(region), (values.shape[0], values.shape[1]))]
