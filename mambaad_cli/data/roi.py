"""The region of interest: the part of a product's photos that counts. Nothing outside it is looked at.

A region is a mask (h, w) of bool, as large as the product's photos or smaller; photos of other sizes scale it.

Letters: h × w pixels of a photo, H × W pixels of the model's input.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import SUFFIXES
from mambaad_cli.files import shown

BLANK = (124, 116, 104)  # what takes the place of pixels outside: the mean colour of the encoder's training, 0…255
LONGEST = 2048  # pixels of a mask's longer side: larger ones are kept smaller
WHITE = 127  # a mask's pixel counts above it
SYNTAX = "x,y,width,height; three or more corners x,y; or a mask image; pixels or per cent of the photo"


class Wish(NamedTuple):
    """One region as it was typed: for one product, or for all that have no mask of their own in a folder."""

    product: str | None
    corners: tuple[tuple[str, str], ...]  # x, y of a polygon, in pixels or with %; empty: a mask
    mask: Path | None

    def of(self, product: str) -> bool:
        """Whether it speaks of this product. A folder does where it holds a mask of that name."""
        if self.mask is not None and self.mask.is_dir():
            return _in_folder(self.mask, product) is not None
        return self.product in (None, product)

    def drawn(self, product: str, size: tuple[int, int]) -> np.ndarray:
        """Its mask (h, w) of bool for photos of size (h, w).

        Raises MambaADError where it has no area within the photo, and for a mask of another size.
        """
        if self.mask is not None:
            path = _in_folder(self.mask, product) if self.mask.is_dir() else self.mask
            assert path is not None  # asked `of` before
            return read_region(path, size)
        height, width = size
        points = np.array([(_pixels(x, width), _pixels(y, height)) for x, y in self.corners])
        found = filled(points, size)
        if not found.any():
            typed = " ".join(",".join(corner) for corner in self.corners)
            where = f"lies outside photos of {width}×{height}" if _area(points) >= 1 else "encloses no area"
            raise MambaADError(f"the region {typed} {where}")
        return found


def filled(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a photo (h, w) whose centres lie in a polygon of corners (n, 2), x and y: even-odd rule.

    >>> filled(np.array([[0, 0], [2, 0], [2, 1], [0, 1]]), (2, 3)).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    x, y = np.arange(size[1]) + 0.5, (np.arange(size[0]) + 0.5)[:, None]
    found = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            found ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found


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
    product, equals, rest = text.partition("=")
    if equals and not Path(text).exists():
        return parse(rest)._replace(product=product)
    path = Path(text)
    if (text and path.exists()) or text.lower().endswith(SUFFIXES):
        return Wish(None, (), path)
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

    photos: height and width of the photos of each product. A product that no wish speaks of has no mask: its whole
    photos count. Raises MambaADError for a product that is not there, and where nothing is left.
    """
    for wish in (*inside, *ignored):
        if wish.product is not None and wish.product not in photos:
            raise MambaADError(f"a region is of product {wish.product!r}: the products are {', '.join(photos)}")
    found = {}
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
        found[product] = smaller(mask)
    return found


def read_region(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask image as (h, w) of bool. Raises MambaADError where it is not of that size, or black all over."""
    mask = images.read(path).max(axis=2) > WHITE
    if mask.shape != size:
        raise MambaADError(
            f"mask {shown(path)} is {mask.shape[1]}×{mask.shape[0]} pixels, its photos are {size[1]}×{size[0]}"
        )
    if not mask.any():
        raise MambaADError(f"mask {shown(path)} is black all over: nothing of its photos would count")
    return mask


class MaskFolder:
    """A folder with a mask for each photo, of the same stem: where the part moves from photo to photo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masks = {file.path.stem: file.path for file in images.find([folder])}

    def of(self, photo: Path, size: tuple[int, int]) -> np.ndarray:
        """The mask of a photo of size (h, w). Raises ImageError of the photo where there is none that fits."""
        if photo.stem not in self.masks:
            raise images.ImageError(photo, f"no mask named {photo.stem} in {shown(self.folder)}")
        try:
            return read_region(self.masks[photo.stem], size)
        except MambaADError as error:
            raise images.ImageError(photo, str(error)) from None


def smaller(mask: np.ndarray) -> np.ndarray:
    """The mask with its longer side at most LONGEST.

    >>> smaller(np.ones((10, 4096), bool)).shape
    (5, 2048)
    """
    factor = LONGEST / max(mask.shape)
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
    way = cv2.INTER_NEAREST_EXACT if grows else cv2.INTER_AREA
    return cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=way) >= 0.5


def blanked(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture (h, w, 3) in 0…255 with nothing to be seen outside the mask: a copy of its type."""
    own = scaled(mask, (picture.shape[0], picture.shape[1]))[..., None]
    return np.where(own, picture, np.array(BLANK, picture.dtype))


def encoded(mask: np.ndarray) -> np.ndarray:
    """The mask as the bytes of a PNG."""
    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].ravel()


def decoded(data: np.ndarray) -> np.ndarray:
    """The mask from the bytes of a PNG. Raises ValueError where they are damaged."""
    mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError("a region that cannot be decoded")
    return mask > WHITE


def _in_folder(folder: Path, product: str) -> Path | None:
    return next(iter(_named(folder.iterdir(), product)), None)


def _named(paths: Iterable[Path], stem: str) -> list[Path]:
    return sorted(path for path in paths if path.stem == stem and path.name.lower().endswith(SUFFIXES))


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
