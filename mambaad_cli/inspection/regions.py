"""An anomaly map and a threshold -> where an image is anomalous: connected regions in pixels of the original image.

Letters: h × w values of the map, which covers its whole picture of H × W pixels. Pixels count from 0 at the top left.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from mambaad_cli.inspection.calibration import above


class Region(NamedTuple):
    """One connected region above the threshold, in pixels of the picture."""

    box: tuple[int, int, int, int]  # x, y, width, height: all pixels that the region touches
    area: int  # pixels, at least 1
    peak: float  # the highest value of the map in it
    peak_at: tuple[int, int]  # x, y
    centre: tuple[int, int]  # x, y, the mean of its pixels; it may lie outside a bent region


def find_regions(
    anomaly_map: np.ndarray,
    threshold: float,
    size: tuple[int, int],
    min_area: float = 0,
    inside: np.ndarray | None = None,
) -> tuple[Region, ...]:
    """Regions of an anomaly map (h, w) that exceed the threshold, in pixels of the picture of `size` (H, W).

    The highest peak comes first; values that touch at a corner belong together. Regions of fewer than `min_area` pixels
    are left out. Without `min_area` there is a region exactly if the map's maximum `exceeds` the threshold. `inside`,
    (h, w) of bool, is the region of interest that they lie in.

    >>> anomaly_map = np.array([[0.0, 0.0, 0.0, 5.0], [0.0, 7.0, 8.0, 0.0]])
    >>> find_regions(anomaly_map, 6.0, (20, 40))
    (Region(box=(10, 10, 20, 10), area=200, peak=8.0, peak_at=(25, 15), centre=(20, 15)),)
    """
    (height, width), (rows, columns) = size, anomaly_map.shape
    mask = above(anomaly_map, threshold).astype(np.uint8)
    if inside is not None:
        mask *= inside
    count, labels, boxes, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = []
    for label in range(1, count):  # 0 is the background
        left, top, wide, high, cells = (int(value) for value in boxes[label])
        area = max(1, round(cells * height * width / (rows * columns)))
        if area < min_area:
            continue
        part = np.s_[top : top + high, left : left + wide]
        inside = np.where(labels[part] == label, anomaly_map[part], -np.inf)
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        x0, y0 = left * width // columns, top * height // rows
        x1, y1 = -(-(left + wide) * width // columns), -(-(top + high) * height // rows)
        peak_at = (left + int(x) + 0.5) * width / columns, (top + int(y) + 0.5) * height / rows
        centre = (centres[label][0] + 0.5) * width / columns, (centres[label][1] + 0.5) * height / rows
        found.append(Region((x0, y0, x1 - x0, y1 - y0), area, float(inside.max()), _pixel(peak_at), _pixel(centre)))
    return tuple(sorted(found, key=lambda one: -one.peak))


def _pixel(at: tuple[float, float]) -> tuple[int, int]:
    """The pixel that a point lies in."""
    return int(at[0]), int(at[1])


def json_object(region: Region) -> dict[str, Any]:
    """A region as a JSON object.

    >>> json_object(Region((10, 10, 20, 10), 200, 8.0, (25, 15), (20, 15)))["peak"]
    {'value': 8.0, 'x': 25, 'y': 15}
    """
    x, y = region.peak_at
    return {
        "box": list(region.box),
        "area_px": region.area,
        "peak": {"value": region.peak, "x": x, "y": y},
        "centre": {"x": region.centre[0], "y": region.centre[1]},
    }


def of_json(found: Mapping[str, Any]) -> Region:
    """The region of a JSON object. Raises KeyError, TypeError or ValueError for an object that is none.

    >>> region = Region((10, 10, 20, 10), 200, 8.0, (25, 15), (20, 15))
    >>> of_json(json_object(region)) == region
    True
    """
    x, y, width, height = (int(value) for value in found["box"])
    peak, centre = found["peak"], found["centre"]
    return Region(
        (x, y, width, height),
        int(found["area_px"]),
        float(peak["value"]),
        (int(peak["x"]), int(peak["y"])),
        (int(centre["x"]), int(centre["y"])),
    )
