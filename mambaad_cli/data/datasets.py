"""A folder or a list of images -> labelled samples, whatever the benchmark's layout."""

from collections import Counter
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data.image_files import describe_unread
from mambaad_cli.data.layouts import (
    LAYOUTS,
    MARKS,
    Unread,
    class_folders,
    folders_in,
    is_class,
    is_pair,
    realiad_lists,
)
from mambaad_cli.data.lists import is_csv_list, is_meta, visible_files
from mambaad_cli.data.masks import read_mask, resize_mask
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import shown

__all__ = ["Sample", "is_dataset", "load", "read_mask", "recognise", "resize_mask", "training_images"]


def load(root: Path, layout: str | None = None, unread: Unread = None) -> list[Sample]:
    """All labelled samples below `root`; its layout (a key of LAYOUTS) is given or recognised.

    unread: counts the pictures in the folders of images that are of kinds that are not read, as `images.find` does.

    Raises MambaADError for an unknown layout, for a folder without images, and for a list that cannot be read or names
    files that do not exist.
    """
    if not root.exists():
        raise MambaADError(f"{shown(root)} does not exist: give the folder of a dataset")
    layout = layout or recognise(root)
    if layout not in LAYOUTS:
        raise MambaADError(f"no dataset layout is called {layout!r}: choose from {', '.join(LAYOUTS)}")
    left_out: Counter[str] = Counter()
    samples = LAYOUTS[layout](root, left_out)
    if not samples:
        but = describe_unread(left_out)
        expected = f"expected {MARKS[layout]}{but and '; it holds ' + but}"
        raise MambaADError(f"no images in {shown(root)} as layout {layout}: {expected}")
    if unread is not None:
        unread += left_out
    return samples


def recognise(root: Path) -> str:
    """The layout of `root`, recognised by names of folders, keys of a JSON file or the header of a CSV file.

    Where several fit, a benchmark's own list has precedence, then the folder tree, then meta.json, then a CSV file.
    Raises MambaADError where none fits.
    """
    layout = _layout(root)
    if layout is None:
        looked = "; ".join(f"{mark} ({name})" for name, mark in MARKS.items())
        raise MambaADError(f"cannot tell the dataset layout of {shown(root)}: looked for {looked}")
    return layout


def is_dataset(root: Path) -> bool:
    """Whether `root` has one of the layouts, and is not a plain folder of good images or of product folders."""
    return _layout(root) is not None


def training_images(samples: list[Sample]) -> list[Sample]:
    """The good samples of the training split.

    >>> good, bad = (Sample(Path("0.png"), "nut", "train", defect, None) for defect in ("good", "bent"))
    >>> training_images([good, bad, good._replace(split="test")]) == [good]
    True
    """
    return [sample for sample in samples if sample.split == "train" and not sample.anomalous]


def _layout(root: Path) -> str | None:
    """The layout of a folder or of a list file, if it has one."""
    if root.is_file():
        return "csv" if root.suffix.lower() == ".csv" else "meta" if is_meta(root) else None
    if not root.is_dir():
        return None
    if (root / "split_csv" / "1cls.csv").is_file():
        return "visa"
    if realiad_lists(root):
        return "realiad"
    if classes := class_folders(root, is_class):
        return _tree_layout(classes[0])
    if is_meta(root / "meta.json"):
        return "meta"
    if any(is_meta(file) for file in visible_files(root, "meta_*.json")):
        return "coco"
    if class_folders(root, is_pair):
        return "pair"
    return "csv" if any(is_csv_list(file) for file in visible_files(root, "*.csv")) else None


def _tree_layout(class_folder: Path) -> str:
    """mvtec3d, medical or mvtec, by the folders beside the images."""
    kinds = [kind for split in ("train", "test") for kind in folders_in(class_folder / split)]
    if any((kind / "rgb").is_dir() for kind in kinds):
        return "mvtec3d"
    return "medical" if any((kind / "img").is_dir() for kind in kinds) else "mvtec"
