"""Little datasets for tests: folders, lists and what is loaded from them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.data.datasets import Sample, load


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    """An image file, 8×8 and white unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 8), 255, np.uint8) if pixels is None else pixels)
    return path


def write_all(root: Path, *paths: str) -> Path:
    for path in paths:
        write(root / path)
    return root


def write_json(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rows(samples: list[Sample], root: Path) -> list[tuple[str, str, str, str, str | None]]:
    """Samples with paths relative to `root`, to compare with lists written by hand."""
    return [
        (
            s.path.relative_to(root).as_posix(),
            s.class_name,
            s.split,
            s.defect,
            s.mask.relative_to(root).as_posix() if s.mask else None,
        )
        for s in samples
    ]


def error(root: Path, layout: str | None = None) -> str:
    with pytest.raises(MambaADError) as caught:
        load(root, layout)
    message = str(caught.value)
    assert "\n" not in message
    return message


def mvtec_class(root: Path, name: str, masks: bool = True) -> None:
    write_all(
        root / name, "train/good/0.png", "train/good/1.png", "test/good/0.png", "test/cut/0.png", "test/cut/1.png"
    )
    if masks:
        write_all(root / name, "ground_truth/cut/0_mask.png", "ground_truth/cut/1_mask.png")


def meta_entry(path: str, anomaly: int, kind: str, mask: str = "") -> dict:
    return {"img_path": path, "mask_path": mask, "cls_name": "liver", "specie_name": kind, "anomaly": anomaly}


META = {
    "train": {"liver": [meta_entry("a/0.png", 0, "good")]},
    "test": {"liver": [meta_entry("a/1.png", 0, "good", "m/0.png"), meta_entry("a/2.png", 1, "Ungood", "m/2.png")]},
}


def meta_root(root: Path, name: str = "meta.json") -> Path:
    write_json(root / name, META)
    return write_all(root, "a/0.png", "a/1.png", "a/2.png", "m/0.png", "m/2.png")
