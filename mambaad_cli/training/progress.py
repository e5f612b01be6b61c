"""The progress of a training. The class here does nothing; the command draws bars."""

from collections.abc import Sequence

from mambaad_cli.data.images import ImageError, ImageFile


class Progress:
    """Its methods are called for each image and each step."""

    def image(self) -> None:
        """Another file was read and encoded, or could not be read."""

    def unreadable(self, error: ImageError) -> None:
        """A file was left out."""

    def alike(self, name: str, groups: Sequence[Sequence[ImageFile]]) -> None:
        """Groups of files of a product that show nearly the same: each counts as one photo for the threshold."""

    def suspects(self, found: Sequence[tuple[ImageFile, float, tuple[float, float]]], dropped: int) -> None:
        """Images that are least like the others of their product, the oddest first: their files, how many deviations
        they are away, and where; so many of them are left out."""

    def passed_over(self, name: str, found: Sequence[tuple[ImageFile, float, tuple[float, float]]]) -> None:
        """Images of a product that do not set its threshold, because they are odd: as in `suspects`."""

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        """Optimisation step number `step` of `steps` is done, on a batch of `images`."""
