"""What a training tells whoever watches it. This one keeps silent; the command draws bars."""

from mambaad_cli.data.images import ImageError


class Progress:
    """Told of each image and each step."""

    def image(self) -> None:
        """One more file was read and encoded, or could not be read."""

    def unreadable(self, error: ImageError) -> None:
        """A file was left out."""

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        """One more optimisation step on so many images is done, of all steps that the training takes."""
