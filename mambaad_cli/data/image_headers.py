"""The header of a PNG, JPEG, BMP, TIFF or WebP: is the file complete, its size, orientation and transparency.

OpenCV decodes, but it does not say why a file failed, returns grey or random pixels for some broken files and believes
any size. These few bytes are therefore read first. Each reader raises EOFError, struct.error or IndexError where the
file ends too early, and ValueError where the file is damaged or of a kind that OpenCV decodes wrongly.

Why not Pillow: it finds a truncated JPEG, BMP or TIFF only by decoding it, reads the whole of a PNG to find its Exif
block (96 ms instead of 4 ms for 5 megapixels), and keeps 8 of the 16 bits of a colour picture.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mambaad_cli.data import heif

NOT_AN_IMAGE = "not an image: expected PNG, JPEG, BMP, TIFF or WebP"


class Header(NamedTuple):
    """What has to be known of an image file before and after it is decoded."""

    width: int  # as OpenCV decodes it
    height: int
    body: bytes  # what OpenCV is to decode
    orientation: int = 1  # Exif orientation still to be applied: OpenCV turns a TIFF itself
    alpha: str = "straight"  # meaning of a fourth channel: straight, premultiplied, or none (no transparency)
    clear_grey: int | None = None  # the decoded grey that counts as transparent
    white_is_zero: bool = False
    lossy: bool = False  # the pixels are about what was saved, as in a JPEG
    is_heif: bool = False  # HEIC or AVIF: Pillow decodes it, not OpenCV


def read_header(data: bytes) -> Header:
    """Read the header of an image file. Raises ValueError also for a file of another format."""
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
    if heif.is_heif(data):
        return _heif(data)
    raise ValueError(NOT_AN_IMAGE)


def _png(data: bytes) -> Header:
    """Walk the chunks to IEND (PNG specification, section 5).

    Only the chunks that pixels need are given to OpenCV: libpng would warn on stderr of unusual colour profiles.
    """
    view = memoryview(data)
    kept, exif, clear, kind, start = [view[:8]], b"", b"", b"", 8
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, start)
        kind, content, end = data[start + 4 : start + 8], view[start + 8 : start + 8 + length], start + 12 + length
        if end > len(data):
            raise EOFError
        if (kind == b"IHDR") != (start == 8):
            raise ValueError("damaged: IHDR is not its first chunk, or not its only one")
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
    return Header(width, height, b"".join(kept), _orientation(exif), clear_grey=clear_grey)


# a marker with a length, or the end of the image; not a stuffed zero (00), a restart (d0…d7) or padding (ff)
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")


def _jpeg(data: bytes) -> Header:
    """Walk the segments and scans to the end-of-image marker (ITU T.81, annex B); cameras append data to it.

    A thumbnail has markers of its own, but they lie inside a segment, which is skipped as a whole. The first frame
    header gives the size, as in libjpeg.
    """
    width = height = 0
    orientation, at, sized = 1, 2, False
    while True:
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            raise EOFError
        marker, at = data[match.end() - 1], match.end()
        if marker == 0xD9:
            return Header(width, height, data, orientation, lossy=True)
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not sized:
            sized = True
            height, width = struct.unpack_from(">HH", data, at + 3)
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        at += length


# values of a bitmap's compression
PLAIN, COLOUR_MASKS, COLOUR_MASKS_WITH_ALPHA = 0, 3, 6
# red, green, blue: the masks that OpenCV decodes, by the bits of a pixel
USUAL_MASKS = {16: ((0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F)), 32: ((0xFF0000, 0xFF00, 0xFF),)}
USUAL_ALPHA = {16: (0,), 32: (0, 0xFF000000)}


def _bmp(data: bytes) -> Header:
    """Read a bitmap header of OS/2 (12 bytes, 16-bit sizes) or Windows (40 or more; negative height: top row first).

    The fourth byte of a 32-bit pixel is opacity only where a mask says so; otherwise it is unused, and often 0.
    """
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 40, 52, 56, 64, 108, 124):
        raise ValueError(NOT_AN_IMAGE)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    compression = PLAIN if size == 12 else struct.unpack_from("<I", data, 30)[0]
    row = (width * bits + 31) // 32 * 4
    if compression in (PLAIN, COLOUR_MASKS, COLOUR_MASKS_WITH_ALPHA) and offset + row * abs(height) > len(data):
        raise EOFError
    if size == 12 and bits == 24:  # OpenCV decodes it as grey, but not with the newer header
        newer = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
        return Header(width, height, struct.pack("<2sIII", b"BM", 0, 0, 54) + newer + data[offset:])
    if compression not in (COLOUR_MASKS, COLOUR_MASKS_WITH_ALPHA) or bits not in USUAL_MASKS:
        return Header(width, abs(height), data, alpha="none")
    *masks, alpha_mask = struct.unpack_from("<4I", data, 54)
    if size in (40, 52, 64) and compression == COLOUR_MASKS:
        alpha_mask = 0  # the header ends after three masks
    alpha = "straight" if alpha_mask else "none"
    usual = tuple(masks) in USUAL_MASKS[bits] and alpha_mask in USUAL_ALPHA[bits]
    if (usual and compression == COLOUR_MASKS) or width <= 0 or height == 0:
        return Header(width, abs(height), data, alpha=alpha)
    pixels = np.frombuffer(data, f"<u{bits // 8}", row * 8 // bits * abs(height), offset)
    pixels = pixels.reshape(abs(height), -1)[:, :width]
    body = _bitmap_of_usual_masks(pixels, (masks[2], masks[1], masks[0], alpha_mask), top_down=height < 0)
    return Header(width, abs(height), body, alpha=alpha)


def _bitmap_of_usual_masks(pixels: np.ndarray, masks: Sequence[int], top_down: bool) -> bytes:
    """Pixels (h, w), with masks of blue, green, red and opacity, as a 32-bit bitmap that OpenCV decodes."""
    height, width = pixels.shape
    info = struct.pack("<IiiHHIIiiII", 108, width, -height if top_down else height, 1, 32, COLOUR_MASKS, 0, 0, 0, 0, 0)
    info += struct.pack("<4I52x", *USUAL_MASKS[32][0], 0xFF000000)
    channels = np.stack([_masked(pixels, mask) for mask in masks], 2)
    return struct.pack("<2sIII", b"BM", 0, 0, 14 + len(info)) + info + channels.tobytes()


def _masked(pixels: np.ndarray, mask: int) -> np.ndarray:
    """The bits of each pixel under a mask, scaled to 0…255.

    >>> _masked(np.array([0x3FF00000, 0x00100000], np.uint32), 0x3FF00000).tolist()
    [255, 0]
    """
    if mask == 0:
        return np.zeros(pixels.shape, np.uint8)
    lowest = mask & -mask
    values = (pixels & pixels.dtype.type(mask)) // lowest
    return (values.astype(np.float32) * (255 / (mask // lowest))).round().astype(np.uint8)


def _webp(data: bytes) -> Header:
    """Walk the RIFF chunks (WebP container specification): EXIF gives the orientation.

    The first chunk of three kinds gives the size, as in libwebp.
    """
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    width = height = 0
    orientation, start, lossy = 1, 12, False
    while start + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, start)
        at = start + 8
        lossy = lossy or kind == b"VP8 "
        if at + length > len(data):
            raise EOFError
        if kind == b"VP8X" and not width:
            width, height = (1 + int.from_bytes(data[at + i : at + i + 3], "little") for i in (4, 7))
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 6))
        elif kind == b"VP8L" and not width:
            (packed,) = struct.unpack_from("<I", data, at + 1)
            width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            orientation = _orientation(data[at : at + length].removeprefix(b"Exif\0\0"))
        start = at + length + length % 2
    return Header(width, height, data, orientation, lossy=lossy)


def _heif(data: bytes) -> Header:
    width, height, orientation = heif.size_and_orientation(data)
    return Header(width, height, data, orientation, lossy=True, is_heif=True)


# the TIFF tags that matter here, by their numbers in TIFF 6.0
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, CHANNELS = 256, 257, 258, 259, 262, 273, 274, 277
STRIP_BYTES, PLANES, TILES, TILE_BYTES, EXTRA_CHANNEL = 279, 284, 324, 325, 338
USED_TAGS = frozenset(
    (WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, CHANNELS)
    + (STRIP_BYTES, PLANES, TILES, TILE_BYTES, EXTRA_CHANNEL)
)
NUMBERS = {3: "u2", 4: "u4", 16: "u8"}  # kinds of values: unsigned, of 16, 32 or 64 bits
LOSSY_COMPRESSIONS = (6, 7, 34712, 50001)  # JPEG, JPEG 2000 and WebP within a TIFF


def _tiff(data: bytes) -> Header:
    """Read the first page of a TIFF. Refuses the kinds that OpenCV decodes to wrong pixels."""
    tags = _tags(data)
    if WIDTH not in tags or HEIGHT not in tags:
        raise ValueError("damaged: a TIFF without width or height")
    for starts, sizes in ((STRIPS, STRIP_BYTES), (TILES, TILE_BYTES)):
        parts = min(len(tags.get(starts, ())), len(tags.get(sizes, ())))
        if parts and np.add(tags[starts][:parts], tags[sizes][:parts], dtype=np.float64).max() > len(data):
            raise EOFError
    bits, channels, colours = (_first(tags, tag, 1) for tag in (BITS, CHANNELS, PHOTOMETRIC))
    if bits > 8 and (colours > 2 or (colours == 2 and channels < 3)):
        raise ValueError(f"a TIFF of {bits} bits that is neither grey nor RGB")
    if channels == 2:
        raise ValueError("a grey TIFF with transparency, which OpenCV does not decode: save it as PNG")
    if channels > 1 and bits > 8 and _first(tags, PLANES, 1) == 2:
        raise ValueError("a TIFF in separate colour planes, which OpenCV does not decode: save it interleaved")
    extra, alpha = _first(tags, EXTRA_CHANNEL, 0), "none"
    if extra in (1, 2):  # libtiff multiplies 8-bit colours by their alpha, OpenCV leaves others as they are
        alpha = "premultiplied" if extra == 1 or bits == 8 else "straight"
    width, height = _first(tags, WIDTH, 0), _first(tags, HEIGHT, 0)
    if _first(tags, ORIENTATION, 1) in (5, 6, 7, 8):  # OpenCV turns it upright while it decodes
        width, height = height, width
    lossy = _first(tags, COMPRESSION, 1) in LOSSY_COMPRESSIONS
    return Header(width, height, data, alpha=alpha, white_is_zero=colours == 0, lossy=lossy)


def _orientation(exif: bytes) -> int:
    """The orientation in an Exif block, 1…8; 1 (upright) where the block has none or is damaged."""
    try:
        orientation = _first(_tags(exif), ORIENTATION, 1)
    except (KeyError, IndexError, OverflowError, EOFError, struct.error):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _first(tags: dict[int, np.ndarray], tag: int, otherwise: int) -> int:
    """The first number of a tag. Raises IndexError for a tag without one."""
    return int(tags[tag][0]) if tag in tags else otherwise


def _tags(data: bytes) -> dict[int, np.ndarray]:
    """The used tags of the first directory of a TIFF file or of an Exif block, which has the same form.

    The first entry of a tag counts, as in libtiff. Its numbers are a view of the file: many entries may claim the same
    millions of numbers, and none is copied.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF: the same with 64-bit offsets
    count, entry, offset, first = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    (start,) = struct.unpack_from(order + offset, data, first)
    (entries,) = struct.unpack_from(order + count, data, start)
    start += struct.calcsize(order + count)
    tags: dict[int, np.ndarray] = {}
    for at in range(start, start + entries * (20 if big else 12), 20 if big else 12):
        tag, kind, length = struct.unpack_from(order + entry, data, at)
        if kind not in NUMBERS or tag not in USED_TAGS or tag in tags:
            continue
        number, at_values = np.dtype(order + NUMBERS[kind]), at + struct.calcsize(order + entry)
        if length * number.itemsize > struct.calcsize(order + offset):
            (at_values,) = struct.unpack_from(order + offset, data, at_values)
        if at_values + length * number.itemsize > len(data):
            raise EOFError
        tags[tag] = np.frombuffer(data, number, length, at_values)
    return tags
