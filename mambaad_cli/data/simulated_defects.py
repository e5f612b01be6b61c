"""Simulated defects: good images with a defect drawn into them, and where it is.

They estimate how many defects a model finds where no real defect is at hand. The decoder is never trained with them, so
the estimate is not of what it has learnt.

Letters: H × W pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mambaad_cli.data import roi

KINDS = ("cut-paste", "texture", "scratch", "spot", "missing")
LENGTHS = 0.02, 0.25  # smallest and largest, in shares of the square root of the image's pixels
VISIBLE = 0.05  # least mean change of the pixels, 0 … 1
MOSTLY = 0.8  # share of a defect that lies in the region of interest
ATTEMPTS = 8  # at a place that shows such a defect
AROUND = 8  # pixels around a missing part that what grows over it is taken from


class Place(NamedTuple):
    """Where a defect is painted."""

    picture: np.ndarray  # (H, W, 3) in 0 … 1
    other: np.ndarray  # another good image of the same size
    near: tuple[slice, slice]  # the rectangle in which it is painted

    @property
    def before(self) -> np.ndarray:
        """What the rectangle shows without the defect: (h, w, 3)."""
        return self.picture[self.near]


class Simulated(NamedTuple):
    """A good image with a defect."""

    pixels: Tensor  # (3, H, W) in 0 … 1
    kind: str  # one of KINDS
    length: float  # of the defect in pixels: of a scratch its length, else the root of its area
    inside: Tensor | None = None  # the region of interest that it lies in


def simulate(pixels: Tensor, other: Tensor, kind: str, seed: int, inside: Tensor | None = None) -> Simulated:
    """A defect of a kind, of random size, place and strength, in a good image (3, H, W) in 0 … 1.

    other: another good image of the same size, which pieces and textures are taken from.
    inside: the region of interest, bool of any size, outside which nothing is drawn.

    >>> defect = simulate(torch.zeros(3, 64, 64), torch.ones(3, 64, 64), "cut-paste", seed=0)
    >>> bool(defect.pixels.max() > 0.5), defect.kind
    (True, 'cut-paste')
    """
    picture = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy(), dtype=np.float32)
    source = np.ascontiguousarray(other.permute(1, 2, 0).numpy(), dtype=np.float32)
    region = np.ones((1, 1), bool) if inside is None else inside.cpu().numpy()
    region = roi.scaled(region, (picture.shape[0], picture.shape[1])).astype(np.float32)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        length = math.sqrt(picture.shape[0] * picture.shape[1]) * math.exp(
            rng.uniform(math.log(LENGTHS[0]), math.log(LENGTHS[1]))
        )
        drawn = (_stroke if kind == "scratch" else _blob)((picture.shape[0], picture.shape[1]), length, rng)
        near = _around(drawn)
        before, inside_it = picture[near], region[near]
        mask = drawn[near] * inside_it
        soft = cv2.GaussianBlur(mask, (0, 0), 0.7)[..., None]
        painted = PAINTED[kind](Place(picture, source, near), mask, rng)
        after = (before * (1 - soft) + painted * soft).clip(0, 1)
        changed = _mean_inside(np.abs(after - before), mask)
        if changed >= VISIBLE and float(mask.sum()) >= MOSTLY * float(drawn.sum()):
            break
    result = picture.copy()
    result[near] = np.where(inside_it[..., None] > 0, after, before)
    return Simulated(torch.from_numpy(result).permute(2, 0, 1).contiguous(), kind, length, inside)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """The rectangle of a mask with what is AROUND it: all that a defect can change or depend on."""
    x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    margin = AROUND + 4
    return slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)


def _place(shape: tuple[int, int], margin: float, rng: np.random.Generator) -> tuple[float, float]:
    """A random point x, y, not too near the border."""
    height, width = shape
    inside = [min(margin, side / 2 - 1) for side in (width, height)]
    return float(rng.uniform(inside[0], width - inside[0])), float(rng.uniform(inside[1], height - inside[1]))


def _blob(shape: tuple[int, int], length: float, rng: np.random.Generator) -> np.ndarray:
    """A bent ellipse with the area of a square of that side: (H, W) float32 in 0 … 1."""
    stretch = math.exp(rng.uniform(-0.7, 0.7))
    axes = length / math.sqrt(math.pi) * stretch, length / math.sqrt(math.pi) / stretch
    x, y = _place(shape, length / 2, rng)
    angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    bent = 1 + np.sum([rng.normal(0, 0.12) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in (2, 3, 4)], axis=0)
    points = np.stack([axes[0] * np.cos(angles), axes[1] * np.sin(angles)], 1) * bent[:, None]
    turn = rng.uniform(0, math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return _filled(shape, points @ rotation.T + [x, y])


def _stroke(shape: tuple[int, int], length: float, rng: np.random.Generator) -> np.ndarray:
    """A thin bent line of that length: (H, W) float32 in 0 … 1."""
    x, y = _place(shape, length / 2, rng)
    turn, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.5)
    steps = np.linspace(-0.5, 0.5, 24)
    along = turn + bend * steps
    points = np.stack([x + length * steps * np.cos(along), y + length * steps * np.sin(along)], 1)
    mask = np.zeros(shape, np.uint8)
    thickness = int(rng.integers(1, 3))
    cv2.polylines(mask, [np.rint(points * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _filled(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _mean_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean over all channels of values (H, W, 3), weighted by a mask (H, W)."""
    return float(values.reshape(-1, 3).sum(1) @ mask.ravel()) / (3 * max(float(mask.sum()), 1e-6))


