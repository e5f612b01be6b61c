"""Benchmark folder layouts -> labelled samples.

A sample's label is its folder's name or its row in the benchmark's list; it is never read from a resized mask, so a
3×3 px defect in a 1024² image stays a defect. `mask` is None for every good sample (read_mask then gives zeros) and for
an anomalous one without a mask file, which counts for image metrics only. Samples come in natural order
(2.png before 10.png), or in that of the list.
"""

import csv
import json
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.images import SUFFIXES

T = TypeVar("T")

GOOD_FOLDERS = {"good", "ok", "normal"}
GOOD_LABELS = GOOD_FOLDERS | {"0", "0.0", "false"}  # "0.0": what pandas writes for a column with gaps


class Sample(NamedTuple):
    """One labelled image.

    >>> Sample(Path("000.png"), "bottle", "test", "scratch", None).anomalous
    True
    """

    path: Path
    class_name: str
    split: str  # train | test
    defect: str  # good, or the kind of defect
    mask: Path | None

    @property
    def anomalous(self) -> bool:
        return self.defect != "good"


# Folder trees: the folder names are the labels


def mvtec(root: Path) -> list[Sample]:
    """MVTec-AD, MPDD, BTAD, VisA as its authors' script rearranges it (the `1cls` folder); one class or several.

    <root>/<class>/
        train/good/000.png
        test/good/000.png
        test/<defect>/000.png
        ground_truth/<defect>/000_mask.png

    BTAD says `ok` and `ko` for good and defective; its masks, like VisA's, have the image's own stem (`0000.png` or
    `.bmp`). Masks may be missing, for one image or for a whole class.
    """
    return _tree(root)


def mvtec3d(root: Path) -> list[Sample]:
    """MVTec 3D-AD, its colour images; `xyz/` is not read, nor is `validation/`: published numbers use train and test.

    <root>/<class>/
        train/good/rgb/000.png
        validation/good/rgb/000.png
        test/<good or defect>/rgb/000.png
        test/<good or defect>/gt/000.png
    """
    return _tree(root, images="rgb", masks="gt")


def medical(root: Path) -> list[Sample]:
    """Uni-Medical (brain, liver, retinal) in the folders of BMAD, from which it was made.

    <root>/<class>/
        train/good/0.png
        test/good/img/0.png
        test/Ungood/img/0.png
        test/Ungood/label/0.png

    Public descriptions do not agree on one tree: `img/` may be absent, and masks may lie in `ground_truth/Ungood/`
    (then this is `mvtec`). Both are read. A copy that comes with a meta.json is read exactly by layout `meta`.
    """
    return _tree(root, images="img", masks="label")


def pair(root: Path) -> list[Sample]:
    """Good beside bad, all of them to test on; one product or a folder of them. Masks may be missing.

    <root>/[<class>/]
        good/1.png
        bad/2.png
        masks/2.png     (or 2_mask.png)
    """
    samples = []
    for folder in _class_folders(root, _is_pair):
        masks = _by_stem(folder / "masks")
        for kind in _folders(folder):
            name, defect = folder.resolve().name, _defect(kind.name)
            if defect in ("good", "bad"):
                samples += [_sample(path, name, "test", defect, masks) for path in _images(kind)]
    return samples


# Lists: a file names each image and its label


def visa(root: Path) -> list[Sample]:
    """VisA as downloaded, with its one-class split.

    <root>/
        split_csv/1cls.csv      object,split,label,image,mask
        <class>/Data/Images/Normal/0000.JPG
        <class>/Data/Images/Anomaly/000.JPG
        <class>/Data/Masks/Anomaly/000.png
    """
    table = root / "split_csv" / "1cls.csv"
    samples = []
    for number, row in _rows(table, {"object", "split", "label", "image", "mask"}):
        split = _split(row["split"], f"{table} line {number}")
        samples.append(_listed(root, row["image"], row["object"], split, _defect(row["label"]), row["mask"]))
    return _existing(samples, table)


