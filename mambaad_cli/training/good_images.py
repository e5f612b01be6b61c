"""A folder of good images -> the files to learn from, the product of each, and what of the photos counts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data import datasets, images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.roi import MaskFolder, Wish
from mambaad_cli.files import shown
from mambaad_cli.inspection.recalibrate import product_name


@dataclass(frozen=True)
class GoodFiles:
    """The photos to learn from."""

    files: Sequence[ImageFile]
    classes: Sequence[str]  # the product of each
    inside: tuple[Wish, ...] = ()  # regions of interest
    ignored: tuple[Wish, ...] = ()  # regions that do not count
    masks: MaskFolder | None = None  # a mask for each photo


def good_images(folder: Path, unread: "Counter[str] | None" = None) -> tuple[list[ImageFile], list[str]]:
    """The images to learn from and the class of each: of a folder of good ones, or a benchmark's training images.

    unread: counts the pictures of kinds that are not read, as `images.find` does.

    Raises MambaADError where there are none.
    """
    if folder.is_dir() and datasets.is_dataset(folder):
        samples = datasets.training_images(datasets.load(folder, unread=unread))
        if not samples:
            raise MambaADError(f"{folder} is laid out as {datasets.recognise(folder)} but has no good training images")
        files = [ImageFile(sample.path, sample.path.relative_to(folder), sample.class_name) for sample in samples]
        return files, [sample.class_name for sample in samples]
    files = good_files(folder, unread)
    return files, [shown(file.group) or product_name(folder) for file in files]


def good_files(folder: Path, unread: "Counter[str] | None" = None) -> list[ImageFile]:
    """The images in a folder of good ones. Raises MambaADError where it is none."""
    files = images.find([folder], unread)
    if not folder.is_dir():
        raise MambaADError(f"no folder {shown(folder)}: expected a folder of good images")
    return files
