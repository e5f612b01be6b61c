"""Image files: find them, read one as RGB, scale it to what the model takes, write one.

Letters: h rows, w columns. An image is an array (h, w, 3) of RGB in 0…255; the model takes a tensor (3, h, w) in 0…1.

OpenCV decodes. It does not say why a file failed, returns grey or random pixels for some broken ones and believes any
size, so the few header bytes that tell completeness, size, orientation and transparency are read here first.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from operator import add
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from mambaad_cli import MambaADError
from mambaad_cli.files import shown, written_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
EXPECTED = f"expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
MAX_PIXELS = 2**28  # 268 million: 16384 × 16384
OPENCV_PIXELS = 2**30  # its own limit, which can only be changed before it is imported
MAX_BYTES = 2**31 - 1  # OpenCV counts bytes in an int

# Its warnings repeat, without a file name, what ImageError says with one.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


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
            visible = sorted((entry for entry in listed if not entry.name.startswith(".")), key=_natural)
    except OSError as error:
        raise MambaADError(f"cannot list {shown(folder)}: {error.strerror}") from error
    entries = []
    for entry in visible:
        if entry.is_symlink():
            # os.path.isdir, for DirEntry.is_dir raises for a link to itself
            target, is_folder = os.path.realpath(entry.path), os.path.isdir(entry.path)  # noqa: PTH112
        else:  # no realpath: it would be most of the time that 20,000 files take
            target, is_folder = os.path.join(real, entry.name), entry.is_dir()  # noqa: PTH118
        if is_folder or entry.name.lower().endswith(SUFFIXES):
            entries.append((entry.path, target, is_folder))
    return entries


def _natural(entry: "os.DirEntry[str]") -> tuple[list[str | int], str]:
    """Sort key: numbers by value, letters whatever their case; the name itself decides between equals."""
    parts = re.split(r"([0-9]+)", entry.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], entry.name


# ---- read ----


def read(path: Path) -> np.ndarray:
    """Read an image file as RGB (h, w, 3): uint8, or float32 in 0…255 where the file holds more than 8 bits.

    - The content decides on the format, not the name: PNG, JPEG, BMP, TIFF (its first page) or WebP.
    - 16 bits are divided by 257, so that 65535 becomes 255: nothing is clipped, nothing stretched.
    - Floats (TIFF) count as 0…1, as in scikit-image; other values are refused, for their white is unknown.
    - Transparent pixels lie on white, as a viewer shows them; colours hidden under them do not show.
    - Exif orientation is applied, wherever the format has one.

    Thread-safe; other threads run while OpenCV decodes.
    Raises ImageError, and MambaADError where MAMBAAD_MAX_PIXELS (default 268435456) is not a number. Damage between
    the intact ends of a JPEG, TIFF or WebP can go unnoticed: the decoders themselves hide it (libjpeg warns on stderr).
    """
    data = _content(path)
    try:
        header = _header(data)
    except (EOFError, struct.error, IndexError):
        raise ImageError(path, "truncated: the file ends before the image does") from None
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    _check_size(path, header.width, header.height)
    try:
        image = cv2.imdecode(np.frombuffer(header.body, np.uint8), cv2.IMREAD_UNCHANGED)
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


def _content(path: Path) -> bytes:
    """All bytes of a regular file; others, such as a pipe, could make us wait for ever."""
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
    """Keep a small file from claiming all memory."""
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
    """Any pixel type to uint8 or float32, in 0…255. Raises ValueError for one whose white is unknown."""
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


def _rgb(image: np.ndarray, header: "_Header") -> np.ndarray:
    """What OpenCV decoded, grey or BGR or BGRA in 0…255, as RGB; transparent pixels lie on white."""
    if header.white_is_zero and image.dtype != np.uint8:
        image = 255 - image  # OpenCV does so itself for 8 bits
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    rgb, alpha = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), image[..., 3:]
    if header.alpha == "none" or alpha.min() == 255:
        return rgb
    opacity = alpha.astype(np.float32) / 255
    on_white = (rgb if header.alpha == "premultiplied" else rgb * opacity) + 255 * (1 - opacity)
    return (on_white.round() if image.dtype == np.uint8 else on_white).clip(0, 255).astype(image.dtype)


# ---- headers: each reader raises EOFError, struct.error or IndexError where the file ends too early ----


class _Header(NamedTuple):
    """What has to be known before and after decoding."""

    width: int
    height: int
    body: bytes  # what OpenCV is to decode
    orientation: int = 1  # what is left to do: OpenCV turns TIFF itself
    alpha: str = "straight"  # what a fourth channel means: straight, premultiplied or none, no transparency
    clear_grey: int | None = None  # the decoded grey that counts as transparent
    white_is_zero: bool = False


def _header(data: bytes) -> _Header:
    """Read the header of any of our formats. Raises ValueError for what is none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    raise ValueError("not an image: expected PNG, JPEG, BMP, TIFF or WebP")


