"""What the header bytes of PNG, JPEG, BMP, TIFF and WebP tell: completeness, size, orientation and transparency.

OpenCV decodes, but it does not say why a file failed, returns grey or random pixels for some broken files and believes
any size. These few bytes are therefore read first. Each reader raises EOFError, struct.error or IndexError where the
file ends too early, and ValueError where the file is damaged or of a kind that OpenCV decodes wrongly.
"""

import re
import struct
import zlib
from operator import add
from typing import NamedTuple


class Header(NamedTuple):
    """What has to be known of an image file before and after it is decoded."""

    width: int
    height: int
    body: bytes  # what OpenCV is to decode
    orientation: int = 1  # Exif orientation still to be applied: OpenCV turns a TIFF itself
    alpha: str = "straight"  # meaning of a fourth channel: straight, premultiplied, or none (no transparency)
    clear_grey: int | None = None  # the decoded grey that counts as transparent
    white_is_zero: bool = False


def read_header(data: bytes) -> Header:
    """Read the header of an image file. Raises ValueError also for what is none of our formats."""
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

    A thumbnail has markers of its own, but they lie inside a segment, which is skipped as a whole.
    """
    width = height = 0
    orientation, at = 1, 2
    while True:
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise EOFError
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return Header(width, height, data, orientation)
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        at += length


def _bmp(data: bytes) -> Header:
    """Read a bitmap header of OS/2 (12 bytes, 16-bit sizes) or Windows (40 or more; negative height: top row first)."""
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in (12, 40, 52, 56, 64, 108, 124):
        raise ValueError("not an image: expected PNG, JPEG, BMP, TIFF or WebP")
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    compression = 0 if size == 12 else struct.unpack_from("<I", data, 30)[0]
    row = (width * bits + 31) // 32 * 4
    if compression in (0, 3) and offset + row * abs(height) > len(data):
        raise EOFError
    if size == 12 and bits == 24:  # OpenCV decodes it as grey, but not with the newer header
        newer = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
        return Header(width, height, struct.pack("<2sIII", b"BM", 0, 0, 54) + newer + data[offset:])
    return Header(width, abs(height), data)


def _webp(data: bytes) -> Header:
    """Walk the RIFF chunks (WebP container specification): one of three kinds gives the size, EXIF the orientation."""
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
    return Header(width, height, data, orientation)


# the TIFF tags that matter here, by their numbers in TIFF 6.0
WIDTH, HEIGHT, BITS, PHOTOMETRIC, STRIPS, ORIENTATION, CHANNELS = 256, 257, 258, 262, 273, 274, 277
STRIP_BYTES, PLANES, TILES, TILE_BYTES, EXTRA_CHANNEL = 279, 284, 324, 325, 338


def _tiff(data: bytes) -> Header:
    """Read the first page of a TIFF. Refuses the kinds that OpenCV decodes to wrong pixels."""
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
    return Header(tags[WIDTH][0], tags[HEIGHT][0], data, alpha=alpha, white_is_zero=colours == 0)


def _orientation(exif: bytes) -> int:
    """The orientation in an Exif block, 1…8; 1 (upright) where the block has none or is damaged."""
    try:
        orientation = _tags(exif)[ORIENTATION][0]
    except (KeyError, IndexError, struct.error):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The tags named above, from the first directory of a TIFF file or of an Exif block, which has the same form."""
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
