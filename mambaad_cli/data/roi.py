"""The region of interest: the part of a product's photos that counts. Nothing outside it is inspected.

A region is a mask (h, w) of bool, as large as the product's photos or smaller; photos of other sizes scale it.

Letters: h × w pixels of a photo, H × W pixels of the model's input.
"""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.image_files import SUFFIXES, ImageFile, is_hidden, same_name
from mambaad_cli.files import sha256_of, shown

BLANK = (124, 116, 104)  # what takes the place of pixels outside: the mean colour of the encoder's training, 0…255
MAX_MASK_SIDE = 2048  # pixels: a mask with a longer side is scaled down
MASK_THRESHOLD = 127  # the pixels of a mask above it count
SYNTAX = "x,y,width,height; three or more corners x,y; or a mask image; pixels or per cent of the photo"


class Wish(NamedTuple):
    """One region as it was typed: for one product, or for all that have no mask of their own in a folder."""

    product: str | None
    corners: tuple[tuple[str, str], ...]  # x, y of a polygon, in pixels or with %; empty: a mask
    mask: Path | None

    def of(self, product: str) -> bool:
        """Whether it is a region of this product. A folder of masks is one where it holds a mask of that name."""
        if self.mask is not None and self.mask.is_dir():
            return _mask_named(self.mask, product) is not None
        return self.product in (None, product)

    def drawn(self, product: str, size: tuple[int, int]) -> np.ndarray:
        """Its mask (h, w) of bool for photos of size (h, w).

        Raises MambaADError where it has no area within the photo, and for a mask of another size.
        """
        if self.mask is not None:
            path = _mask_named(self.mask, product) if self.mask.is_dir() else self.mask
            assert path is not None  # asked `of` before
            return read_region(path, size)
        height, width = size
        points = np.array([(_pixels(x, width), _pixels(y, height)) for x, y in self.corners])
        mask = filled(points, size)
        if not mask.any():
            typed = " ".join(",".join(corner) for corner in self.corners)
            where = f"lies outside photos of {width}×{height}" if _area(points) >= 1 else "encloses no area"
            raise MambaADError(f"the region {typed} {where}")
        return mask


