"""Image files: find them, read one as RGB, scale it to what the model takes, write one.

Letters: h rows, w columns. An image is an array (h, w, 3) of RGB in 0…255; the model takes a tensor (3, h, w) in 0…1.

OpenCV decodes, after image_headers has read what OpenCV does not check: completeness, size, orientation, transparency.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from mambaad_cli import MambaADError
from mambaad_cli.data import heif
from mambaad_cli.data.image_files import (
    EXPECTED,
    HEIF_SUFFIXES,
    SUFFIXES,
    ImageFile,
    describe_unread,
    find,
    is_hidden,
    natural_order,
    unread_suffix,
)
from mambaad_cli.data.image_headers import Header, read_header
from mambaad_cli.files import shown, written_whole

__all__ = [
    "EXPECTED",
    "SUFFIXES",
    "ImageError",
    "ImageFile",
    "Opened",
    "as_rgb",
    "decoded_bytes",
    "describe_unread",
    "errors_of",
    "find",
    "is_hidden",
    "letterbox",
    "natural_order",
    "opened",
    "read",
    "resize",
    "shape_of",
    "unread_suffix",
    "write",
]

MAX_PIXELS = 2**28  # 268 million: 16384 × 16384
OPENCV_PIXELS = 2**30  # its own limit, which can only be changed before it is imported
MAX_BYTES = 2**31 - 1  # OpenCV counts bytes in an int

# OpenCV's warnings repeat, without a file name, what ImageError says with one.
if "OPENCV_LOG_LEVEL" not in os.environ:
    quiet = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # by the version of OpenCV
    quiet(0)


class ImageError(MambaADError):
    """A file that cannot be read as an image. Prints as one line: `path: reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


# ---- read ----


def read(path: Path) -> np.ndarray:
    """Read an image file as RGB (h, w, 3): uint8, or float32 in 0…255 where the file holds more than 8 bits.

    - The content decides on the format, not the name: PNG, JPEG, BMP, TIFF (its first page) or WebP; with the optional
      extra `heif` also HEIC and AVIF, at 8 bits.
    - 16 bits are divided by 257, so that 65535 becomes 255: nothing is clipped, nothing stretched.
    - Floats (TIFF) count as 0…1, as in scikit-image; other values are refused, for their white is unknown.
    - Transparent pixels are shown on white, as a viewer shows them; a colour stored under full transparency is lost.
      A fourth channel that is unused, or 0 all over, is not transparency.
    - Exif orientation is applied, wherever the format has one.

    Thread-safe; other threads run while OpenCV decodes.
    Raises ImageError whatever the file holds, and MambaADError where MAMBAAD_MAX_PIXELS (default 268435456) is not a
    number. Damage in the middle of a JPEG, TIFF or WebP can go unnoticed, because the decoders themselves hide it
    (libjpeg warns on stderr).
    """
    return opened(path).decoded()


class Opened(NamedTuple):
    """The bytes of an image file, complete as far as its header tells, not decoded yet."""

    path: Path
    header: Header

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the image, upright."""
        return _upright(self.header)

    def reduction(self, at_least: tuple[int, int]) -> int:
        """By how much a JPEG may be decoded smaller, 1, 2, 4 or 8, if `at_least` (height, width) must be left of it."""
        if not self.header.body.startswith(b"\xff\xd8"):
            return 1  # OpenCV decodes all of the other formats before it makes them smaller
        return next(by for by in (8, 4, 2, 1) if by == 1 or _leaves(self.shape, by, at_least))

    def decoded(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The image as `read` gives it. A JPEG that is much larger than `at_least` is decoded smaller, in less time."""
        by = 1 if at_least is None else self.reduction(at_least)
        with errors_of(self.path):
            return _rgb(_scaled(_decoded(self.header, by)), self.header)

    def stored_pixels(self) -> np.ndarray:
        """The values as the file stores them, upright: (h, w) or (h, w, c) of any type; transparency is not applied."""
        with errors_of(self.path):
            return _decoded(self.header)


_REDUCED = {
    1: cv2.IMREAD_UNCHANGED,
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}


def _leaves(shape: tuple[int, int], by: int, at_least: tuple[int, int]) -> bool:
    return all(side // by >= least for side, least in zip(shape, at_least, strict=True))


def opened(path: Path, data: bytes | None = None) -> Opened:
    """Read and check a file, or its bytes where they are at hand, without decoding it. Raises as `read` does."""
    with errors_of(path):
        return Opened(path, _checked_header(_content(path) if data is None else data))


def shape_of(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as `read` gives it, from its header alone. Raises ImageError as `read` does."""
    return opened(path).shape


def decoded_bytes(data: bytes | np.ndarray) -> np.ndarray:
    """A picture that a model file stores, from the bytes of its PNG or JPEG, as `read` gives it.

    Raises ValueError where they are damaged, or claim more pixels than MAMBAAD_MAX_PIXELS.
    """
    try:
        return Opened(Path("stored picture"), _checked_header(bytes(data))).decoded()
    except ImageError as error:
        raise ValueError(error.reason) from None


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with one file into its ImageError: no file may end a run of thousands.

    Other MambaADErrors pass: they are about a setting, not about the file.
    """
    try:
        yield
    except MambaADError:
        raise
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    except MemoryError:
        raise ImageError(path, "cannot be read: not enough memory") from None
    except Exception as error:
        raise ImageError(path, f"cannot be read: {type(error).__name__}: {error}".partition("\n")[0]) from error


def _decoded(header: Header, by: int = 1) -> np.ndarray:
    """The decoded pixels, upright; a JPEG smaller by a factor. Raises ValueError where it cannot be decoded."""
    image = heif.decoded(header.body) if header.is_heif else _decoded_by_opencv(header.body, _REDUCED[by])
    if header.clear_grey is not None:
        image = _with_alpha(image, header.clear_grey)
    image = _oriented(image, header.orientation)
    expected = tuple(-(-side // by) for side in _upright(header))
    if image.shape[:2] != expected:
        claimed = f"{expected[1]}×{expected[0]}"
        raise ValueError(f"damaged: decoded to {image.shape[1]}×{image.shape[0]} pixels, claims {claimed}")
    return image


def _decoded_by_opencv(body: bytes, mode: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(body, np.uint8), mode)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("damaged, or of a kind that OpenCV does not decode")
    return image


def _upright(header: Header) -> tuple[int, int]:
    """(height, width) of an image once its orientation is applied."""
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _checked_header(data: bytes) -> Header:
    if not data:
        raise ValueError("empty: the file has zero bytes")
    try:
        header = read_header(data)
    except (EOFError, struct.error, IndexError):
        raise ValueError("truncated: the file ends before the image does") from None
    _check_size(header.width, header.height)
    return header


def _content(path: Path) -> bytes:
    """All bytes of a regular file; reading any other, such as a pipe, could wait without end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError("larger than 2 GiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except OSError as error:
        raise ImageError(path, (error.strerror or str(error)).lower()) from None


def _check_size(width: int, height: int) -> None:
    """Refuse a size that no image has, or that would take all memory: a small file may claim any size."""
    limit = os.environ.get("MAMBAAD_MAX_PIXELS", str(MAX_PIXELS))
    if not limit.isdecimal():
        raise MambaADError(f"MAMBAAD_MAX_PIXELS is {limit!r}: expected a number of pixels, such as {MAX_PIXELS}")
    pixels, claim = width * height, f"claims {width}×{height} pixels"
    if pixels <= 0:
        raise ValueError(f"damaged: {claim}")
    if pixels > OPENCV_PIXELS:
        raise ValueError(f"{claim}, more than OpenCV decodes, {OPENCV_PIXELS}")
    if pixels > int(limit):
        raise ValueError(f"{claim}, more than {limit}: to read it all the same, set MAMBAAD_MAX_PIXELS={pixels}")


def _with_alpha(grey: np.ndarray, clear: int) -> np.ndarray:
    """Grey as BGRA, transparent where it has the value `clear`."""
    alpha = np.where(grey == clear, 0, np.iinfo(grey.dtype).max).astype(grey.dtype)
    return cv2.merge([grey, grey, grey, alpha])


def _oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright from its Exif orientation, 1…8.

    >>> _oriented(np.array([[1, 2], [3, 4]], np.uint8), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation >= 5:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


def _scaled(image: np.ndarray) -> np.ndarray:
    """Pixels of any type as uint8 or float32 in 0…255. Raises ValueError for a type whose white is unknown."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return image.astype(np.float32) / np.float32(257)
    if image.dtype.kind != "f":
        raise ValueError(f"holds {image.dtype} pixels: expected 8 or 16 bits without sign, or floats in 0…1")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("holds pixels that are NaN or infinite")
    if low < 0 or high > 1:
        raise ValueError(f"holds floats from {low:g} to {high:g}: expected 0…1")
    return image.astype(np.float32) * np.float32(255)


def _rgb(image: np.ndarray, header: Header) -> np.ndarray:
    """RGB from what OpenCV decoded: grey, BGR or BGRA in 0…255; transparent pixels are shown on white."""
    if header.white_is_zero and image.dtype != np.uint8:
        image = 255 - image  # OpenCV itself inverts images of 8 bits
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    rgb, alpha = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), image[..., 3:]
    return rgb if header.alpha == "none" else _on_white(rgb, alpha, header.alpha == "premultiplied")


def _on_white(rgb: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Colours (h, w, 3) with their opacity (h, w, 1), both in 0…255, on white: of the same type.

    Opacity that is 0 all over is none: cameras leave the fourth byte of a pixel unused.
    """
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    if alpha.max() == 0:
        if premultiplied:
            raise ValueError("is transparent all over, and its colours are lost")
        return np.ascontiguousarray(rgb)
    opacity = alpha.astype(np.float32) / 255
    on_white = (rgb if premultiplied else rgb * opacity) + 255 * (1 - opacity)
    return (on_white.round() if rgb.dtype == np.uint8 else on_white).clip(0, 255).astype(rgb.dtype)


# ---- pictures in memory ----


def as_rgb(picture: Any) -> np.ndarray:
    """A picture as `read` would give it: (h, w, 3) RGB, uint8, or float32 in 0…255 where it holds more than 8 bits.

    picture: an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), colours in the order RGB, of uint8, of uint16 with
        white at 65535, or of floats in 0…1; or a PIL image. A fourth channel is opacity, unless it is 0 all over: the
        picture lies on white.

    Raises MambaADError for anything else.

    >>> as_rgb(np.full((2, 3), 65535, np.uint16))[0, 0].tolist()
    [255.0, 255.0, 255.0]
    """
    if hasattr(picture, "convert"):  # a PIL image; its 16-bit greys stay what they are
        picture = np.asarray(picture if picture.mode.startswith("I;16") else picture.convert("RGBA"))
    if not isinstance(picture, np.ndarray) or picture.ndim not in (2, 3) or 0 in picture.shape:
        kind = f"an array of shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise MambaADError(f"{kind} is no picture: expected a path, a PIL image or an array (h, w, 3) in RGB order")
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    if channels not in (1, 3, 4):
        raise MambaADError(f"an array of shape {picture.shape} is no picture: expected (h, w), (h, w, 3) or (h, w, 4)")
    try:
        scaled = _scaled(np.ascontiguousarray(picture))
    except ValueError as error:
        raise MambaADError(f"this array is no picture: it {error}") from None
    if channels == 1:
        return cv2.cvtColor(scaled, cv2.COLOR_GRAY2RGB)
    return _on_white(scaled[..., :3], scaled[..., 3:]) if channels == 4 else scaled


# ---- scale ----


def resize(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Scale an image (h, w, 3) in 0…255 to size (height, width); return a float32 tensor (3, height, width) in 0…1.

    Bilinear and antialiased, the same as Pillow's, which the paper's pipeline uses, to within 1/255. uint8 stays uint8
    while it is scaled, as in Pillow, which is ten times faster than scaling floats.

    >>> resize(np.full((4, 6, 3), 51, np.uint8), (2, 3))[0]
    tensor([[0.2000, 0.2000, 0.2000],
            [0.2000, 0.2000, 0.2000]])
    """
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    scaled = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]
    return (scaled.float() / 255).clamp(0, 1).contiguous()


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """Scale an image to fit into size (height, width), keeping its aspect, in the centre; edge pixels fill the rest.

    Returns the tensor (3, height, width) in 0…1 and the box (top, left, height, width) of the image in it.

    >>> letterbox(np.zeros((100, 200, 3), np.uint8), (64, 64))[1]
    (16, 0, 32, 64)
    """
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padding = (left, size[1] - width - left, top, size[0] - height - top)
    return F.pad(resize(image, (height, width)), padding, mode="replicate"), (top, left, height, width)


# ---- write ----


def write(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB (h, w, 3) or grey (h, w) of uint8 or uint16, whole or not at all, in the format of the suffix.

    Raises MambaADError for a format that is not written, 16 bits in a format of 8, and where the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or suffix in HEIF_SUFFIXES:
        raise MambaADError(f"cannot write {shown(path)}: {EXPECTED}")
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise MambaADError(f"cannot write {shown(path)}: 16 bits need .png, .tif or .tiff")
    in_opencvs_order = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg" if suffix == ".jfif" else suffix, in_opencvs_order)
    with written_whole(path) as half:
        half.write_bytes(encoded.data)