def realiad(root: Path) -> list[Sample]:
    """Real-IAD: a JSON file a class. The largest of the image folders is read, as its name goes.

    <root>/
        realiad_jsons/[realiad_jsons/]<class>.json
        realiad_1024/<class>/OK/S0001/….jpg
        realiad_1024/<class>/NG/<defect>/S0001/….jpg and ….png

        {"meta": {"normal_class": "OK", "prefix": "<class>/"},
         "train": [{"category": …, "anomaly_class": "OK", "image_path": "OK/S0001/….jpg", "mask_path": null}, …],
         "test": […]}

    For another of its lists (`realiad_jsons_sv`: single view; `realiad_jsons_fuiad_0.1`: noisy) give that folder of
    JSON files as root.
    """
    files = _realiad_files(root)
    if not files:
        raise MambaADError(f"no <class>.json in {root / 'realiad_jsons'}: expected Real-IAD's lists there")
    lists = {file: _json(file) for file in files}
    images = _realiad_images(lists)
    samples = []
    for file, data in lists.items():
        base, normal = images / _realiad_prefix(file, data), _get(data, "meta", dict, file).get("normal_class", "OK")
        for split in ("train", "test"):
            for entry in _get(data, split, list, file):
                kind, path = (_get(entry, key, str, file) for key in ("anomaly_class", "image_path"))
                defect = "good" if kind == normal else kind
                samples.append(_listed(base, path, file.stem, split, defect, entry.get("mask_path")))
    return _existing(samples, root)


def meta(root: Path) -> list[Sample]:
    """A meta.json as many prepared copies carry it (Uni-Medical, VisA, MVTec-AD…); root may be the file itself.

    <root>/
        meta.json       {"train": {"<class>": […]}, "test": {"<class>": [
                            {"img_path": "<class>/test/<defect>/000.png", "mask_path": "…" or "",
                             "cls_name": "<class>", "specie_name": "<defect>", "anomaly": 1}, …]}}
        …               images and masks, where the entries say, from the file's folder on
    """
    file = _the_file(root, "meta*.json")
    data = _json(file)
    samples = []
    for split in ("train", "test"):
        classes = _get(data, split, dict, file)
        for name in classes:
            for entry in _get(classes, name, list, file):
                path, kind = _get(entry, "img_path", str, file), _defect(entry.get("specie_name") or "good")
                # the flag decides: some files leave the kind empty, or say good, for an anomalous image
                anomalous = _get(entry, "anomaly", int, file)
                defect = "good" if not anomalous else "anomaly" if kind == "good" else kind
                samples.append(_listed(file.parent, path, name, split, defect, entry.get("mask_path")))
    return _existing(samples, file)


def coco(root: Path) -> list[Sample]:
    """COCO-AD: four splits of COCO 2017's classes. Give one split's file: each is trained and tested by itself.

    <root>/
        meta_20_0.json … meta_20_3.json
        train2017/*.jpg
        val2017/*.jpg
        val2017_mask_ad_20_0/*.png … val2017_mask_ad_20_3/*.png

    The tree is as publicly described; the files' keys are not, and are taken to be those of layout `meta`.
    """
    return meta(_the_file(root, "meta_*.json"))


def csv_list(root: Path) -> list[Sample]:
    """A CSV file, or the folder that holds just one: for images that lie anywhere.

    <root>/
        list.csv        path,label,mask,class,split
                        a/1.png,good,,gear,train
                        a/2.png,scratch,masks/2.png,gear,test

    Paths count from the file's folder. `path` and `label` are needed; label good, ok, normal or 0 is good, any other is
    the kind of defect. Without `class`: the folder's name. Without `split`: test.
    """
    file = _the_file(root, "*.csv")
    samples = []
    for number, row in _rows(file, {"path", "label"}):
        where = f"{file} line {number}"
        if not row["path"] or not row["label"]:
            raise MambaADError(f"{where}: path or label is empty")
        defect = "good" if row["label"].lower() in GOOD_LABELS else row["label"]
        split = _split(row.get("split") or "test", where)
        name = row.get("class") or file.resolve().parent.name
        samples.append(_listed(file.parent, row["path"], name, split, defect, row.get("mask")))
    return _existing(samples, file)


