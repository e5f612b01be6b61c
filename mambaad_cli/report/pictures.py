"""Photos and overlays small enough to travel in a report: WebP in data URIs, within a number of bytes each."""

import base64
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageError
from mambaad_cli.inspection.heatmap import ColourScale, overlay, thumbnail
from mambaad_cli.inspection.predict import Prediction

BYTES = 11_000_000  # of all pictures together; base64 and the rows of 2,000 images make 20 MB of it
LARGEST, SMALLEST = 384, 64  # pixels of a longer side
BYTES_PER_PIXEL = 0.12  # of a photo in WebP that still looks good
QUALITIES = (80, 60, 40, 20)


class Room(NamedTuple):
    """What a picture may take."""

    side: int  # pixels of its longer side
    bytes: int


class Pictures(NamedTuple):
    """What a report shows of an image."""

    photo: str  # data URI
    overlay: str  # data URI, "" where there is none
    width: int  # pixels of either
    height: int
    shape: tuple[int, int]  # height, width of the photo itself


def room_for(n: int) -> Room:
    """What each picture of n images may take, photo and overlay counted.

    >>> room_for(44), room_for(2000)
    (Room(side=384, bytes=17695), Room(side=151, bytes=2750))
    """
    most = round(LARGEST * LARGEST * BYTES_PER_PIXEL)
    each = min(most, BYTES // (2 * max(1, n)))
    side = min(LARGEST, max(SMALLEST, round(math.sqrt(each / BYTES_PER_PIXEL))))
    return Room(side, each)


def of_prediction(one: Prediction, scale: ColourScale | None, room: Room) -> Pictures | None:
    """Photo and overlay of a Prediction with its map; None where the photo could not be read."""
    if one.picture is None:
        return None
    small = thumbnail(one.picture, room.side)
    glowing = ""
    if scale is not None and one.anomaly_map is not None:
        glowing = encoded(overlay(small, one.anomaly_map, scale, one.inside), room)
    return Pictures(encoded(small, room), glowing, small.shape[1], small.shape[0], one.picture.shape[:2])


def of_files(paths: Sequence[Path], room: Room, workers: int) -> Iterator[Pictures | None]:
    """The photos alone, in order, read in threads; None for one that cannot be read."""

    def one(path: Path) -> Pictures | None:
        try:
            file = images.opened(path)
            small = thumbnail(file.decoded((room.side, room.side)), room.side)
        except ImageError:
            return None
        return Pictures(encoded(small, room), "", small.shape[1], small.shape[0], file.shape)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, paths)


def encoded(picture: np.ndarray, room: Room) -> str:
    """The picture (h, w, 3) uint8 RGB as a data URI of at most `room.bytes`: of lower quality, then smaller, to fit."""
    data = _encoding(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), room.bytes)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _encoding(picture: np.ndarray, most: int) -> bytes:
    for quality in QUALITIES:
        data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(data) <= most or max(picture.shape[:2]) <= 8:
            return data
    return _encoding(thumbnail(picture, max(picture.shape[:2]) // 2), most)