def _png(data: bytes) -> _Header:
    """Walk the chunks to IEND (PNG specification, section 5).

    Only chunks with pixels go on to OpenCV: libpng warns on stderr of odd colour profiles, which nobody asked for.
    """
    view = memoryview(data)
    kept, exif, clear, kind, start = [view[:8]], b"", b"", b"", 8
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, start)
        kind, content, end = data[start + 4 : start + 8], view[start + 8 : start + 8 + length], start + 12 + length
        if end > len(data):
            raise EOFError
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ValueError(f"damaged: the checksum of its {kind.decode()} chunk is wrong")
            kept.append(view[start:end])
        if kind == b"eXIf":
            exif = bytes(content)
        if kind == b"tRNS":
            clear = bytes(content)
        start = end
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    clear_grey = None
    if colours == 0 and clear:
        clear_grey = int.from_bytes(clear, "big") * (1 if depth == 16 else 255 // (2**depth - 1))
    return _Header(width, height, b"".join(kept), _orientation(exif), clear_grey=clear_grey)


# a marker with a length, or the end of the image; not a stuffed zero (00), a restart (d0…d7) or padding (ff)
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")


def _jpeg(data: bytes) -> _Header:
    """Walk the segments and scans to the end-of-image marker (ITU T.81, annex B); cameras append to it.

    Thumbnails bring markers of their own, but inside a segment, which is stepped over.
    """
    width = height = 0
    orientation, at = 1, 2
    while True:
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise EOFError
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return _Header(width, height, data, orientation)
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        at += length


def _bmp(data: bytes) -> _Header:
    """Bitmap header of OS/2 (12 bytes, 16-bit sizes) or Windows (40 and more; a negative height is top-down)."""
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 40, 52, 56, 64, 108, 124):
        raise ValueError("not an image: expected PNG, JPEG, BMP, TIFF or WebP")
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    compression = 0 if size == 12 else struct.unpack_from("<I", data, 30)[0]
    row = (width * bits + 31) // 32 * 4
    if compression in (0, 3) and offset + row * abs(height) > len(data):
        raise EOFError
    return _Header(width, abs(height), data)