def filled(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a photo (h, w) whose centres lie in a polygon of corners (n, 2), x and y: even-odd rule.

    >>> filled(np.array([[0, 0], [2, 0], [2, 1], [0, 1]]), (2, 3)).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    x, y = np.arange(size[1]) + 0.5, (np.arange(size[0]) + 0.5)[:, None]
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            inside ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def parse(text: str) -> Wish:
    """A region as it is typed; `product=` before it names the product.

    - `x,y,width,height`: a rectangle
    - `x,y x,y x,y …`: a polygon
    - a mask image, white where it counts; or a folder of masks named like the products

    Numbers are pixels, or per cent of the photo's width or height with `%`. Raises MambaADError for anything else.

    >>> parse("10%,0,50%,100%").corners
    (('10%', '0'), ('60%', '0'), ('60%', '100%'), ('10%', '100%'))
    >>> parse("nut=0,0 20,0 0,20").product
    'nut'
    """
    there = os.path.exists(text)  # noqa: PTH110 (Path.exists raises where the name is too long)
    product, equals, rest = text.partition("=")
    if equals and not there:
        return parse(rest)._replace(product=product)
    if there or text.lower().endswith(SUFFIXES):
        return Wish(None, (), Path(text))
    corners = [tuple(corner.split(",")) for corner in text.replace(";", " ").split()]
    if not all(_is_length(number) for corner in corners for number in corner):
        raise MambaADError(f"region {text!r}: expected {SYNTAX}")
    if len(corners) == 1 and len(corners[0]) == 4:
        x, y, width, height = corners[0]
        right, bottom = _sum(x, width), _sum(y, height)
        return Wish(None, ((x, y), (right, y), (right, bottom), (x, bottom)), None)
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise MambaADError(f"region {text!r}: a polygon has three or more corners; expected {SYNTAX}")
    return Wish(None, tuple((corner[0], corner[1]) for corner in corners), None)


def regions_of_interest(
    inside: Sequence[Wish], ignored: Sequence[Wish], photos: dict[str, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """The mask of each product that has one: all of its regions together, less what is ignored.

    photos: height and width of the photos of each product. A product without a wish has no mask: its whole photos
    count. Raises MambaADError for a product that is not there, and where nothing is left.
    """
    for wish in (*inside, *ignored):
        if wish.product is not None and wish.product not in photos:
            raise MambaADError(f"a region is of product {wish.product!r}: the products are {', '.join(photos)}")
    regions = {}
    for product, size in photos.items():
        kept = [wish.drawn(product, size) for wish in inside if wish.of(product)]
        left_out = [wish.drawn(product, size) for wish in ignored if wish.of(product)]
        if not (kept or left_out):
            continue
        mask = np.any(kept, axis=0) if kept else np.ones(size, bool)
        if left_out:
            mask &= ~np.any(left_out, axis=0)
        if not mask.any():
            raise MambaADError(f"{product}: nothing is left of its photos: all of the region is ignored")
        regions[product] = smaller(mask)
    return regions


def read_region(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask image as (h, w) of bool. Raises MambaADError where it is not of that size, or black all over."""
    mask = images.read(path).max(axis=2) > MASK_THRESHOLD
    if mask.shape != size:
        raise MambaADError(
            f"mask {shown(path)} is {mask.shape[1]}×{mask.shape[0]} pixels, its photos are {size[1]}×{size[0]}"
        )
    if not mask.any():
        raise MambaADError(f"mask {shown(path)} is black all over: nothing of its photos would count")
    return mask


class MaskFolder:
    """A folder with a mask for each photo, of the same stem: where the part moves from photo to photo.

    Photos of several products often have the same names. Sub-folders tell their masks apart: the mask belongs to the
    photo whose own folders have the same names, `masks/nut/000.png` to `photos/nut/000.jpg`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masks_by_stem: dict[str, list[ImageFile]] = {}
        for file in images.find([folder]):
            self.masks_by_stem.setdefault(same_name(file.path.stem), []).append(file)
        self.folder_names = {name for files in self.masks_by_stem.values() for file in files for name in _folders(file)}

    def of(self, photo: Path, size: tuple[int, int]) -> np.ndarray:
        """The mask of a photo of size (h, w). Raises ImageError of the photo where there is none, or more than one."""
        try:
            return read_region(self.mask_of(photo), size)
        except MambaADError as error:
            raise images.ImageError(photo, str(error)) from None

    def mask_of(self, photo: Path) -> Path:
        """The mask whose folders agree best with those of the photo, compared from the innermost outwards."""
        absolute = Path(os.path.abspath(photo))  # noqa: PTH100 (Path.resolve follows links)
        photo_folders = [same_name(name) for name in absolute.parent.parts[::-1]]
        stem = same_name(photo.stem)
        masks = self.masks_by_stem.get(stem) or self.masks_by_stem.get(f"{stem}_mask", [])  # as MVTec AD names them
        agreements = [_agreement(_folders(mask), photo_folders) for mask in masks]
        fitting = [mask for mask, agreement in zip(masks, agreements, strict=True) if agreement == max(agreements)]
        if len(fitting) > 1:  # `1.jpg` and `1.png` in one folder
            fitting = [mask for mask in fitting if same_name(mask.path.name) == same_name(photo.name)] or fitting
        if not fitting:
            raise MambaADError(f"no mask named {shown(photo.stem)} in {shown(self.folder)}")
        others = self.folder_names.intersection(photo_folders).difference(_folders(fitting[0]))
        if not max(agreements).complete and others:  # the photo's own folder of masks has none of this name
            where = " and ".join(shown(name) for name in sorted(others))
            raise MambaADError(f"no mask named {shown(photo.stem)} in {shown(self.folder)}, in a folder {where}")
        if len(fitting) > 1:
            both = " and ".join(shown(mask.path) for mask in fitting[:2])
            raise MambaADError(f"two masks fit it, {both}: put them into folders named as those of the photos")
        return fitting[0].path

    def digest(self) -> str:
        """SHA-256 over the names and the bytes of all masks: it changes where any of them does."""
        digest = hashlib.sha256()
        files = sorted(
            (file for masks in self.masks_by_stem.values() for file in masks), key=lambda file: file.relative
        )
        for file in files:
            digest.update(f"{sha256_of(file.path)} {file.relative.as_posix()}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _folders(mask: ImageFile) -> list[str]:
    """The folders of a mask below the folder of masks, the innermost first."""
    return [same_name(name) for name in mask.relative.parent.parts[::-1]]


class _Agreement(NamedTuple):
    """How well the folders of a mask agree with those of a photo: the larger the better."""

    complete: bool  # each folder of the mask is one of the photo's, in the same order
    innermost: int  # how many agree, counted from the innermost without a gap
    in_order: int  # how many are folders of the photo, in the same order


def _agreement(mask_folders: Sequence[str], photo_folders: Sequence[str]) -> _Agreement:
    """Of two lists of folders, the innermost first.

    >>> _agreement(["nut", "left"], ["nut", "right", "photos"])
    _Agreement(complete=False, innermost=1, in_order=1)
    >>> _agreement(["nut"], ["today", "nut", "photos"])
    _Agreement(complete=True, innermost=0, in_order=1)
    """
    pairs = zip(mask_folders, photo_folders, strict=False)
    innermost = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    remaining = iter(photo_folders)
    in_order = sum(1 for _ in itertools.takewhile(lambda name: name in remaining, mask_folders))
    return _Agreement(in_order == len(mask_folders), innermost, in_order)


def smaller(mask: np.ndarray) -> np.ndarray:
    """The mask with its longer side at most MAX_MASK_SIDE.

    >>> smaller(np.ones((10, 4096), bool)).shape
    (5, 2048)
    """
    factor = MAX_MASK_SIDE / max(mask.shape)
    if factor >= 1:
        return mask
    return scaled(mask, (max(1, round(mask.shape[0] * factor)), max(1, round(mask.shape[1] * factor))))


def scaled(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at another size (height, width): a pixel counts where at least half of it lies inside.

    >>> scaled(np.array([[True, True, False, False]]), (2, 2)).tolist()
    [[True, False], [True, False]]
    """
    if mask.shape == size:
        return mask
    grows = size[0] > mask.shape[0] or size[1] > mask.shape[1]
    interpolation = cv2.INTER_NEAREST_EXACT if grows else cv2.INTER_AREA
    return cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=interpolation) >= 0.5


def blanked(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture (h, w, 3) in 0…255 with nothing to be seen outside the mask: a copy of its type."""
    inside = scaled(mask, (picture.shape[0], picture.shape[1]))[..., None]
    return np.where(inside, picture, np.array(BLANK, picture.dtype))


def encoded(mask: np.ndarray) -> np.ndarray:
    """The mask as the bytes of a PNG."""
    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].ravel()


def decoded(data: np.ndarray) -> np.ndarray:
    """The mask from the bytes of a PNG. Raises ValueError where they are damaged, or claim too many pixels."""
    try:
        return images.decoded_bytes(data).max(axis=2) > MASK_THRESHOLD
    except ValueError as error:
        raise ValueError(f"a region that cannot be decoded: {error}") from None


def _mask_named(folder: Path, product: str) -> Path | None:
    """The mask of a product in a folder. Raises MambaADError where there are two."""
    masks = sorted(
        path
        for path in folder.iterdir()
        if same_name(path.stem) == same_name(product)
        and path.name.lower().endswith(SUFFIXES)
        and not is_hidden(path.name)
    )
    if len(masks) > 1:
        raise MambaADError(f"two masks of {shown(product)}: {shown(masks[0])} and {shown(masks[1])}")
    return masks[0] if masks else None


def _is_length(text: str) -> bool:
    try:
        return abs(float(text.removesuffix("%"))) < 1e9
    except ValueError:
        return False


def _pixels(text: str, side: int) -> float:
    """
    >>> _pixels("25%", 80), _pixels("25", 80), _pixels("10+25%", 80)
    (20.0, 25.0, 30.0)
    """
    return sum(
        float(part.removesuffix("%")) * (side / 100 if part.endswith("%") else 1) for part in text.split("+") if part
    )


def _sum(start: str, length: str) -> str:
    """Where a side ends.

    >>> _sum("10%", "50%"), _sum("3", "4"), _sum("3", "50%")
    ('60%', '7', '3+50%')
    """
    if not float(start.removesuffix("%")):
        return length
    units = {text[-1:] == "%" for text in (start, length)}
    if len(units) == 2:
        return f"{start}+{length}"
    total = float(start.removesuffix("%")) + float(length.removesuffix("%"))
    return f"{total:g}" + ("%" if units == {True} else "")


def _area(points: np.ndarray) -> float:
    """Of a polygon, in pixels."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
