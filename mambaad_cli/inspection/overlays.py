"""Overlays on disk: one picture per image in the same folder structure, and contact sheets of all."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown, written_whole
from mambaad_cli.inspection.explanation import explained_json
from mambaad_cli.inspection.heatmap import ColourScale, Tile, contact_sheet, framed, overlay, raw16, thumbnail
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.product import Products, cold_of, threshold_of
from mambaad_cli.inspection.rows import Lines, json_line, json_row
from mambaad_cli.inspection.scorer import Scorer

SHEET = "contact_sheet"
REGIONS = "regions.jsonl"
EXPLANATIONS = "explanations.jsonl"
STRIP = "_explain.png"
TILES = 400  # of one contact sheet


class Small(NamedTuple):
    """What a contact sheet keeps of an image, small enough for 20,000 of them."""

    urgency: float
    title: str
    score: float
    verdict: str
    encoded: np.ndarray  # JPEG bytes of the overlay's thumbnail


@dataclass(frozen=True)
class MapOptions:
    """What is written besides overlays."""

    raw: str | None = None  # the map itself: "png" with 16 bits, see heatmap.raw16; "npy" as float32
    regions: bool = False  # a frame around each region, and folder/regions.jsonl with a row for each image
    explain: bool = False  # a strip of pictures for each region, and folder/explanations.jsonl

    @property
    def endings(self) -> tuple[str, ...]:
        """Of what is written beside an overlay."""
        return (*((f".map.{self.raw}",) if self.raw else ()), *((STRIP,) if self.explain else ()))


def write_maps(
    predictions: Iterable[Prediction],
    files: Sequence[ImageFile],
    scorer: Scorer,
    folder: Path,
    options: MapOptions | None = None,
    on_unreadable: Callable[[Prediction], None] = lambda prediction: None,
) -> "Counter[str]":
    """Write each overlay below `folder`, and at the end contact sheets, worst first; returns the verdicts.

    Raises MambaADError where an output would overwrite an input.
    """
    options = options or MapOptions()
    outputs = output_paths(files, folder, options.endings)
    sheets = [_sheet(folder, page) for page in range(math.ceil(len(files) / TILES))]
    beside = [_beside(path, ending) for path in outputs for ending in options.endings]
    _refuse_overwriting(files, [*outputs, *beside, *sheets])
    counts: Counter[str] = Counter()
    small: list[Small] = []
    with (
        Lines(folder / REGIONS) if options.regions else nullcontext() as lines,
        Lines(folder / EXPLANATIONS) if options.explain else nullcontext() as explanations,
    ):
        for prediction, path in zip(predictions, outputs, strict=True):
            counts[prediction.verdict] += 1
            if lines is not None:
                lines.write(json_line(json_row(prediction, scorer.sha256, regions=True)))
            if explanations is not None:
                _write_explanations(prediction, scorer.sha256, path, explanations)
            title = str(prediction.file.relative)
            if prediction.anomaly_map is None or prediction.picture is None or prediction.score is None:
                on_unreadable(prediction)
                small.append(_small(np.full((48, 64, 3), 64, np.uint8), title, math.nan, "error", math.inf))
                continue
            scale = colour_scale(scorer.products, prediction.class_name)
            _write_overlay(prediction, scale, path, options.raw)
            tile = overlay(thumbnail(prediction.picture), prediction.anomaly_map, scale, prediction.inside)
            small.append(_small(tile, title, prediction.score, prediction.verdict, scale.margin(prediction.score)))
    _write_sheets(small, folder)
    return counts


def _write_overlay(prediction: Prediction, scale: ColourScale, path: Path, raw: str | None) -> None:
    """Write one overlay, and its map beside it where that is wanted."""
    assert prediction.anomaly_map is not None
    images.write(path, framed_overlay(prediction, scale))
    if raw == "png":
        images.write(_beside(path, ".map.png"), raw16(prediction.anomaly_map, scale))
    elif raw == "npy":
        with written_whole(_beside(path, ".map.npy")) as half:
            np.save(half, prediction.anomaly_map)


def _write_explanations(prediction: Prediction, model: str, path: Path, lines: Lines) -> None:
    """Write the row of an image with its explanations, and the strip of pictures beside its overlay, if any."""
    explanations = prediction.explanations
    found = None if explanations is None else [explained_json(one) for one in explanations]
    lines.write(json_line(json_row(prediction, model) | {"regions": found}))
    if explanations:
        images.write(_beside(path, STRIP), prediction.explain_strip())


def _beside(path: Path, ending: str) -> Path:
    """The path of what is written beside an overlay."""
    return path.with_name(f"{path.stem}{ending}")


def framed_overlay(prediction: Prediction, scale: ColourScale) -> np.ndarray:
    """The overlay of a prediction with its picture and map, and a frame around each of its regions: (h, w, 3)."""
    assert prediction.picture is not None
    assert prediction.anomaly_map is not None
    picture = overlay(prediction.picture, prediction.anomaly_map, scale, prediction.inside)
    return framed(picture, [region.box for region in prediction.regions or ()])


def write_suspects(odd: Sequence[tuple[ImageFile, float, tuple[float, float]]], folder: Path) -> Path:
    """Write folder/suspects.png, a contact sheet of good images that are unlike the others; returns its path.

    odd: of each its file, how many deviations it is away, and the place, in shares of width and height, that is framed.
    """
    tiles = []
    for file, oddness, (x, y) in odd[:TILES]:
        picture = thumbnail(images.read(file.path))
        height, width = picture.shape[:2]
        box = (round(x * width) - 12, round(y * height) - 12, 24, 24)
        tiles.append(Tile(framed(picture, [box]), shown(file.relative), oddness, "review"))
    path = folder / "suspects.png"
    images.write(path, contact_sheet(tiles))
    return path


def colour_scale(products: Products, class_name: str) -> ColourScale:
    """One scale for all images of a product: cold at the median score of good images, the threshold in its middle."""
    cold, threshold = cold_of(products, class_name), threshold_of(products, class_name)
    if cold is None or threshold is None:
        raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
    return ColourScale(cold, threshold)


def output_paths(files: Sequence[ImageFile], folder: Path, endings: Sequence[str] = ()) -> list[Path]:
    """Where each overlay goes: the folders and name of the input, ending in .png; no two inputs have the same output.

    Names that differ only in their ending or in case get a number, because some disks do not distinguish them.
    `endings` are those of other outputs beside each.

    >>> files = [ImageFile(Path(name), Path(name), "") for name in ("a/x.jpg", "a/X.png", "y.bmp")]
    >>> [path.as_posix() for path in output_paths(files, Path("maps"))]
    ['maps/a/x.png', 'maps/a/X_2.png', 'maps/y.png']
    """
    taken, every = {f"{SHEET}.png"}, (".png", *endings)
    outputs = []
    for file in files:
        stem, number = str(file.relative.with_suffix("")), 1
        if stem.casefold().startswith(SHEET):
            stem = f"image_{stem}"
        name = stem
        while {f"{name}{ending}".casefold() for ending in every} & taken:
            number += 1
            name = f"{stem}_{number}"
        taken |= {f"{name}{ending}".casefold() for ending in every}
        outputs.append(folder / f"{name}.png")
    return outputs


def _refuse_overwriting(files: Sequence[ImageFile], outputs: Sequence[Path]) -> None:
    inputs = {os.path.realpath(file.path) for file in files}
    for path in outputs:
        if os.path.realpath(path) in inputs:
            raise MambaADError(f"{shown(path)} is one of the images: choose another --output folder")


def _small(picture: np.ndarray, title: str, score: float, verdict: str, urgency: float) -> Small:
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(thumbnail(picture), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92]
    )
    return Small(urgency, title, score, verdict, encoded)


def _write_sheets(small: list[Small], folder: Path) -> None:
    small.sort(key=lambda one: -one.urgency)
    for start in range(0, len(small), TILES):
        tiles = [Tile(_decoded(one.encoded), one.title, one.score, one.verdict) for one in small[start : start + TILES]]
        images.write(_sheet(folder, start // TILES), contact_sheet(tiles))


def _sheet(folder: Path, page: int) -> Path:
    return folder / (f"{SHEET}_{page + 1}.png" if page else f"{SHEET}.png")


def _decoded(encoded: np.ndarray) -> np.ndarray:
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert picture is not None  # we encoded it ourselves
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
