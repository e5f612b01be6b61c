"""Explanations as pictures: for each region a row with its place, good patches, and shares of the evidence.

Pictures are (H, W, 3) RGB uint8; places are x, y in shares of a picture's width and height.
"""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.images import decoded_bytes
from mambaad_cli.inspection.explanation import Explanation, GoodPatch
from mambaad_cli.inspection.heatmap import (
    BLACK,
    FAINT_INK,
    FONT,
    INK,
    MAT,
    WHITE,
    Tile,
    contact_sheet,
    shorten,
    three_figures,
)
from mambaad_cli.inspection.sources import Origin

MOST_ROWS = 10  # regions that are drawn
TILE = 224  # pixels of a picture's side
AROUND = 0.6  # of the photo's shorter side, that is shown around a patch at least
WIDER = 1.6  # times the region's longer side, that is shown at least
PATCHES = 3  # along a side, that the frame goes round: about what the encoder sees of a place
COLUMNS = 6  # the place, three nearest patches, what the decoder expected, the evidence
WARM, COOL = (225, 84, 40), (104, 150, 118)


def strip(picture: np.ndarray, explanations: Sequence[Explanation], title: str, first: int = 1) -> np.ndarray:
    """A row of pictures for each of the first regions of a picture (H, W, 3): uint8 (h, w, 3).

    first: the number of the first one.
    """
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    tiles = []
    for number, one in enumerate(explanations[:MOST_ROWS], first):
        tiles += _row(picture, one, f"{number}: {title}")
    return contact_sheet(tiles, COLUMNS, TILE)


def _row(picture: np.ndarray, one: Explanation, title: str) -> list[Tile]:
    height, width = picture.shape[:2]
    shorter = min(height, width)
    window = min(1.0, max(AROUND, WIDER * max(one.region.box[2:]) / shorter))  # of the shorter side
    frame = PATCHES * one.patch[0] * width / shorter, PATCHES * one.patch[1] * height / shorter
    tiles = [Tile(around(picture, one.place, window, frame), title, one.region.peak, "anomalous")]
    for number in range(COLUMNS - 3):
        patch = one.nearest[number] if number < len(one.nearest) else None
        tiles.append(_good(patch, "nearest good" if number == 0 else "next nearest", window, frame))
    tiles.append(_good(one.decoder_expected, "the decoder expected", window, frame))
    known = "" if one.known_defect is None else f"like {one.known_defect.kind or one.known_defect.name}"
    expected = "" if one.expected is None else f"expected distance {three_figures(one.expected)}"
    return [*tiles, Tile(bars(one.evidence), known or expected, one.region.peak, "adds up to")]


def _good(patch: GoodPatch | None, role: str, window: float, frame: tuple[float, float]) -> Tile:
    if patch is None:
        return Tile(_text("none"), "", math.nan, role)
    return Tile(_picture_of(patch.origin, window, frame), patch.origin.photo, patch.distance, role)


def _picture_of(origin: Origin, window: float, frame: tuple[float, float]) -> np.ndarray:
    """The place of a good patch; without a place the whole photo, without a picture a line that says so."""
    if origin.encoded is None:
        return _text("no picture kept")
    try:
        picture = decoded_bytes(origin.encoded)
    except ValueError as error:
        raise MambaADError(f"the model's picture of {origin.photo} is damaged ({error}): fit it anew") from None
    if origin.x is None or origin.y is None:
        return picture
    return around(picture, (origin.x, origin.y), window, frame)


def around(
    picture: np.ndarray, place: tuple[float, float], window: float, frame: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """The square part of a picture around a place, with a frame round the patch there: (TILE, TILE, 3).

    window, frame: in shares of the picture's shorter side. At the picture's borders the part is moved inwards.

    >>> around(np.zeros((80, 100, 3), np.uint8), (0.0, 1.0), 0.5).shape
    (224, 224, 3)
    """
    height, width = picture.shape[:2]
    side = max(1, min(round(window * min(height, width)), height, width))
    x, y = place[0] * width, place[1] * height
    left, top = (min(max(0, round(at - side / 2)), most - side) for at, most in ((x, width), (y, height)))
    part = picture[top : top + side, left : left + side]
    scale = TILE / side
    shown = cv2.resize(part, (TILE, TILE), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if min(frame) > 0:
        across, high = (share * min(height, width) * scale / 2 for share in frame)
        middle = (x - left) * scale, (y - top) * scale
        first = round(middle[0] - across), round(middle[1] - high)
        last = round(middle[0] + across), round(middle[1] + high)
        for colour, stroke in ((BLACK, 3), (WHITE, 1)):
            cv2.rectangle(shown, first, last, colour, stroke, cv2.LINE_AA)
    return shown


def bars(evidence: Mapping[str, float]) -> np.ndarray:
    """A bar for what each witness adds to the peak, and for what good photos usually have: (TILE, TILE, 3)."""
    drawn = np.full((TILE, TILE, 3), WHITE, np.uint8)
    largest = max((abs(value) for value in evidence.values()), default=0.0) or 1.0
    height = TILE // max(5, len(evidence))
    for number, (name, value) in enumerate(evidence.items()):
        top = number * height
        label = f"{name.replace('_', ' ')} {'-' if value < 0 else '+'}{three_figures(abs(value))}"
        cv2.putText(drawn, shorten(label, TILE, 0.42), (4, top + 16), FONT, 0.42, INK, 1, cv2.LINE_AA)
        end = 4 + round((TILE - 8) * abs(value) / largest)
        cv2.rectangle(drawn, (4, top + 21), (end, top + min(height - 4, 33)), WARM if value >= 0 else COOL, -1)
    return drawn


def _text(text: str) -> np.ndarray:
    drawn = np.full((TILE, TILE, 3), MAT, np.uint8)
    cv2.putText(drawn, text, (24, TILE // 2), FONT, 0.45, FAINT_INK, 1, cv2.LINE_AA)
    return drawn
