"""Good images that are least like the others: a defect among them would teach the model that defects are good.

Each image of a product is compared with a memory of the patches of the others (compare SoftPatch: Jiang et al., 2022).

Letters: n images, h × w positions of the memory's maps.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.memories import Looks, compare
from mambaad_cli.training.recipe import RunOptions

SIZE = 1000  # patches of the memory that images are compared with
ODD = 3.5  # deviations (by the median absolute deviation of the logarithms) from which an image is a suspect
FEWEST = 8  # images of a product that tell what is odd


class Suspect(NamedTuple):
    """An image that is unlike the others of its product."""

    number: int  # of the image
    oddness: float  # deviations above the median of its product
    place: tuple[float, float]  # x, y of its oddest place, in shares of its width and height


def suspects_of(good: GoodImages, memories: Mapping[str, Looks], run: RunOptions) -> list[Suspect]:
    """The suspects among all images, the oddest first. memories: of the images of each product."""
    found: list[Suspect] = []
    for name in dict.fromkeys(good.names):
        own = [i for i in sorted({*good.train, *good.held_out}) if good.names[i] == name]
        if len(own) < FEWEST:
            continue
        looks = tuple(one.first(SIZE) for one in memories[name])
        maps = compare(looks, good, own, run, closest=True)[0].maps
        peaks = maps.flatten(1).amax(1).clamp(min=1e-6).log().cpu().numpy()
        centre = np.median(peaks)
        spread = 1.4826 * np.median(np.abs(peaks - centre)) or 1.0
        for i, one, oddness in zip(own, maps, (peaks - centre) / spread, strict=True):
            if oddness > ODD:
                y, x = np.unravel_index(int(one.argmax()), one.shape)
                place = (float((x + 0.5) / one.shape[1]), float((y + 0.5) / one.shape[0]))
                found.append(Suspect(i, float(oddness), place))
    return sorted(found, key=lambda one: -one.oddness)


def without(good: GoodImages, dropped: Sequence[int]) -> GoodImages:
    """The same images, but for some that are neither learnt from nor held out."""
    gone = set(dropped)
    train = [i for i in good.train if i not in gone]
    return good._replace(train=train, held_out=[i for i in good.held_out if i not in gone])
