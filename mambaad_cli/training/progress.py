"""The progress of a training. The class here does nothing; the command draws bars."""

from mambaad_cli.data.images import ImageError


class Progress:
    """Its methods are called for each image and each step."""

    def image(self) -> None:
        """Another file was read and encoded, or could not be read."""

    def unreadable(self, error: ImageError) -> None:
        """A file was left out."""

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        """Optimisation step number `step` of `steps` is done, on a batch of `images`."""
