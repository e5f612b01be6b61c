"""Anomaly maps made visible: overlays, contact sheets, 16-bit maps. Arrays in, arrays out; no files.

Pictures are (H, W, 3) RGB, uint8 or float32 in 0…255. An anomaly map is (h, w), of any size, and covers its whole
picture. All images of a model share one ColourScale, so a good part stays cold: no map is stretched to its own maximum.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

VERDICT_COLOURS = {"anomalous": (200, 38, 44), "review": (222, 150, 20), "good": (104, 150, 118), "error": (44, 46, 52)}
OTHER_VERDICT = (140, 140, 146)
GLOW = {0.0: (255, 190, 60), 0.35: (255, 160, 30), 0.6: (255, 84, 20), 0.8: (240, 28, 32), 1.0: (225, 6, 44)}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
PAPER, MAT, INK, FAINT_INK = WHITE, (238, 238, 240), (34, 36, 42), (120, 122, 130)
FONT, BOLD_FONT = cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX
OPACITY = 0.62  # of the glow where it is hottest: the part stays visible through it
BAND = 1 << 19  # pixels blended at a time, so that a huge picture needs little additional memory
DIM = 0.45  # brightness of what lies outside the region of interest
REGION_EDGE = (120, 190, 255)
RAW16_THRESHOLD, RAW16_UNIT = 32768, 16384  # raw16: code of the threshold, codes per |threshold|
HUGE = 1e30  # stands for infinity where values are interpolated: infinity times 0 would be NaN


class ColourScale(NamedTuple):
    """The colour scale of a class, in units of its anomaly maps; the image score is the maximum of a map."""

    cold: float  # the median score of good images
    threshold: float  # the model's decision threshold; maps and thresholds may be negative

    @property
    def span(self) -> float:
        """From cold to the threshold; half of |threshold| if the threshold does not lie above cold.

        >>> ColourScale(1.0, 2.0).span, ColourScale(-2.0, -2.0).span, ColourScale(0.0, 0.0).span
        (1.0, 1.0, 1.0)
        """
        span = self.threshold - self.cold
        return span if span > 0 else abs(self.threshold) / 2 or 1.0

    def margin(self, score: float) -> float:
        """How far a score lies above the threshold, in units of `span`, so that classes can be compared.

        >>> ColourScale(-3.0, -2.0).margin(-1.0), ColourScale(1.0, 2.0).margin(1.5)
        (1.0, -0.5)
        """
        return (score - self.threshold) / self.span


class Tile(NamedTuple):
    """One picture of a contact sheet."""

    image: np.ndarray  # (H, W, 3), best a thumbnail
    title: str
    score: float  # NaN: none
    verdict: str  # good, review, anomalous or error


def heat(anomaly_map: np.ndarray, scale: ColourScale) -> np.ndarray:
    """The heat of each value, float32 in 0…1: 0 up to cold, 0.5 at the threshold, towards 1 far above it.

    Linear up to the threshold, then 1 - 0.5 / r with r the distance from cold in units of threshold - cold: monotone
    and smooth at the threshold. NaN counts as the hottest value, because a broken map must not look good.

    >>> heat(np.array([[0.5, 1.0, 1.5, 2.0, 5.0]]), ColourScale(cold=1.0, threshold=2.0)).tolist()
    [[0.0, 0.0, 0.25, 0.5, 0.875]]
    """
    span = max(scale.span, 1 / HUGE)  # a smaller one is 0 in float32
    with np.errstate(over="ignore"):
        ratio = np.maximum(1 + (_finite(anomaly_map) - scale.threshold) / span, 0)
    return np.where(ratio <= 1, ratio / 2, 1 - 0.5 / np.maximum(ratio, 1)).astype(np.float32)


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, scale: ColourScale, inside: np.ndarray | None = None
) -> np.ndarray:
    """The picture with its heat glowing over it and the threshold as a thin line: uint8 RGB of the picture's size.

    Where the heat is 0 the picture is not changed at all. A line appears exactly if a value of the map exceeds the
    threshold. Its width grows with the picture, and a spot too small to be seen gets a small ring.

    inside: (h, w) of bool, the region of interest: outside it the picture is dimmed and cold, and a line goes round it.
    """
    height, width = image.shape[:2]
    if inside is not None:
        anomaly_map = np.where(inside, anomaly_map, scale.threshold - scale.span)
        image = _dimmed(image, inside)
    values = cv2.resize(_finite(anomaly_map), (width, height), interpolation=cv2.INTER_LINEAR)
    edge, line = _strokes(_threshold_lines(anomaly_map, scale.threshold), height, width)
    picture = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for band in (slice(top, top + rows) for top in range(0, height, rows)):
        glowing = _with_glow(_as_uint8(image[band]), heat(values[band], scale))
        edged = _painted(glowing, BLACK, edge[band], 0.5)
        picture[band] = _painted(edged, WHITE, line[band], 0.95)
    return picture


def framed(picture: np.ndarray, boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """The picture (H, W, 3) uint8 with a frame around each box (x, y, width, height in pixels), numbered from 1.

    Frames lie outside their boxes, where there is space. Their width grows with the picture, as in an overlay.
    """
    if not boxes:
        return picture
    height, width = picture.shape[:2]
    thickness = max(1, round(max(height, width) / 400))
    scale, gap = 0.45 * thickness, 3 * thickness
    drawn = picture.copy()
    for number, (x, y, wide, high) in reversed(list(enumerate(boxes, 1))):  # the first one, the worst, is drawn last
        left, top = max(0, x - gap), max(0, y - gap)
        right, bottom = min(width, x + wide + gap) - 1, min(height, y + high + gap) - 1
        (text_width, text_height), _ = cv2.getTextSize(str(number), FONT, scale, thickness)
        above = top - gap >= text_height
        at = max(0, min(left, width - text_width)), top - gap if above else min(height - 1, top + text_height + gap)
        for colour, stroke in ((BLACK, 3 * thickness), (WHITE, thickness)):
            cv2.rectangle(drawn, (left, top), (right, bottom), colour, stroke)
            cv2.putText(drawn, str(number), at, FONT, scale, colour, stroke, cv2.LINE_AA)
    return drawn


def raw16(anomaly_map: np.ndarray, scale: ColourScale) -> np.ndarray:
    """The map as uint16, comparable between all images of one class: 32768 is the threshold, and the codes reach twice
    |threshold| below and above it.

    map = threshold + (code − 32768) / 16384 · |threshold|. With a positive threshold, code 16384 is a map of 0 and
    lower codes are negative values. Values outside the range are cut off; NaN is 65535. For a threshold of 0, 1 takes
    the place of |threshold|.

    >>> raw16(np.array([[-0.25, 0.0, 0.5, 1.0, 9.0]]), ColourScale(cold=0.2, threshold=0.5)).tolist()
    [[8192, 16384, 32768, 49152, 65535]]
    """
    size = max(abs(scale.threshold), 1e-30) if scale.threshold else 1.0
    code = RAW16_THRESHOLD + (_finite(anomaly_map).astype(np.float64) - scale.threshold) / size * RAW16_UNIT
    return np.rint(np.clip(code, 0, 65535)).astype(np.uint16)


def thumbnail(image: np.ndarray, tile: int = 224) -> np.ndarray:
    """The picture scaled so that its longer side is `tile` pixels, aspect kept: uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    factor = tile / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(_as_uint8(image), size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def contact_sheet(tiles: Sequence[Tile], columns: int | None = None, tile: int = 224) -> np.ndarray:
    """All tiles in the order given, row by row, on one white sheet: uint8 RGB.

    A cell holds the picture, aspect kept, in a square of `tile` pixels with a frame of its verdict's colour, and below
    it the title, the verdict and the score. Without `columns` the grid is as square as possible. Pass thumbnails
    instead of full pictures, so that memory stays flat.
    """
    columns = columns or math.ceil(math.sqrt(len(tiles))) or 1
    rows = math.ceil(len(tiles) / columns)
    height, width = _cell_size(tile)
    gap = _gap(tile)
    sheet = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), PAPER, np.uint8)
    for i, one in enumerate(tiles):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = _cell(one, tile)
    return sheet


