"""Photos at their own resolution: overlapping tiles, compared with a memory of good tiles, make one map of the photo.

The map of the whole photo stays beside it, for what is missing or misplaced. The two maps are added, each in units of
its values on good photos.

Letters: h × w pixels of the scaled photo, r × c positions at the stride of the memory, u × v values of the map.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mambaad_cli.data import roi
from mambaad_cli.data.loading import at_size, cold_outside
from mambaad_cli.model.fusion import Fusion, fuse_witnesses
from mambaad_cli.model.memory import Memory, without_border
from mambaad_cli.model.settings import STEP

STRIDE = 8  # pixels between the positions of the memory
OVERLAP = 64  # pixels that a tile shares with the next one at least
MARGIN = 16  # pixels at a tile's inner borders that do not count: there the encoder sees its own padding
PIXELS_A_VALUE = 4  # of the scaled photo, along a side, for one value of the map
SIGMA = 1.5  # values by which the map is smoothed
BATCH = 8  # tiles that go through the encoder together


class Tiles(NamedTuple):
    """What good tiles of one product are like."""

    memory: Memory  # its expected distance is that of any tile; empty in an exported model, whose network has it
    expected: Tensor  # (r, c): what good photos have at each place, in units of that
    fusion: Fusion  # of the whole photo's map, in the decoder's place, and of the tiles'


class TileView(NamedTuple):
    """How a model sees photos in tiles."""

    size: tuple[int, int]  # height and width of a tile
    scale: float  # of photos, before tiles are cut from them
    distances: Callable[[Tensor], Tensor]  # tiles (b, 3, H, W) in 0 … 1 to how unusual their positions are, (b, r, c)


def photo_map(tiles: Tiles, view: TileView, whole: Tensor, photo: np.ndarray, region: np.ndarray | None) -> Tensor:
    """The map (u, v) of a photo (h, w, 3) in 0…255 from the map of the whole and from its tiles.

    region: its region of interest; `whole` is cold outside it already.
    """
    seen = at_scale(photo, view.scale, region)
    grid = close_grid(view.distances, view.size, seen)
    close = smoothed(expecting(grid, tiles.expected), map_size(seen))
    return fused(tiles, enlarged(whole, (close.shape[0], close.shape[1])), close, region)


def fused(tiles: Tiles, whole: Tensor, close: Tensor, region: np.ndarray | None) -> Tensor:
    """One map (u, v) from those of the whole photo and of its tiles, cold outside a region of interest of any size."""
    both = fuse_witnesses(tiles.fusion, whole[None], close[None])
    if region is not None:
        both = cold_outside(both, at_size(torch.from_numpy(region), (both.shape[1], both.shape[2])))
    return both[0]


def enlarged(whole: Tensor, size: tuple[int, int]) -> Tensor:
    """The map of the whole photo at the size of the tiles' map."""
    return torch.from_numpy(cv2.resize(whole.numpy(), (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def map_size(photo: np.ndarray) -> tuple[int, int]:
    """Values (u, v) of the map of a scaled photo (h, w, 3)."""
    return max(1, photo.shape[0] // PIXELS_A_VALUE), max(1, photo.shape[1] // PIXELS_A_VALUE)


def expecting(grid: Tensor, expected: Tensor) -> Tensor:
    """The grid (r, c) of a photo in units of what good photos have at each place, a grid of any size."""
    rows, columns = grid.shape
    return grid / torch.from_numpy(cv2.resize(expected.cpu().numpy(), (columns, rows), interpolation=cv2.INTER_LINEAR))


def close_grid(distances: Callable[[Tensor], Tensor], tile: tuple[int, int], photo: np.ndarray) -> Tensor:
    """How unusual each position of a scaled photo (h, w, 3) in 0…255 is for any tile: (r, c), on the CPU.

    distances: tiles (b, 3, H, W) in 0 … 1 to how unusual their positions are. tile: height and width of one.
    """
    size = photo.shape[0], photo.shape[1]
    padded = padded_to_tiles(photo, tile)
    rows, columns = padded.shape[0] // STRIDE, padded.shape[1] // STRIDE
    total, weight = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for corners, pixels in batches(padded, tile):
        for (top, left), tile_grid in zip(corners, distances(pixels).cpu(), strict=True):
            window = blending_window((top, left), (tile_grid.shape[0], tile_grid.shape[1]), (rows, columns))
            place = np.s_[top : top + tile_grid.shape[0], left : left + tile_grid.shape[1]]
            total[place] += window * tile_grid
            weight[place] += window
    return (total / weight)[: math.ceil(size[0] / STRIDE), : math.ceil(size[1] / STRIDE)]


def smoothed(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Values (r, c) at STRIDE as a map of `size`, without its steps."""
    large = cv2.resize(without_border(grid[None])[0].numpy(), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(cv2.GaussianBlur(large, (0, 0), SIGMA, borderType=cv2.BORDER_REFLECT))


def at_scale(photo: np.ndarray, scale: float, region: np.ndarray | None = None) -> np.ndarray:
    """A photo (h, w, 3) as tiles see it: scaled, with nothing to be seen outside its region of interest."""
    if scale != 1:
        height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        photo = cv2.resize(photo, (width, height), interpolation=way)
    return photo if region is None else roi.blanked(photo, region)


def padded_to_tiles(photo: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """A photo whose sides are multiples of STEP and no shorter than a tile: edge pixels are repeated."""
    bottom, right = (
        max(side, STEP * math.ceil(length / STEP)) - length for side, length in zip(tile, photo.shape[:2], strict=True)
    )
    return cv2.copyMakeBorder(photo, 0, bottom, 0, right, cv2.BORDER_REPLICATE) if bottom or right else photo


def corners_of(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side of the photo, evenly spread, in pixels.

    >>> corners_of(1024, 384), corners_of(384, 384)
    ([0, 320, 640], [0])
    """
    number = 1 + math.ceil((length - tile) / (tile - OVERLAP))
    return [STEP * round((length - tile) * i / max(1, number - 1) / STEP) for i in range(number)]


def batches(photo: np.ndarray, tile: tuple[int, int]) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Tiles of a padded photo, a batch at a time: (row, column) of the first position of each, and (b, 3, H, W)."""
    rows, columns = corners_of(photo.shape[0], tile[0]), corners_of(photo.shape[1], tile[1])
    corners = [(top, left) for top in rows for left in columns]
    for start in range(0, len(corners), BATCH):
        some = corners[start : start + BATCH]
        pixels = torch.stack([crop(photo, corner, tile) for corner in some])
        yield [(top // STRIDE, left // STRIDE) for top, left in some], pixels


def crop(photo: np.ndarray, corner: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """A tile (3, H, W) in 0 … 1 of a photo (h, w, 3) in 0…255."""
    part = photo[corner[0] : corner[0] + tile[0], corner[1] : corner[1] + tile[1]]
    return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).float() / 255


def blending_window(corner: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]) -> Tensor:
    """Weights (r, c) of a tile's positions: they fall towards its borders, but not at those of the photo.

    corner, size and whole: in positions.
    """
    ramps = []
    for start, length, end in zip(corner, size, whole, strict=True):
        at = torch.arange(length) + 0.5
        before = (at - MARGIN / STRIDE) if start > 0 else torch.full((length,), math.inf)
        after = (length - at - MARGIN / STRIDE) if start + length < end else torch.full((length,), math.inf)
        ramps.append((torch.minimum(before, after) / ((OVERLAP - 2 * MARGIN) / STRIDE)).clamp(1e-6, 1))
    return ramps[0][:, None] * ramps[1]
