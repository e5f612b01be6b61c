"""Image files: find them, read one as RGB, scale it to what the model takes, write one.

Letters: h rows, w columns. An image is an array (h, w, 3) of RGB in 0…255; the model takes a tensor (3, h, w) in 0…1.

OpenCV decodes, after image_headers has read what OpenCV does not check: completeness, size, orientation, transparency.
"""

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from natsort import natsort_keygen, ns

from mambaad_cli import MambaADError
from mambaad_cli.data.image_headers import Header, read_header
from mambaad_cli.files import shown, written_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
EXPECTED = f"expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
MAX_PIXELS = 2**28  # 268 million: 16384 × 16384
OPENCV_PIXELS = 2**30  # its own limit, which can only be changed before it is imported
MAX_BYTES = 2**31 - 1  # OpenCV counts bytes in an int

_natural_parts = natsort_keygen(alg=ns.IGNORECASE)

# OpenCV's warnings repeat, without a file name, what ImageError says with one.
if "OPENCV_LOG_LEVEL" not in os.environ:
    quiet = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # by the version of OpenCV
    quiet(0)


class ImageFile(NamedTuple):
    """One image file that was asked for; whether it can be read is not known yet."""

    path: Path  # to open and to print, as the user gave it: given/sub/x.png
    relative: Path  # below the folder it was found in: sub/x.png; the name of a file that was named itself
    group: str  # the first folder below the given one: sub; '' for an image right in it or named itself


class ImageError(MambaADError):
    """A file that cannot be read as an image. Prints as one line: `path: reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


# ---- find ----


def natural_order(name: str) -> tuple[Any, str]:
    """Sort key of a file name: numbers by value, letters whatever their case; the name itself decides between equals.

    >>> sorted(["b10.png", "b02.png", "B2.png"], key=natural_order)
    ['B2.png', 'b02.png', 'b10.png']
    """
    return _natural_parts(name), name


def find(paths: Sequence[Path]) -> list[ImageFile]:
    """List the image files in folders (with all their sub-folders) and those named themselves, in the order given.

    Inside a folder the order is natural: img_2 before img_10. Symbolic links are followed, loops are not; a file that
    is reached twice is listed once, where it was reached first. Hidden files and folders are left out, unless named.
    A file named itself is listed whatever it is: `read` says what is wrong with it.

    Raises MambaADError for a given folder without images, and for any folder that cannot be listed.
    """
    found: dict[str, ImageFile] = {}
    for given in paths:
        if not os.path.isdir(given):  # noqa: PTH112 (Path.is_dir raises where a folder above is closed)
            found.setdefault(os.path.realpath(given), ImageFile(given, Path(given.name), ""))
            continue
        inside = list(_walk(given))
        if not inside:
            raise MambaADError(f"no images in {shown(given)}: {EXPECTED} files")
        for real, path in inside:
            relative = path.relative_to(given)
            found.setdefault(real, ImageFile(path, relative, relative.parts[0] if len(relative.parts) > 1 else ""))
    return list(found.values())


def _walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield (real path, path) of each image below `top`, entering each real folder once."""
    entered: set[str] = set()
    waiting = [(os.fspath(top), os.path.realpath(top), True)]
    while waiting:
        path, real, is_folder = waiting.pop()
        if not is_folder:
            yield real, Path(path)
        elif real not in entered:
            entered.add(real)
            waiting += reversed(_entries(path, real))


def _entries(folder: str, real: str) -> list[tuple[str, str, bool]]:
    """(path, real path, is a folder) of the visible sub-folders and images right in a folder, in natural order."""
    try:
        with os.scandir(folder) as listed:
            visible = [entry for entry in listed if not entry.name.startswith(".")]
    except OSError as error:
        raise MambaADError(f"cannot list {shown(folder)}: {error.strerror}") from error
    entries = []
    for entry in sorted(visible, key=lambda entry: natural_order(entry.name)):
        if entry.is_symlink():
            # os.path.isdir, for DirEntry.is_dir raises where a link points to itself
            target, is_folder = os.path.realpath(entry.path), os.path.isdir(entry.path)  # noqa: PTH112
        else:  # without realpath, which would take most of the time for 20,000 files
            target, is_folder = os.path.join(real, entry.name), entry.is_dir()  # noqa: PTH118
        if is_folder or entry.name.lower().endswith(SUFFIXES):
            entries.append((entry.path, target, is_folder))
    return entries


# ---- read ----


def read(path: Path) -> np.ndarray:
    """Read an image file as RGB (h, w, 3): uint8, or float32 in 0…255 where the file holds more than 8 bits.

    - The content decides on the format, not the name: PNG, JPEG, BMP, TIFF (its first page) or WebP.
    - 16 bits are divided by 257, so that 65535 becomes 255: nothing is clipped, nothing stretched.
    - Floats (TIFF) count as 0…1, as in scikit-image; other values are refused, for their white is unknown.
    - Transparent pixels are shown on white, as a viewer shows them; a colour stored under full transparency is lost.
    - Exif orientation is applied, wherever the format has one.

    Thread-safe; other threads run while OpenCV decodes.
    Raises ImageError, and MambaADError where MAMBAAD_MAX_PIXELS (default 268435456) is not a number. Damage in the
    middle of a JPEG, TIFF or WebP can go unnoticed, because the decoders themselves hide it (libjpeg warns on stderr).
    """
    return opened(path).decoded()