LAYOUTS: dict[str, Callable[[Path], list[Sample]]] = {
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


def load(root: Path, layout: str | None = None) -> list[Sample]:
    """All labelled samples below `root`, its layout (a key of LAYOUTS) named or recognised.

    Raises MambaADError: an unknown layout, no images, a list that cannot be read or names files that are not there.
    """
    if not root.exists():
        raise MambaADError(f"{root} does not exist: give the folder of a dataset")
    layout = layout or recognise(root)
    if layout not in LAYOUTS:
        raise MambaADError(f"no dataset layout is called {layout!r}: choose from {', '.join(LAYOUTS)}")
    samples = LAYOUTS[layout](root)
    if not samples:
        raise MambaADError(f"no images in {root} as layout {layout}: expected {MARKS[layout]}")
    return samples


def recognise(root: Path) -> str:
    """The layout of `root`, told from names of folders, keys of a JSON file or the header of a CSV file.

    Where several fit, a benchmark's own list comes first, then the folder tree, then meta.json and CSV files.
    Raises MambaADError where none fits.
    """
    layout = _layout(root)
    if layout is None:
        looked = "; ".join(f"{mark} ({name})" for name, mark in MARKS.items())
        raise MambaADError(f"cannot tell the dataset layout of {root}: looked for {looked}")
    return layout


def is_dataset(root: Path) -> bool:
    """Whether `root` has a layout of its own, rather than being a plain folder of good images and product folders."""
    return _layout(root) is not None


def training_images(samples: list[Sample]) -> list[Sample]:
    """The good samples of the training split.

    >>> good, bad = (Sample(Path("0.png"), "nut", "train", defect, None) for defect in ("good", "bent"))
    >>> training_images([good, bad, good._replace(split="test")]) == [good]
    True
    """
    return [sample for sample in samples if sample.split == "train" and not sample.anomalous]


def read_mask(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool, True where defective (any channel > 0); `shape` is the image's (h, w). Zeros for a good sample.

    Ask `sample.mask is None` first: an anomalous sample without a mask has no pixels to compare with.
    Raises MambaADError: that case, a file that cannot be read, a mask of another size than its image.
    """
    if not sample.anomalous:
        return np.zeros(shape, bool)
    if sample.mask is None:
        raise MambaADError(f"{sample.path} is anomalous and has no mask: leave it out of pixel metrics")
    mask = _decode(sample.mask)
    if mask.shape != shape:
        (h, w), (image_h, image_w) = mask.shape, shape
        raise MambaADError(
            f"mask {sample.mask} is {w}×{h} px, its image {sample.path} {image_w}×{image_h}: they must be of one size"
        )
    return mask


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (h, w) bool: nearest, but no defect is lost.

    Nearest (the pixel under each new pixel's centre, as in Pillow) is what the field does and keeps areas unbiased, so
    that pixel metrics compare with published ones; "any pixel" would widen every defect. But nearest may drop whole
    defects smaller than its step: such a connected region, and only such, marks every new pixel that it touches.

    >>> mask = np.zeros((8, 8), bool)
    >>> mask[0, 0] = mask[4:, 4:] = True
    >>> resize_mask(mask, (2, 2)).astype(int).tolist()
    [[1, 0], [0, 1]]
    """
    (H, W), (h, w) = mask.shape, size
    rows = (2 * np.arange(h) + 1) * H // (2 * h)
    columns = (2 * np.arange(w) + 1) * W // (2 * w)
    regions = cv2.connectedComponents(mask.astype(np.uint8))[1]
    kept = regions[np.ix_(rows, columns)]
    resized = kept > 0
    y, x = np.nonzero(mask & ~np.isin(regions, kept))
    resized[y * h // H, x * w // W] = True
    return resized


# Recognition


def _layout(root: Path) -> str | None:
    if root.is_file():
        return "csv" if root.suffix.lower() == ".csv" else "meta" if _is_meta(root) else None
    if not root.is_dir():
        return None
    if (root / "split_csv" / "1cls.csv").is_file():
        return "visa"
    if _realiad_files(root):
        return "realiad"
    if classes := _class_folders(root, _is_class):
        return _tree_layout(classes[0])
    if _is_meta(root / "meta.json"):
        return "meta"
    if any(_is_meta(file) for file in root.glob("meta_*.json")):
        return "coco"
    if _class_folders(root, _is_pair):
        return "pair"
    return "csv" if any(_is_list(file) for file in root.glob("*.csv")) else None


def _tree_layout(class_folder: Path) -> str:
    """mvtec3d, medical or mvtec, by the folders beside the images."""
    kinds = [kind for split in ("train", "test") for kind in _folders(class_folder / split)]
    if any((kind / "rgb").is_dir() for kind in kinds):
        return "mvtec3d"
    return "medical" if any((kind / "img").is_dir() for kind in kinds) else "mvtec"


def _is_class(folder: Path) -> bool:
    """Whether train/ or test/ inside holds a folder of good images."""
    return any(_defect(kind.name) == "good" for split in ("train", "test") for kind in _folders(folder / split))


def _is_pair(folder: Path) -> bool:
    return (folder / "bad").is_dir() and any(_defect(kind.name) == "good" for kind in _folders(folder))


def _is_meta(file: Path) -> bool:
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        data = _json(file)
    except MambaADError:
        return False
    return all(isinstance(data.get(split), dict) for split in ("train", "test"))


def _is_list(file: Path) -> bool:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            return {"path", "label"} <= set(next(csv.reader(lines), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


# Folder trees


def _tree(root: Path, images: str = "", masks: str = "") -> list[Sample]:
    """Samples of <class>/<split>/<kind>/, images and masks perhaps in folders of those names inside it."""
    samples = []
    for folder in _class_folders(root, _is_class):
        for split in ("train", "test"):
            for kind in _folders(folder / split):
                inside = kind / images if (kind / images).is_dir() else kind
                beside = kind / masks if masks and (kind / masks).is_dir() else folder / "ground_truth" / kind.name
                found = _by_stem(beside)
                name, defect = folder.resolve().name, _defect(kind.name)
                samples += [_sample(path, name, split, defect, found) for path in _images(inside)]
    return samples


def _class_folders(root: Path, is_class: Callable[[Path], bool]) -> list[Path]:
    """`root` itself, or those of its folders that hold a class."""
    return [root] if is_class(root) else [folder for folder in _folders(root) if is_class(folder)]


def _sample(path: Path, class_name: str, split: str, defect: str, masks: dict[str, Path]) -> Sample:
    mask = None if defect == "good" else masks.get(f"{path.stem}_mask", masks.get(path.stem))
    return Sample(path, class_name, split, defect, mask)


def _defect(name: str) -> str:
    """A folder's name or list's label, where all the field's words for good are one."""
    return "good" if name.lower() in GOOD_FOLDERS else name


def _folders(folder: Path) -> list[Path]:
    # os.path.isdir, for DirEntry.is_dir raises for a link to itself
    return _visible(folder, lambda entry: os.path.isdir(entry.path))  # noqa: PTH112


def _images(folder: Path) -> list[Path]:
    files = _visible(folder, lambda entry: not os.path.isdir(entry.path))  # noqa: PTH112
    return [path for path in files if path.name.lower().endswith(SUFFIXES)]


def _visible(folder: Path, wanted: "Callable[[os.DirEntry[str]], bool]") -> list[Path]:
    """What lies in `folder`, if there is one, in natural order."""
    try:
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:  # knows which are folders; Path.is_dir would ask the disk for each
            found = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and wanted(entry)]
    except OSError as error:
        raise MambaADError(f"cannot list {folder}: {error.strerror}") from error
    return sorted(found, key=_natural)


def _by_stem(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in _images(folder)}


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Sort key: numbers in a name by value; the name itself settles ties (1.png, 01.png)."""
    parts = re.split(r"([0-9]+)", path.name.lower())  # text and numbers in turn
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


# Lists


def _listed(base: Path, path: str, class_name: str, split: str, defect: str, mask: str | None) -> Sample:
    """A sample as a list names it, paths from `base` on."""
    return Sample(base / path, class_name, split, defect, base / mask if mask and defect != "good" else None)


def _existing(samples: list[Sample], source: Path) -> list[Sample]:
    """The samples, or MambaADError where a file that `source` names is missing."""
    named = (file for sample in samples for file in (sample.path, sample.mask) if file is not None)
    missing = [file for file in named if not file.is_file()]
    if missing:
        raise MambaADError(f"{source} names {len(missing)} missing file(s), the first {missing[0]}: is all unpacked?")
    return samples


def _split(name: str, where: str) -> str:
    if name not in ("train", "test"):
        raise MambaADError(f"{where}: split is {name!r}, expected train or test")
    return name


def _the_file(root: Path, pattern: str) -> Path:
    """`root` itself, or the only file in it that fits `pattern`."""
    if root.is_file():
        return root
    files = sorted(root.glob(pattern))
    if not files:
        raise MambaADError(f"no {pattern} in {root}: expected one")
    if len(files) > 1:
        raise MambaADError(f"{root} holds {', '.join(file.name for file in files)}: give one of these files")
    return files[0]


def _rows(file: Path, needed: set[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) for each row of a CSV file with at least the columns `needed`."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            columns = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, dict(zip_longest(columns, map(str.strip, row), fillvalue=""))) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MambaADError(f"cannot read {file}: {error}") from error
    if missing := needed - set(columns):
        raise MambaADError(f"{file} has no column {', '.join(sorted(missing))}: its header is {','.join(columns)}")
    return [(number, row) for number, row in rows if any(row.values())]


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MambaADError(f"cannot read {file}: {error}") from error
    if not isinstance(data, dict):
        raise MambaADError(f"{file} is not a list of a dataset: expected a JSON object with train and test")
    return data


def _get(entry: Any, key: str, kind: type[T], file: Path) -> T:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        raise MambaADError(f"{file}: expected {key!r} ({kind.__name__}) in {str(entry)[:80]}")
    return entry[key]


def _realiad_files(root: Path) -> list[Path]:
    """The lists of Real-IAD, which unpack as realiad_jsons/realiad_jsons/; `root` may be the folder that holds them."""
    inside = root / "realiad_jsons"
    own = [root] if root.resolve().name.startswith("realiad_jsons") else []
    found = ([*folder.glob("*.json")] for folder in (*own, inside, inside / "realiad_jsons"))
    return sorted(next(filter(None, found), []), key=_natural)


def _realiad_images(lists: dict[Path, dict[str, Any]]) -> Path:
    """The folder that the lists' paths count from: near the lists, 1024 before 512 before 256."""
    above = list(next(iter(lists)).resolve().parents)[1:3]
    candidates = [folder for base in above for folder in (*reversed(_folders(base)), base)]
    for file, data in lists.items():
        for folder in candidates:
            if (folder / _realiad_prefix(file, data)).is_dir():
                return folder
    return above[0]


def _realiad_prefix(file: Path, data: dict[str, Any]) -> str:
    return _get(data, "meta", dict, file).get("prefix", f"{file.stem}/")


def _decode(file: Path) -> np.ndarray:
    """A mask file as (h, w) bool; alpha is not looked at."""
    try:
        pixels = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise MambaADError(f"cannot read mask {file}: {error}") from error
    if pixels is None:
        raise MambaADError(f"cannot read mask {file}: not an image, or damaged")
    return np.any(np.atleast_3d(pixels)[..., :3] > 0, axis=2)