def _contrast(before: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> float:
    """A change of brightness that can be seen there: up where it is dark, down where it is bright, else either way."""
    bright = _mean_inside(before, mask)
    sign = 1 if bright < 0.25 else -1 if bright > 0.75 else int(rng.choice([-1, 1]))
    return sign * float(rng.uniform(0.15, 0.5))


def _cut_paste(place: Place, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A piece of another good image, from another place, turned."""
    height, width = place.other.shape[:2]
    moved = [(np.arange(side) - int(rng.integers(side))) % side for side in (height, width)]
    rows, columns = (line[:: int(rng.choice([-1, 1]))][part] for line, part in zip(moved, place.near, strict=True))
    return place.other[np.ix_(rows, columns)]


def _texture(place: Place, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise blended in, as of stains and corrosion."""
    height, width = place.picture.shape[:2]
    cells = int(rng.integers(4, 32))
    noise = cv2.resize(
        rng.uniform(-1, 1, (cells, cells)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )[place.near]
    red, green, blue = np.moveaxis(place.picture, 2, 0)
    grey = max(float(np.abs(red - green).max()), float(np.abs(green - blue).max())) < 0.01
    tint = rng.uniform(0.5, 1.0, 1 if grey else 3).astype(np.float32)
    return place.before + abs(_contrast(place.before, mask, rng)) * noise[..., None] * tint


def _line(place: Place, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scratch: brighter or darker than what it runs over."""
    return place.before + np.float32(_contrast(place.before, mask, rng))


def _spot(place: Place, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A spot of one colour, as of dirt or a hole."""
    colour = place.before[mask > 0].mean(0) if (mask > 0).any() else place.picture.mean((0, 1))
    return np.broadcast_to(colour + np.float32(_contrast(place.before, mask, rng)), place.before.shape)


def _missing(place: Place, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is around it grown over it, as where a part is missing."""
    hole = (cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(hole)
    filled = place.before.copy()
    if width:
        near = slice(max(0, y - AROUND), y + height + AROUND), slice(max(0, x - AROUND), x + width + AROUND)
        patch = cv2.inpaint((filled[near] * 255).astype(np.uint8), hole[near], 3, cv2.INPAINT_TELEA)
        filled[near] = patch.astype(np.float32) / 255
    return filled


PAINTED: dict[str, Callable[[Place, np.ndarray, np.random.Generator], np.ndarray]] = {
    "cut-paste": _cut_paste,
    "texture": _texture,
    "scratch": _line,
    "spot": _spot,
    "missing": _missing,
}
