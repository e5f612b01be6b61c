"""Where the patches of a training image lie in its photo, those of its moved views too.

Letters: v views, h × w positions of the memory's patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaad_cli.data.augmentation import before_moving
from mambaad_cli.inspection.product import Size
from mambaad_cli.inspection.sources import grid_places, on_photo
from mambaad_cli.training.features import Seen


def places_of(seen: Seen, input_size: Size, shape: Sequence[int]) -> Tensor:
    """The middles of patches of `shape` (v, h, w), as x, y in shares of the photo's width and height: (v, h, w, 2).

    seen: what is known of the image, at the size that the encoder takes. The first view is the image itself.
    """
    views, rows, columns = shape
    places = grid_places((rows, columns))
    moved = [] if seen.moves is None else [before_moving(places, move) for move in seen.moves[: views - 1]]
    return on_photo(torch.stack([places, *moved]), seen.box, input_size)
