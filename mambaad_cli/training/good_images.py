"""A folder of good images -> the files to learn from and the product of each."""

from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data import datasets, images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown
from mambaad_cli.inspection.recalibration import product_name


def good_images(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """The images to learn from and the class of each: of a folder of good ones, or a benchmark's training images.

    Raises MambaADError where there are none.
    """
    if folder.is_dir() and datasets.is_dataset(folder):
        samples = datasets.training_images(datasets.load(folder))
        if not samples:
            raise MambaADError(f"{folder} is laid out as {datasets.recognise(folder)} but has no good training images")
        files = [ImageFile(one.path, one.path.relative_to(folder), one.class_name) for one in samples]
        return files, [one.class_name for one in samples]
    files = good_files(folder)
    return files, [shown(file.group) or product_name(folder) for file in files]


def good_files(folder: Path) -> list[ImageFile]:
    """The images in a folder of good ones. Raises MambaADError where it is none."""
    files = images.find([folder])
    if not folder.is_dir():
        raise MambaADError(f"no folder {shown(folder)}: expected a folder of good images")
    return files