def _webp(data: bytes) -> _Header:
    """RIFF chunks (WebP container specification): one of three kinds gives the size, EXIF the orientation."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    width = height = 0
    orientation, start = 1, 12
    while start + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, start)
        at = start + 8
        if at + length > len(data):
            raise EOFError
        if kind == b"VP8X":
            width, height = (1 + int.from_bytes(data[at + i : at + i + 3], "little") for i in (4, 7))
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 6))
        elif kind == b"VP8L" and not width:
            (packed,) = struct.unpack_from("<I", data, at + 1)
            width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            orientation = _orientation(data[at : at + length].removeprefix(b"Exif\0\0"))
        start = at + length + length % 2
    return _Header(width, height, data, orientation)


# the TIFF tags that matter here, by their numbers in TIFF 6.0
WIDTH, HEIGHT, BITS, PHOTOMETRIC, STRIPS, ORIENTATION, CHANNELS = 256, 257, 258, 262, 273, 274, 277
STRIP_BYTES, PLANES, TILES, TILE_BYTES, EXTRA_CHANNEL = 279, 284, 324, 325, 338


def _tiff(data: bytes) -> _Header:
    """First page of a TIFF. Refuses the kinds that OpenCV gives wrong pixels for."""
    tags = _tags(data)
    if WIDTH not in tags or HEIGHT not in tags:
        raise ValueError("damaged: a TIFF without width or height")
    for starts, sizes in ((STRIPS, STRIP_BYTES), (TILES, TILE_BYTES)):
        if max(map(add, tags.get(starts, ()), tags.get(sizes, ())), default=0) > len(data):
            raise EOFError
    bits, channels, colours = tags.get(BITS, (1,))[0], tags.get(CHANNELS, (1,))[0], tags.get(PHOTOMETRIC, (1,))[0]
    if bits > 8 and (colours > 2 or (colours == 2 and channels < 3)):
        raise ValueError(f"a TIFF of {bits} bits that is neither grey nor RGB")
    if channels == 2:
        raise ValueError("a grey TIFF with transparency, which OpenCV does not decode: save it as PNG")
    if channels > 1 and bits > 8 and tags.get(PLANES, (1,))[0] == 2:
        raise ValueError("a TIFF in separate colour planes, which OpenCV does not decode: save it interleaved")
    extra, alpha = tags.get(EXTRA_CHANNEL, (0,))[0], "none"
    if extra in (1, 2):  # libtiff multiplies 8-bit colours by their alpha, OpenCV leaves others as they are
        alpha = "premultiplied" if extra == 1 or bits == 8 else "straight"
    return _Header(tags[WIDTH][0], tags[HEIGHT][0], data, alpha=alpha, white_is_zero=colours == 0)


def _orientation(exif: bytes) -> int:
    """The orientation in an Exif block, 1…8; 1, upright, where it has none or is damaged."""
    try:
        orientation = _tags(exif)[ORIENTATION][0]
    except (KeyError, IndexError, struct.error):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The tags above from the first directory of a TIFF file, or of an Exif block, which is a small one."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF: the same with 64-bit offsets
    count, entry, offset, first = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    (start,) = struct.unpack_from(order + offset, data, first)
    (entries,) = struct.unpack_from(order + count, data, start)
    start += struct.calcsize(order + count)
    tags = {}
    for at in range(start, start + entries * (20 if big else 12), 20 if big else 12):
        tag, kind, length = struct.unpack_from(order + entry, data, at)
        letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if letter is None or not WIDTH <= tag <= EXTRA_CHANNEL:
            continue
        values, at_values = struct.Struct(f"{order}{length}{letter}"), at + struct.calcsize(order + entry)
        if values.size > struct.calcsize(order + offset):
            (at_values,) = struct.unpack_from(order + offset, data, at_values)
        tags[tag] = values.unpack_from(data, at_values)
    return tags


# ---- scale ----


def resize(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Scale an image (h, w, 3) in 0…255 to size (height, width): a float32 tensor (3, height, width) in 0…1.

    Bilinear and antialiased, the same as Pillow's, which the paper's pipeline uses, to within 1/255. uint8 stays uint8
    while it is scaled, as in Pillow: ten times faster than float.

    >>> resize(np.full((4, 6, 3), 51, np.uint8), (2, 3))[0]
    tensor([[0.2000, 0.2000, 0.2000],
            [0.2000, 0.2000, 0.2000]])
    """
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    scaled = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]
    return (scaled.float() / 255).clamp(0, 1).contiguous()


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """Scale an image into size (height, width) keeping its aspect, centred; its edge pixels fill the rest.

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

    Raises MambaADError where the suffix names no format of ours, or none for 16 bits, and where the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MambaADError(f"cannot write {shown(path)}: {EXPECTED}")
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise MambaADError(f"cannot write {shown(path)}: 16 bits need .png, .tif or .tiff")
    _, encoded = cv2.imencode(suffix, image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with written_whole(path) as half:
        half.write_bytes(encoded.data)
