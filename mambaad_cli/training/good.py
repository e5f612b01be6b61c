"""The good images of a training: what is learnt from, and what is held out for the threshold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mambaad_cli.training.features import Features

Pixels = Callable[[int], Tensor | None]  # of an image, (3, H, W) in 0 … 1, by its number; None where its file is gone


class GoodImages(NamedTuple):
    """The images of a training, by number: first those that the model carries, then the new ones."""

    features: Features
    names: list[str]  # the product of each
    train: list[int]  # learnt from
    held_out: list[int]  # kept for the threshold
    pixels: Pixels
    turned: frozenset[str] = frozenset()  # products that lie any way round
    paths: Sequence[Path] = ()  # of their files, where none are carried by the model

    @property
    def parts(self) -> tuple[list[int], list[int]]:
        """What is learnt from, each image once, and what is held out."""
        return list(dict.fromkeys(self.train)), self.held_out
