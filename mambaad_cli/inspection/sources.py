"""Where the patches of a memory come from: photos by their names, places in these, and small pictures of the photos.

Letters: m patches of a memory, h × w positions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad_cli.data.loading import Box

UNITS = 65535  # of a photo's side, that places count in
MAX_BYTES = 3_000_000  # of all pictures of a product


class Origin(NamedTuple):
    """Where a good patch comes from."""

    photo: str  # its name; "" where it is not known
    x: float | None  # in shares of the photo's width and height; None where the place is not known
    y: float | None
    encoded: np.ndarray | None  # the bytes of a small picture of the whole photo, where one was kept


UNKNOWN = Origin("", None, None, None)


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the patches of a product's memories come from. Patches that joined a memory later are not listed."""

    photos: tuple[str, ...]  # names
    places: tuple[Tensor, ...]  # (m, 3) int32 a view: number of the photo, then x and y in UNITS; −1: not known
    pictures: tuple[Tensor, ...]  # of each photo, uint8: the bytes of an image file; empty where none was kept

    def origin(self, view: int, patch: int) -> Origin:
        """Where a patch of the memory of a view comes from."""
        if patch >= len(self.places[view]):
            return UNKNOWN
        number, x, y = self.places[view][patch].tolist()
        if number < 0:
            return UNKNOWN
        picture = self.pictures[number]
        known = min(x, y) >= 0
        encoded = picture.numpy() if len(picture) else None
        return Origin(self.photos[number], x / UNITS if known else None, y / UNITS if known else None, encoded)


def grid_places(grid: tuple[int, int]) -> Tensor:
    """The middles of positions (h, w), as x, y in shares of width and height: (h, w, 2).

    >>> grid_places((1, 2)).tolist()
    [[[0.25, 0.5], [0.75, 0.5]]]
    """
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


def on_photo(places: Tensor, box: Box | None, size: tuple[int, int]) -> Tensor:
    """Places (…, 2) of an image of `size` (H, W) as those of the photo that lies in its box, in shares of each."""
    if box is None:
        return places
    top, left, height, width = box
    scale = places.new_tensor([size[1] / width, size[0] / height])
    return (places * scale - places.new_tensor([left / width, top / height])).clamp(0, 1)
