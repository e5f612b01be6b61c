"""Good images that are least like the others: a defect among them would teach the model that defects are good.

Each image of a product is compared with a memory of the patches of the others (compare SoftPatch: Jiang et al., 2022).

Letters: n images, h × w positions of the memory's maps.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.memories import RememberedViews, compare_closest

PATCHES = 1000  # of the memory that images are compared with
ODD_DEVIATIONS = 3.5  # by the median absolute deviation of the logarithms: from there an image is a suspect
MIN_IMAGES = 8  # of a product, that tell what is odd


class Suspect(NamedTuple):
    """An image that is unlike the others of its product."""

    number: int  # of the image
    oddness: float  # deviations above the median of its product
    place: tuple[float, float]  # x, y of its oddest place, in shares of its width and height


def suspects_of(good: GoodImages, memories: Mapping[str, RememberedViews], device: str) -> list[Suspect]:
    """The suspects among images, the oddest first. memories: of the images of each product."""
    suspects: list[Suspect] = []
    for name in memories:
        images = good.of(name)
        if len(images) < MIN_IMAGES:
            continue
        views = tuple(view.first(PATCHES) for view in memories[name])
        maps = compare_closest(views, good, images, device).maps
        peaks = maps.flatten(1).amax(1).clamp(min=1e-6).log().cpu().numpy()
        centre = np.median(peaks)
        spread = 1.4826 * np.median(np.abs(peaks - centre)) or 1.0
        for i, image_map, oddness in zip(images, maps, (peaks - centre) / spread, strict=True):
            if oddness > ODD_DEVIATIONS:
                suspects.append(Suspect(i, float(oddness), place_of_peak(image_map)))
    return sorted(suspects, key=lambda suspect: -suspect.oddness)


def place_of_peak(image_map: Tensor) -> tuple[float, float]:
    """Where a map (h, w) is highest: x, y in shares of its width and height."""
    y, x = np.unravel_index(int(image_map.argmax()), image_map.shape)
    return float((x + 0.5) / image_map.shape[1]), float((y + 0.5) / image_map.shape[0])


def without(good: GoodImages, dropped: Sequence[int]) -> GoodImages:
    """The same images, but for some that are neither learnt from nor held out."""
    gone = set(dropped)
    train = [i for i in good.train if i not in gone]
    return good._replace(train=train, held_out=[i for i in good.held_out if i not in gone])
