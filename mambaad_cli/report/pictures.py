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
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.strips import strip

MAX_BYTES = 11_000_000  # of all pictures together; base64 and the rows of 2,000 images make 20 MB of it
MAX_SIDE, MIN_SIDE = 384, 64  # pixels of the longer side
BYTES_PER_PIXEL = 0.12  # of a photo in WebP that still looks good
QUALITIES = (80, 60, 40, 20)
EXPLAINED = 3  # regions of an image, the highest peaks first
MAX_EXPLANATION = 60_000  # bytes


class PictureLimits(NamedTuple):
    """The largest size of a picture in a report."""

    side: int  # pixels of its longer side
    bytes: int


class Pictures(NamedTuple):
    """The pictures of an image in a report."""

    photo: str  # data URI
    overlay: str  # data URI, "" where there is none
    width: int  # pixels of either
    height: int
    shape: tuple[int, int]  # height, width of the photo itself
    explained: tuple[str, ...] = ()  # data URIs: why each of the first regions is anomalous


def limits_for(n: int) -> PictureLimits:
    """The limits of each picture of n images, which have a photo and an overlay each.

    >>> limits_for(44), limits_for(2000)
    (PictureLimits(side=384, bytes=17695), PictureLimits(side=151, bytes=2750))
    """
    most = round(MAX_SIDE * MAX_SIDE * BYTES_PER_PIXEL)
    each = min(most, MAX_BYTES // (2 * max(1, n)))
    side = min(MAX_SIDE, max(MIN_SIDE, round(math.sqrt(each / BYTES_PER_PIXEL))))
    return PictureLimits(side, each)


def of_prediction(prediction: Prediction, scale: ColourScale | None, limits: PictureLimits) -> Pictures | None:
    """Photo and overlay of a Prediction with its map; None where the photo could not be read."""
    if prediction.picture is None:
        return None
    photo, heatmap = thumbnail(prediction.picture, limits.side), ""
    if scale is not None and prediction.anomaly_map is not None:
        heatmap = encoded(overlay(photo, prediction.anomaly_map, scale, prediction.inside), limits)
    height, width = photo.shape[:2]
    return Pictures(encoded(photo, limits), heatmap, width, height, prediction.picture.shape[:2])


def explanations_of(prediction: Prediction) -> tuple[str, ...]:
    """Why each of the first regions is anomalous, as data URIs; the prediction can be asked for explanations."""
    if prediction.picture is None or not prediction.regions:
        return ()
    found = []
    for number, one in enumerate(prediction.explain()[:EXPLAINED], 1):
        row = strip(prediction.picture, [one], prediction.file.name, number)
        found.append(encoded(row, PictureLimits(max(row.shape[:2]), MAX_EXPLANATION)))
    return tuple(found)


def of_files(paths: Sequence[Path], limits: PictureLimits, workers: int) -> Iterator[Pictures | None]:
    """The photos without overlays, in order, read in threads; None for a photo that cannot be read."""

    def read(path: Path) -> Pictures | None:
        try:
            file = images.opened(path)
            small = thumbnail(file.decoded((limits.side, limits.side)), limits.side)
        except ImageError:
            return None
        return Pictures(encoded(small, limits), "", small.shape[1], small.shape[0], file.shape)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(read, paths)


def encoded(picture: np.ndarray, limits: PictureLimits) -> str:
    """The picture (h, w, 3) uint8 RGB as a data URI of at most `limits.bytes`: it loses quality, then size."""
    data = _encoding(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), limits.bytes)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _encoding(picture: np.ndarray, most: int) -> bytes:
    for quality in QUALITIES:
        data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(data) <= most or max(picture.shape[:2]) <= 8:
            return data
    return _encoding(thumbnail(picture, max(picture.shape[:2]) // 2), most)
