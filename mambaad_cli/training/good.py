"""The good images of a training: what is learnt from, and what is held out for the threshold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mambaad_cli.training.features import Features

Pixels = Callable[[int], Tensor | None]  # of an image, (3, H, W) in 0 … 1, by its number; None where its file is gone


class GoodImages(NamedTuple):
    """The images of a training, by number: first the examples that the model carries, then the new ones."""

    features: Features
    names: list[str]  # the product of each
    train: list[int]  # learnt from
    held_out: list[int]  # kept for the threshold
    pixels: Pixels
    turned: frozenset[str] = frozenset()  # products that lie any way round
    paths: Sequence[Path | None] = ()  # of their files; None of an image that the model carries

    def of(self, name: str) -> list[int]:
        """The images of a product that are learnt from or held out, in order."""
        return [i for i in sorted({*self.train, *self.held_out}) if self.names[i] == name]

    def trained_of(self, name: str) -> list[int]:
        """The images of a product that are learnt from, each once."""
        return [i for i in dict.fromkeys(self.train) if self.names[i] == name]

    def from_number(self, first: int) -> "GoodImages":
        """The same, of which only the images from this number on are learnt from or held out."""
        return self._replace(
            train=[i for i in self.train if i >= first], held_out=[i for i in self.held_out if i >= first]
        )

    def held_out_of(self, name: str) -> list[int]:
        """The images of a product that are held out."""
        return [i for i in self.held_out if self.names[i] == name]
