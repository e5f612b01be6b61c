"""The worst mistakes of an evaluation, as contact sheets of overlays."""

import heapq
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.evaluation import Evaluation, ImageResult, known_class
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown, written_whole
from mambaad_cli.inspection.heatmap import Tile, contact_sheet, overlay, thumbnail
from mambaad_cli.inspection.overlays import colour_scale
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.scorer import Scorer

SHEET_IMAGES = 12  # the most on a contact sheet of misses or of false alarms
SHEETS = ("worst_misses.png", "worst_false_alarms.png")
END_CHUNK_BYTES = 12  # of the IEND chunk, which ends each PNG file


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file (PNG specification, section 5.3)."""
    checksum = zlib.crc32(kind + content)
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


MARK = _chunk(b"tEXt", b"Software\0mambaad eval --worst")  # tells our sheets from the user's files


def worst(evaluation: Evaluation, n: int = SHEET_IMAGES) -> tuple[list[ImageResult], list[ImageResult]]:
    """(misses, false alarms): at most n of each, the furthest on the wrong side of their threshold first."""
    judged = [result for metrics in evaluation.classes for result in metrics.results if result.threshold is not None]
    misses = (result for result in judged if result.sample.anomalous and not result.rejected)
    alarms = (result for result in judged if not result.sample.anomalous and result.rejected)
    return heapq.nsmallest(n, misses, key=_margin), heapq.nlargest(n, alarms, key=_margin)


def _margin(result: ImageResult) -> float:
    return result.margin


def write_worst(evaluation: Evaluation, scorer: Scorer, folder: Path, n: int = SHEET_IMAGES) -> list[Path]:
    """Write worst_misses.png and worst_false_alarms.png, contact sheets of overlays; returns the files written.

    Where there are no such mistakes, there is no file: a sheet of an earlier evaluation is removed, any other file of
    that name is left alone. Raises MambaADError where a sheet would replace a file that is no sheet of ours.
    """
    written = []
    for name, results in zip(SHEETS, worst(evaluation, n), strict=True):
        path, tiles = folder / name, list(_tiles(results, scorer))
        if tiles:
            _refuse_to_replace(path)
            _write_sheet(path, contact_sheet(tiles))
            written.append(path)
        elif _is_sheet(path):
            path.unlink()
    return written


def check_sheets(folder: Path) -> None:
    """Report before an evaluation, not after it, that a sheet would replace a file that is no sheet of ours."""
    for name in SHEETS:
        _refuse_to_replace(folder / name)


def _refuse_to_replace(path: Path) -> None:
    if path.exists() and not _is_sheet(path):
        raise MambaADError(f"{shown(path)} was not written by mambaad eval --worst: choose another folder")


def _is_sheet(path: Path) -> bool:
    """Whether the file is a sheet that `write_worst` wrote."""
    return path.is_file() and path.read_bytes()[:-END_CHUNK_BYTES].endswith(MARK)


def _write_sheet(path: Path, sheet: np.ndarray) -> None:
    """Write uint8 RGB (h, w, 3) as a PNG file with our mark, whole or not at all."""
    encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes()
    with written_whole(path) as half:
        half.write_bytes(encoded[:-END_CHUNK_BYTES] + MARK + encoded[-END_CHUNK_BYTES:])


def _tiles(results: Sequence[ImageResult], scorer: Scorer) -> Iterator[Tile]:
    """Overlays of a few images, which are scored again: sooner than keeping the pictures of all."""
    for result in results:
        sample = result.sample
        options = PredictOptions(known_class(scorer.products, sample.class_name), maps=True)
        (prediction,) = predict(scorer, [ImageFile(sample.path, sample.path, sample.class_name)], options)
        if prediction.anomaly_map is None or prediction.picture is None:
            continue  # no longer there
        scale = colour_scale(scorer.products, sample.class_name)
        picture = overlay(thumbnail(prediction.picture), prediction.anomaly_map, scale, prediction.inside)
        title = f"{sample.class_name}/{sample.defect}/{sample.path.name}"
        yield Tile(picture, shown(title), result.score, "anomalous" if result.rejected else "good")