def _finite(anomaly_map: np.ndarray) -> np.ndarray:
    """float32 copy without NaN and infinities, NaN as the highest value."""
    with np.errstate(over="ignore"):
        values = np.asarray(anomaly_map).astype(np.float32)
    return np.clip(np.nan_to_num(values, nan=HUGE), -HUGE, HUGE)


def _dimmed(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The picture, dark and grey outside the region of interest (h, w), which has a thin bright edge."""
    height, width = image.shape[:2]
    picture = _as_uint8(image)
    share = cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dark = cv2.convertScaleAbs(grey, alpha=DIM)
    outside = (share < 0.5).astype(np.float32)
    dimmed = cv2.blendLinear(picture, dark, 1 - outside, outside)
    thickness = max(1, round(max(height, width) / 500))
    edges, _ = cv2.findContours((share >= 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(dimmed, edges, -1, REGION_EDGE, thickness, cv2.LINE_AA)


def _as_uint8(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _with_glow(picture: np.ndarray, warmth: np.ndarray) -> np.ndarray:
    """The picture under the colours of its heat (H, W); hotter colours are more opaque."""
    if not warmth.any():
        return picture
    opacity = OPACITY * warmth * warmth * (3 - 2 * warmth)
    return cv2.blendLinear(picture, _glow_colours()[np.rint(warmth * 255).astype(np.uint8)], 1 - opacity, opacity)


def _painted(picture: np.ndarray, colour: tuple[int, int, int], mask: np.ndarray, opacity: float) -> np.ndarray:
    """The picture with `colour` over it where the mask (H, W), 0…255, is set."""
    if not mask.any():
        return picture
    weight = mask * np.float32(opacity / 255)
    return cv2.blendLinear(picture, np.full_like(picture, colour), 1 - weight, weight)


def _glow_colours() -> np.ndarray:
    """(256, 3) RGB, indexed by heat · 255: GLOW, interpolated."""
    heats, colours = np.array(list(GLOW)), np.array(list(GLOW.values()))
    channels = [np.interp(np.linspace(0, 1, 256), heats, colours[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _threshold_lines(anomaly_map: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Closed lines around all that exceeds the threshold, each (n, 2) as x, y in 0…1 of the map's width and height.

    The map is first enlarged by an odd factor, so that each of its values has a pixel of its own and no peak is lost.
    """
    values = _finite(anomaly_map)
    factor = max(1, 1024 // max(values.shape)) | 1
    size = (values.shape[1] * factor, values.shape[0] * factor)
    fine = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    fine[factor // 2 :: factor, factor // 2 :: factor] = values  # equal but for rounding
    above = (fine.astype(np.float64) > threshold).astype(np.uint8)
    lines, _ = cv2.findContours(above, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return [(_smooth(line[:, 0].astype(np.float64)) + 0.5) / size for line in lines]


def _smooth(line: np.ndarray, reach: int = 3) -> np.ndarray:
    """The closed line (n, 2) without its pixel steps: each point the mean of `reach` neighbours either side."""
    return np.mean([np.roll(line, shift, axis=0) for shift in range(-reach, reach + 1)], axis=0)


def _strokes(lines: list[np.ndarray], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (height, width), 0…255: the dark edge of the lines, and the lines themselves."""
    thickness = max(1, round(max(height, width) / 400))
    lines = [_ring_if_smaller(line * (width, height), 6 * thickness) for line in lines]
    edge = thickness + 2 * math.ceil(thickness / 3)
    return _stroke(lines, height, width, edge), _stroke(lines, height, width, thickness)


def _ring_if_smaller(line: np.ndarray, least: float) -> np.ndarray:
    """The line; if it is smaller than `least` pixels, a ring of that diameter around its middle."""
    if np.ptp(line, axis=0).max() >= least:
        return line
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return line.mean(axis=0) + least / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _stroke(lines: list[np.ndarray], height: int, width: int, thick: int) -> np.ndarray:
    """(height, width) uint8: 255 where the lines run, `thick` pixels wide, anti-aliased and kept inside the picture."""
    size = np.array([width, height])
    inset = min(thick, height, width) / 2
    # OpenCV counts from the middle of the first pixel, here in sixteenths
    points = [np.rint((np.clip(line, inset, size - inset) - 0.5) * 16).astype(np.int32) for line in lines]
    mask = np.zeros((height, width), np.uint8)
    return cv2.polylines(mask, points, True, 255, thick, cv2.LINE_AA, shift=4) if points else mask


def _frame(tile: int) -> int:
    return max(2, round(tile / 75))


def _gap(tile: int) -> int:
    return max(4, tile // 14)


def _text_scale(tile: int) -> float:
    return max(0.38, 0.42 * tile / 224)


def _line_height(tile: int) -> int:
    return round(40 * _text_scale(tile))


def _cell_size(tile: int) -> tuple[int, int]:
    """(height, width) of a tile with its frame and its two lines of caption."""
    side = tile + 2 * _frame(tile)
    return side + 2 * _line_height(tile) + _line_height(tile) // 4, side


def _cell(one: Tile, tile: int) -> np.ndarray:
    """One framed picture with its caption: uint8 of _cell_size."""
    height, width = _cell_size(tile)
    colour = VERDICT_COLOURS.get(one.verdict, OTHER_VERDICT)
    frame = _frame(tile)
    cell = np.full((height, width, 3), PAPER, np.uint8)
    cell[:width] = colour
    cell[frame : frame + tile, frame : frame + tile] = MAT
    picture = thumbnail(one.image, tile)
    top, left = frame + (tile - picture.shape[0]) // 2, frame + (tile - picture.shape[1]) // 2
    cell[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    _caption(cell, one, tile, colour)
    return cell


def _caption(cell: np.ndarray, one: Tile, tile: int, colour: tuple[int, int, int]) -> None:
    """Write title, verdict and score under the picture of `cell`."""
    scale, line = _text_scale(tile), _line_height(tile)
    width = cell.shape[1]
    first, second = width + line, width + 2 * line
    title = shorten(one.title, width, scale)
    cv2.putText(cell, title, (0, first), FONT, scale, INK, 1, cv2.LINE_AA)
    cv2.putText(cell, one.verdict, (0, second), BOLD_FONT, scale, colour, 1, cv2.LINE_AA)
    score = three_figures(one.score)
    cv2.putText(cell, score, (width - _text_width(score, scale), second), FONT, scale, FAINT_INK, 1, cv2.LINE_AA)


def three_figures(score: float) -> str:
    """The score with three significant figures; nothing for NaN.

    >>> three_figures(0.5), three_figures(12.345), three_figures(123.4), three_figures(math.nan)
    ('0.500', '12.3', '123', '')
    """
    return "" if math.isnan(score) else f"{score:#.3g}".rstrip(".")


def shorten(text: str, room: int, scale: float) -> str:
    """The text as it can be drawn, its middle replaced by … where it is wider than `room` pixels.

    OpenCV draws all of Unicode from version 5 on. In older versions letters outside ASCII become ? and … three dots.

    >>> shorten("exp2_num_265639.jpg", 1000, 0.4)
    'exp2_num_265639.jpg'
    """
    codec, dots = ("utf-8", "…") if hasattr(cv2, "FontFace") else ("ascii", "...")
    text = text.encode(codec, "replace").decode(codec)
    kept, short = len(text), text
    while kept > 0 and _text_width(short, scale) > room:
        kept -= 1
        short = text[: (kept + 1) // 2] + dots + text[len(text) - kept // 2 :]
    return short


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, FONT, scale, 1)[0][0])