class Opened(NamedTuple):
    """The bytes of an image file, complete as far as its header tells, not decoded yet."""

    path: Path
    header: Header

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the image, upright."""
        turned = self.header.orientation >= 5
        return (self.header.width, self.header.height) if turned else (self.header.height, self.header.width)

    def reduction(self, at_least: tuple[int, int]) -> int:
        """By how much a JPEG may be decoded smaller, 1, 2, 4 or 8, if `at_least` (height, width) must be left of it."""
        if not self.header.body.startswith(b"\xff\xd8"):
            return 1  # OpenCV decodes all of the other formats before it makes them smaller
        return next(by for by in (8, 4, 2, 1) if by == 1 or _leaves(self.shape, by, at_least))

    def decoded(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The image as `read` gives it. A JPEG that is much larger than `at_least` is decoded smaller, in less time."""
        by = 1 if at_least is None else self.reduction(at_least)
        return _decoded(self.path, self.header, _REDUCED[by])


_REDUCED = {
    1: cv2.IMREAD_UNCHANGED,
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}


def _leaves(shape: tuple[int, int], by: int, at_least: tuple[int, int]) -> bool:
    return all(side // by >= least for side, least in zip(shape, at_least, strict=True))


def opened(path: Path) -> Opened:
    """Read and check a file without decoding it. Raises as `read` does."""
    return Opened(path, _checked_header(path))


def _decoded(path: Path, header: Header, mode: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(header.body, np.uint8), mode)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(path, "damaged, or of a kind that OpenCV does not decode")
    if header.clear_grey is not None:
        image = _with_alpha(image, header.clear_grey)
    try:
        return _rgb(_scaled(_oriented(image, header.orientation)), header)
    except ValueError as error:
        raise ImageError(path, str(error)) from None


def shape_of(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as `read` gives it, from its header alone. Raises ImageError as `read` does."""
    return opened(path).shape


def _checked_header(path: Path) -> Header:
    data = _content(path)
    try:
        header = read_header(data)
    except (EOFError, struct.error, IndexError):
        raise ImageError(path, "truncated: the file ends before the image does") from None
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    _check_size(path, header.width, header.height)
    return header


def _content(path: Path) -> bytes:
    """All bytes of a regular file; reading any other, such as a pipe, could wait without end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(path, "is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(path, "larger than 2 GiB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except OSError as error:
        raise ImageError(path, (error.strerror or str(error)).lower()) from None
    if not data:
        raise ImageError(path, "empty: the file has zero bytes")
    return data


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse a size that no image has, or that would take all memory: a small file may claim any size."""
    limit = os.environ.get("MAMBAAD_MAX_PIXELS", str(MAX_PIXELS))
    if not limit.isdecimal():
        raise MambaADError(f"MAMBAAD_MAX_PIXELS is {limit!r}: expected a number of pixels, such as {MAX_PIXELS}")
    pixels, claim = width * height, f"claims {width}×{height} pixels"
    if pixels <= 0:
        raise ImageError(path, f"damaged: {claim}")
    if pixels > OPENCV_PIXELS:
        raise ImageError(path, f"{claim}, more than OpenCV decodes, {OPENCV_PIXELS}")
    if pixels > int(limit):
        raise ImageError(path, f"{claim}, more than {limit}: to read it all the same, set MAMBAAD_MAX_PIXELS={pixels}")


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
    """Colours (h, w, 3) with their opacity (h, w, 1), both in 0…255, on white: of the same type."""
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    opacity = alpha.astype(np.float32) / 255
    on_white = (rgb if premultiplied else rgb * opacity) + 255 * (1 - opacity)
    return (on_white.round() if rgb.dtype == np.uint8 else on_white).clip(0, 255).astype(rgb.dtype)


# ---- pictures in memory ----


def as_rgb(picture: Any) -> np.ndarray:
    """A picture as `read` would give it: (h, w, 3) RGB, uint8, or float32 in 0…255 where it holds more than 8 bits.

    picture: an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), colours in the order RGB, of uint8, of uint16 with
        white at 65535, or of floats in 0…1; or a PIL image. A fourth channel is opacity: the picture lies on white.

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

    Raises MambaADError for a suffix that is not in SUFFIXES, 16 bits in a format of 8, and where the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MambaADError(f"cannot write {shown(path)}: {EXPECTED}")
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise MambaADError(f"cannot write {shown(path)}: 16 bits need .png, .tif or .tiff")
    _, encoded = cv2.imencode(suffix, image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with written_whole(path) as half:
        half.write_bytes(encoded.data)
