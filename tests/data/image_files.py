"""Image files for tests: made by Pillow, or byte by byte where it cannot make them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from mambaad_cli.data.images import ImageError, read

FORMATS = [
    pytest.param("PNG", {}, 0, id="png"),
    pytest.param("BMP", {}, 0, id="bmp"),
    pytest.param("TIFF", {}, 0, id="tiff"),
    pytest.param("TIFF", {"compression": "tiff_lzw"}, 0, id="tiff-lzw"),
    pytest.param("TIFF", {"compression": "tiff_adobe_deflate"}, 0, id="tiff-deflate"),
    pytest.param("JPEG", {"quality": 95}, 3, id="jpeg"),
    pytest.param("JPEG", {"quality": 95, "progressive": True}, 3, id="jpeg-progressive"),
    pytest.param("WEBP", {"lossless": True}, 0, id="webp-lossless"),
    pytest.param("WEBP", {"quality": 95}, 5, id="webp"),
]


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth picture without symmetry, so that codecs keep it well and every turn shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 // width, y * 250 // height, (x + 2 * y) * 255 // (width + 2 * height)], -1).astype(
        np.uint8
    )


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, order: Literal["<", ">"] = "<", **tags: int) -> bytes:
    """An uncompressed TIFF with its directory in front, of any pixel type; `tags` like t338=2 add to or replace."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries = {256: [width], 257: [height], 258: [pixels.itemsize * 8] * channels, 259: [1], 278: [height]}
    entries |= {262: [2 if channels > 2 else 1], 277: [channels], 273: [0], 279: [len(data)]}
    entries |= {339: [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels}
    entries |= {int(name[1:]): [value] for name, value in tags.items()}
    blob_at, blob, directory = 8 + 2 + 12 * len(entries) + 4, b"", b""
    entries[273] = [blob_at + sum(4 * len(values) for values in entries.values() if len(values) > 1)]
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        directory += struct.pack(order + "HHI", tag, 4, len(values))
        directory += packed if len(values) == 1 else struct.pack(order + "I", blob_at + len(blob))
        blob += packed if len(values) > 1 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    return head + directory + bytes(4) + blob + data


def bmp32(pixels: np.ndarray) -> bytes:
    """A Windows bitmap with version 4 header and real transparency, top-down, from RGBA."""
    height, width = pixels.shape[:2]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 108) + info + pixels[..., [2, 1, 0, 3]].tobytes()


def upright(content: bytes) -> np.ndarray:
    """What Pillow makes of it: the reference."""
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert turned is not None
    return np.asarray(turned.convert("RGB"))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(np.float64) - b).max())


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    return caught.value.reason
