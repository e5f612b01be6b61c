"""Where the patches of a product's memories come from, with small pictures of the photos, for explanations."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import Wanted, read_ahead
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.sources import MAX_BYTES, UNITS, Sources
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.memories import KNOWN, Remembered, RememberedViews
from mambaad_cli.training.splits import evenly_spread

MAX_PICTURES = 400  # of a product
LARGEST, SMALLEST = 640, 160  # pixels of a picture's longer side: few photos get large pictures
LARGE_PICTURES = 40  # photos that all get pictures of the largest size
QUALITIES = (80, 60, 40, 20)  # of a WebP file: the first one that fits is taken
NO_BYTES = torch.empty(0, dtype=torch.uint8)


def sources_of(job: Job, good: GoodImages, product: Product, views: RememberedViews | None) -> Sources | None:
    """Where the patches of the memories of a product come from, earlier ones among them.

    None where there is no memory, and where the model is to carry no images.
    """
    if not views or not job.recipe.keep_examples:
        return None
    numbers: dict[int, int] = {}  # of photos in the result: by number of the image, KNOWN − p for photo p of before
    earlier = product.learnt.sources
    places = tuple(_places(view, number, earlier, numbers) for number, view in enumerate(views))
    new = [image for image in numbers if image >= 0]
    if not numbers:
        return None  # all patches are of photos that are not known
    paths = {image: path for image in new if (path := good.paths[image] if good.paths else None) is not None}
    names = dict(zip(paths, names_of(list(paths.values())), strict=True))
    known: dict[int, Tensor] = {}
    if earlier is not None:
        names |= {image: earlier.photos[KNOWN - image] for image in numbers if image < 0}
        known = {image: earlier.pictures[KNOWN - image] for image in numbers if image < 0}
    kept = _fewer(known, MAX_BYTES * len(known) // max(1, len(numbers)))
    room = MAX_BYTES - sum(map(len, kept.values()))
    pictures = kept | small_pictures(paths, room, max(0, MAX_PICTURES - len(kept)))
    return Sources(
        tuple(names.get(image, "") for image in numbers),
        places,
        tuple(pictures.get(image, NO_BYTES) for image in numbers),
    )


def _places(view: Remembered, number: int, earlier: Sources | None, numbers: dict[int, int]) -> Tensor:
    """The places (m, 3) of a memory's patches, see `Sources`. Photos that are not in `numbers` yet are added to it."""
    rows = []
    where = [[None, None]] * len(view.owners) if view.places is None else view.places.tolist()
    for owner, (x, y) in zip(view.owners.tolist(), where, strict=True):
        if owner >= 0:
            row = [numbers.setdefault(owner, len(numbers))]
            rows.append([*row, -1, -1] if x is None else [*row, round(UNITS * x), round(UNITS * y)])
            continue
        known = [-1, -1, -1]
        if earlier is not None and KNOWN - owner < len(earlier.places[number]):
            known = earlier.places[number][KNOWN - owner].tolist()
        if known[0] >= 0:
            known[0] = numbers.setdefault(KNOWN - known[0], len(numbers))
        rows.append(known)
    return torch.tensor(rows, dtype=torch.int32)


def names_of(paths: Sequence[Path]) -> list[str]:
    """The photos' paths below the folder that holds all of them, so that a model names no folders of its maker.

    >>> names_of([Path("/data/nut/a.png"), Path("/data/nut/day2/a.png")])
    ['a.png', 'day2/a.png']
    """
    if not paths:
        return []
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(folder).as_posix() for path in paths]


def _fewer(pictures: dict[int, Tensor], limit: int) -> dict[int, Tensor]:
    """So many of the pictures, evenly spread, that all together take no more bytes than the limit."""
    chosen = list(pictures)
    while chosen and sum(len(pictures[image]) for image in chosen) > limit:
        chosen = evenly_spread(chosen, len(chosen) * 9 // 10)
    return {image: pictures[image] for image in chosen}


def small_pictures(paths: dict[int, Path], limit: int, most: int = MAX_PICTURES) -> dict[int, Tensor]:
    """Small pictures of photos, as the bytes of WebP files; together they take no more bytes than the limit.

    Where there are more photos than `most`, some have none. A file that cannot be read any more has none either.
    """
    chosen = evenly_spread(list(paths), most) if paths and most else []
    if not chosen:
        return {}
    side = max(SMALLEST, min(LARGEST, round(LARGEST * (LARGE_PICTURES / len(chosen)) ** 0.5)))

    def size(place: int, shape: tuple[int, int]) -> tuple[int, int]:
        factor = min(1.0, side / max(shape))
        return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))

    pictures = {}
    wanted = Wanted(size, largest=(side, side))
    for image, read in zip(chosen, read_ahead([paths[image] for image in chosen], wanted), strict=True):
        if not isinstance(read, ImageError):
            picture = (read.pixels * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
            pictures[image] = torch.from_numpy(_encoded(picture, limit // len(chosen)))
    return pictures


def _encoded(picture: np.ndarray, limit: int) -> np.ndarray:
    """The bytes of a WebP file of a picture (h, w, 3) in BGR order: worse, then smaller, until it fits the limit."""
    for quality in QUALITIES:
        encoded = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].ravel()
        if len(encoded) <= limit:
            return encoded
    if min(picture.shape[:2]) < 16:
        return np.empty(0, np.uint8)
    return _encoded(cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), limit)
