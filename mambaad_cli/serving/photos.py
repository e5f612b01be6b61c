"""A photo as it came over the network -> what a model takes. Nothing that a client says is opened as a file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageError, ImageFile, errors_of
from mambaad_cli.inspection.predict import Reading, check_class
from mambaad_cli.inspection.scorer import Scorer

MAX_PIXELS = 100_000_000
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with opacity


class Photo(NamedTuple):
    """One photo of a request, not decoded yet."""

    name: str  # as the client calls it; only a label
    data: bytes  # of an image file; or pixels, row by row, where `shape` tells theirs
    shape: tuple[int, int, int] | None = None  # height, width and channels of pixels


class Reader(NamedTuple):
    """How photos are read for a scorer."""

    class_name: str | None = None  # of the photo; None: the only product there is, else it is recognised
    keep_picture: bool = False  # for an overlay
    max_pixels: int = MAX_PIXELS

    def read(self, photo: Photo, scorer: Scorer) -> Reading:
        """A photo as the scorer takes it, or the ImageError that says why it cannot be read.

        Raises MambaADError for a product that the model does not know.
        """
        check_class(scorer.products, self.class_name)
        told = self.class_name or (next(iter(scorer.products)) if len(scorer.products) == 1 else "")
        path = Path(photo.name)
        file = ImageFile(path, path, "")
        preparation = scorer.preparation
        try:
            with errors_of(path):
                if photo.shape is not None:
                    picture = images.as_rgb(np.frombuffer(photo.data, np.uint8).reshape(photo.shape))
                    return file, told, preparation.of_picture(picture, told, path)
                opened = images.opened(path, photo.data)
                height, width = opened.shape
                if height * width > self.max_pixels:
                    raise ValueError(f"claims {width}×{height} pixels, more than {self.max_pixels}")
                return file, told, preparation.wanted(told, self.keep_picture).of_opened(0, opened)[0]
        except ImageError as error:
            return file, told, ImageError(path, error.reason)  # the one caught holds the bytes, in its traceback
