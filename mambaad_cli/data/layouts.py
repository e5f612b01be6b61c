"""The folder layouts of the benchmarks -> labelled samples.

A sample's label is the name of its folder or its row in the benchmark's list. It is never taken from a resized mask, so
a 3×3 px defect in a 1024² image stays a defect. `mask` is None for every good sample (read_mask then gives zeros) and
for an anomalous one without a mask file, which counts for image metrics only. Samples come in natural order
(2.png before 10.png), or in that of the list.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambaad_cli import MambaADError
from mambaad_cli.data.image_files import SUFFIXES, is_hidden, natural_order, same_name, unread_suffix
from mambaad_cli.data.lists import (
    csv_rows,
    existing,
    json_object,
    listed,
    only_file,
    split_named,
    value_in,
    visible_files,
)
from mambaad_cli.data.samples import GOOD_LABELS, Sample, defect_named
from mambaad_cli.files import shown

Unread = Counter[str] | None  # counts, by suffix, the pictures beside the images that are of kinds that are not read

# ---- folder trees: the names of folders are the labels ----


def mvtec(root: Path, unread: Unread = None) -> list[Sample]:
    """MVTec AD, MVTec LOCO, MPDD, BTAD, and VisA as its authors' script rearranges it (folder `1cls`).

    One class or several.

    <root>/<class>/
        train/good/000.png
        test/good/000.png
        test/<defect>/000.png
        ground_truth/<defect>/000_mask.png

    BTAD says `ok` and `ko` for good and defective; its masks, like VisA's, have the image's own stem (`0000.png` or
    `.bmp`). MVTec LOCO has a folder of masks for each image (`ground_truth/<defect>/000/*.png`), which are united; its
    `validation/` is not read. Masks may be missing, for one image or for a whole class.
    """
    return _tree(root, unread)


def mvtec3d(root: Path, unread: Unread = None) -> list[Sample]:
    """MVTec 3D-AD, its colour images; `xyz/` is not read, nor is `validation/`: published numbers use train and test.

    <root>/<class>/
        train/good/rgb/000.png
        validation/good/rgb/000.png
        test/<good or defect>/rgb/000.png
        test/<good or defect>/gt/000.png
    """
    return _tree(root, unread, images="rgb", masks="gt")


def medical(root: Path, unread: Unread = None) -> list[Sample]:
    """Uni-Medical (brain, liver, retinal) in the folders of BMAD, from which it was made.

    <root>/<class>/
        train/good/0.png
        test/good/img/0.png
        test/Ungood/img/0.png
        test/Ungood/label/0.png

    Public descriptions do not agree on one tree: `img/` may be absent, and masks may lie in `ground_truth/Ungood/`
    (then this is `mvtec`). Both are read. A copy that comes with a meta.json is read exactly by layout `meta`.
    """
    return _tree(root, unread, images="img", masks="label")


def pair(root: Path, unread: Unread = None) -> list[Sample]:
    """A folder of good and one of bad images, all test images; one product or several. Masks may be missing.

    <root>/[<class>/]
        good/1.png
        bad/2.png
        masks/2.png     (or 2_mask.png)
    """
    samples = []
    for folder in class_folders(root, is_pair):
        masks = _masks_in(folder / "masks")
        for kind in folders_in(folder):
            name, defect = _name(folder), defect_named(kind.name)
            if defect in ("good", "bad"):
                samples += [_sample(path, name, "test", defect, masks) for path in _images(kind, unread)]
    return samples


# ---- lists: a file names each image and its label ----


def visa(root: Path, unread: Unread = None) -> list[Sample]:
    """VisA as downloaded, with its one-class split.

    <root>/
        split_csv/1cls.csv      object,split,label,image,mask
        <class>/Data/Images/Normal/0000.JPG
        <class>/Data/Images/Anomaly/000.JPG
        <class>/Data/Masks/Anomaly/000.png
    """
    table = root / "split_csv" / "1cls.csv"
    samples = []
    for number, row in csv_rows(table, {"object", "split", "label", "image", "mask"}):
        split = split_named(row["split"], f"{shown(table)} line {number}")
        samples.append(listed(root, row["image"], row["object"], split, defect_named(row["label"]), row["mask"]))
    return existing(samples, table)


def realiad(root: Path, unread: Unread = None) -> list[Sample]:
    """Real-IAD: one JSON file for each class. Of the image folders the one with the largest number in its name is read.

    <root>/
        realiad_jsons/[realiad_jsons/]<class>.json
        realiad_1024/<class>/OK/S0001/….jpg
        realiad_1024/<class>/NG/<defect>/S0001/….jpg and ….png

        {"meta": {"normal_class": "OK", "prefix": "<class>/"},
         "train": [{"category": …, "anomaly_class": "OK", "image_path": "OK/S0001/….jpg", "mask_path": null}, …],
         "test": […]}

    To use another of its lists (`realiad_jsons_sv`: single view; `realiad_jsons_fuiad_0.1`: noisy), give that folder of
    JSON files as root.
    """
    files = realiad_lists(root)
    if not files:
        raise MambaADError(f"no <class>.json in {shown(root / 'realiad_jsons')}: expected Real-IAD's lists there")
    lists = {file: json_object(file) for file in files}
    images = _realiad_images(lists)
    samples = []
    for file, data in lists.items():
        base, normal = (
            images / _realiad_prefix(file, data),
            value_in(data, "meta", dict, file).get("normal_class", "OK"),
        )
        for split in ("train", "test"):
            for entry in value_in(data, split, list, file):
                kind, path = (value_in(entry, key, str, file) for key in ("anomaly_class", "image_path"))
                defect = "good" if kind == normal else kind
                samples.append(listed(base, path, file.stem, split, defect, entry.get("mask_path")))
    return existing(samples, root)


def meta(root: Path, unread: Unread = None) -> list[Sample]:
    """A meta.json as it comes with many prepared copies (Uni-Medical, VisA, MVTec-AD…); root may be the file itself.

    <root>/
        meta.json       {"train": {"<class>": […]}, "test": {"<class>": [
                            {"img_path": "<class>/test/<defect>/000.png", "mask_path": "…" or "",
                             "cls_name": "<class>", "specie_name": "<defect>", "anomaly": 1}, …]}}
        …               images and masks, at the entries' paths, which count from the file's folder
    """
    file = only_file(root, "meta*.json")
    data = json_object(file)
    samples = []
    for split in ("train", "test"):
        classes = value_in(data, split, dict, file)
        for name in classes:
            for entry in value_in(classes, name, list, file):
                path, kind = value_in(entry, "img_path", str, file), defect_named(entry.get("specie_name") or "good")
                # the flag decides, because some files give an anomalous image no kind, or the kind good
                anomalous = value_in(entry, "anomaly", int, file)
                defect = "good" if not anomalous else "anomaly" if kind == "good" else kind
                samples.append(listed(file.parent, path, name, split, defect, entry.get("mask_path")))
    return existing(samples, file)


def coco(root: Path, unread: Unread = None) -> list[Sample]:
    """COCO-AD: four splits of COCO 2017's classes. Give the file of one split: each is trained and tested by itself.

    <root>/
        meta_20_0.json … meta_20_3.json
        train2017/*.jpg
        val2017/*.jpg
        val2017_mask_ad_20_0/*.png … val2017_mask_ad_20_3/*.png

    The tree is publicly described. The keys in the files are not: they are assumed to be those of layout `meta`.
    """
    return meta(only_file(root, "meta_*.json"), unread)


def csv_list(root: Path, unread: Unread = None) -> list[Sample]:
    """A CSV file, or the folder that holds exactly one: for images in any folders.

    <root>/
        list.csv        path,label,mask,class,split
                        a/1.png,good,,gear,train
                        a/2.png,scratch,masks/2.png,gear,test

    Paths count from the file's folder. The columns `path` and `label` are required. The labels good, ok, normal and 0
    mean good; any other is the kind of defect. Without `class` the class is the folder's name, without `split` the
    split is test.
    """
    file = only_file(root, "*.csv")
    samples = []
    for number, row in csv_rows(file, {"path", "label"}):
        where = f"{shown(file)} line {number}"
        if not row["path"] or not row["label"]:
            raise MambaADError(f"{where}: path or label is empty")
        defect = "good" if row["label"].lower() in GOOD_LABELS else row["label"]
        split = split_named(row.get("split") or "test", where)
        name = row.get("class") or _name(file.parent)
        samples.append(listed(file.parent, row["path"], name, split, defect, row.get("mask")))
    return existing(samples, file)


LAYOUTS: dict[str, Callable[[Path, Unread], list[Sample]]] = {
    "mvtec": mvtec,
    "visa": visa,
    "realiad": realiad,
    "mvtec3d": mvtec3d,
    "medical": medical,
    "meta": meta,
    "coco": coco,
    "pair": pair,
    "csv": csv_list,
}

MARKS = {
    "mvtec": "train/good/ or test/good/, here or one level below",
    "visa": "split_csv/1cls.csv",
    "realiad": "realiad_jsons/<class>.json",
    "mvtec3d": "train/good/rgb/",
    "medical": "test/Ungood/img/",
    "meta": "meta.json with train and test",
    "coco": "meta_20_0.json",
    "pair": "good/ beside bad/",
    "csv": "a .csv with columns path and label",
}


# ---- how folder trees are read ----


def is_class(folder: Path) -> bool:
    """Whether train/ or test/ inside holds a folder of good images."""
    return any(defect_named(kind.name) == "good" for split in ("train", "test") for kind in folders_in(folder / split))


def is_pair(folder: Path) -> bool:
    """Whether a folder bad/ lies beside one of good images."""
    return (folder / "bad").is_dir() and any(defect_named(kind.name) == "good" for kind in folders_in(folder))


def class_folders(root: Path, holds_class: Callable[[Path], bool]) -> list[Path]:
    """`root` itself, or those of its folders that hold a class."""
    return [root] if holds_class(root) else [folder for folder in folders_in(root) if holds_class(folder)]


def _name(path: Path) -> str:
    """The name of a file or folder, also of `.` and `..`; a symbolic link has its own name, not its target's."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100 (Path.resolve follows links, Path.absolute keeps `..`)


def _tree(root: Path, unread: Unread, images: str = "", masks: str = "") -> list[Sample]:
    """Samples of <class>/<split>/<kind>/; the images and masks may lie in folders of those names inside it."""
    samples = []
    for folder in class_folders(root, is_class):
        ground_truth = {same_name(kind.name): kind for kind in folders_in(folder / "ground_truth")}
        for split in ("train", "test"):
            for kind in folders_in(folder / split):
                inside = kind / images if (kind / images).is_dir() else kind
                beside = kind / masks if masks and (kind / masks).is_dir() else ground_truth.get(same_name(kind.name))
                masks_of_kind = {} if beside is None else _masks_in(beside)
                name, defect = _name(folder), defect_named(kind.name)
                samples += [_sample(path, name, split, defect, masks_of_kind) for path in _images(inside, unread)]
    return samples


def _sample(path: Path, class_name: str, split: str, defect: str, masks: dict[str, Path]) -> Sample:
    stem = same_name(path.stem)
    mask = None if defect == "good" else masks.get(f"{stem}_mask", masks.get(stem))
    return Sample(path, class_name, split, defect, mask)


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, in natural order; none where there is no such folder."""
    # os.path.isdir, for DirEntry.is_dir raises where a link points to itself
    return _visible(folder, lambda entry: os.path.isdir(entry.path))  # noqa: PTH112


def _images(folder: Path, unread: Unread = None) -> list[Path]:
    files = _visible(folder, lambda entry: not os.path.isdir(entry.path))  # noqa: PTH112
    if unread is not None:
        unread.update(suffix for path in files if (suffix := unread_suffix(path.name)) is not None)
    return [path for path in files if path.name.lower().endswith(SUFFIXES)]


def _visible(folder: Path, wanted: "Callable[[os.DirEntry[str]], bool]") -> list[Path]:
    """What is wanted of the visible entries of `folder`, in natural order; nothing where there is no such folder."""
    try:
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if not is_hidden(entry.name) and wanted(entry)]
    except OSError as error:
        raise MambaADError(f"cannot list {shown(folder)}: {error.strerror}") from error
    return sorted(paths, key=lambda path: natural_order(path.name))


def _masks_in(folder: Path) -> dict[str, Path]:
    """The masks of the images of one folder by the stem that they have, and folders of masks by their name."""
    folders = {same_name(inside.name): inside for inside in folders_in(folder) if _images(inside)}
    return folders | {same_name(file.stem): file for file in _images(folder)}


# ---- how Real-IAD's lists and images are found ----


def realiad_lists(root: Path) -> list[Path]:
    """The lists of Real-IAD, which unpack as realiad_jsons/realiad_jsons/; `root` may be the folder that holds them."""
    inside = root / "realiad_jsons"
    itself = [root] if root.resolve().name.startswith("realiad_jsons") else []
    lists = (visible_files(folder, "*.json") for folder in (*itself, inside, inside / "realiad_jsons"))
    return sorted(next(filter(None, lists), []), key=lambda path: natural_order(path.name))


def _realiad_images(lists: dict[Path, dict[str, Any]]) -> Path:
    """The folder, near the lists, that their paths count from; the images of 1024 px before those of 512 and 256."""
    above = list(next(iter(lists)).resolve().parents)[1:3]
    candidates = [folder for base in above for folder in (*reversed(folders_in(base)), base)]
    for file, data in lists.items():
        for folder in candidates:
            if (folder / _realiad_prefix(file, data)).is_dir():
                return folder
    return above[0]


def _realiad_prefix(file: Path, data: dict[str, Any]) -> str:
    return value_in(data, "meta", dict, file).get("prefix", f"{file.stem}/")
