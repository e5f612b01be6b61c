"""HEIC and AVIF, the formats of phones: decoded by Pillow with pillow-heif, the optional extra `heif`."""

import io
from typing import Any

import numpy as np

ORIENTATION = 274  # the Exif tag
BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"}


def is_heif(data: bytes) -> bool:
    """Whether the file begins as HEIC and AVIF do.

    >>> is_heif(b"\\0\\0\\0\\x18ftypheic"), is_heif(b"GIF89a")
    (True, False)
    """
    return data[4:8] == b"ftyp" and data[8:12] in BRANDS


def size_and_orientation(data: bytes) -> tuple[int, int, int]:
    """Width and height as `decoded` gives them, and the Exif orientation that is still to be applied."""
    with _opened(data) as picture:
        orientation = picture.getexif().get(ORIENTATION, 1)
        return *picture.size, orientation if orientation in range(1, 9) else 1


def decoded(data: bytes) -> np.ndarray:
    """The pixels of 8 bits in OpenCV's order: (h, w, 4) of blue, green, red and opacity."""
    with _opened(data) as picture:
        return np.ascontiguousarray(np.asarray(picture.convert("RGBA"))[..., [2, 1, 0, 3]])


def _opened(data: bytes) -> Any:
    try:
        import pillow_heif
        from PIL import Image
    except ImportError:
        raise ValueError("a HEIC or AVIF picture: pip install 'mambaad[heif]' to read it, or save it as JPEG") from None
    pillow_heif.register_heif_opener()  # AVIF is built into Pillow
    try:
        return Image.open(io.BytesIO(data))
    except OSError as error:
        raise ValueError("damaged, or a HEIC or AVIF picture of a kind that Pillow does not decode") from error
