"""Rows or predictions -> the entries of a report, with pictures of the worst ones."""

import heapq
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import sha256_of
from mambaad_cli.inspection.calibration import six_digits
from mambaad_cli.inspection.corrections import DIGITS
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.row_files import Row
from mambaad_cli.report import pictures
from mambaad_cli.report.content import Entry, link_to, urgency, worst_first
from mambaad_cli.report.pictures import Pictures

SCORE_TOLERANCE = 0.01  # a score that differs by a larger share comes from another model, or another photo


class Shown(NamedTuple):
    """What a report shows of its rows."""

    pictures: int  # images, the worst ones, that have pictures
    explained: int = 0  # images, the worst ones, whose regions are explained
    link: bool = False  # each image is linked to its photo


class Collector:
    """Keeps what a report shows of predictions, which pass through it on their way to rows or a table.

    Only the `most` worst of the images have pictures. `model`: the first digits of the SHA-256 of its file.
    """

    def __init__(self, images: int, most: int, model: str = "") -> None:
        self.most, self.model = most, model
        self.picture_limits = pictures.limits_for(min(images, most))
        self.rows: list[Row] = []
        self.kept: dict[int, Pictures] = {}
        self._urgent: list[tuple[float, int]] = []  # a heap of those with pictures, the least urgent first

    def passing(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same predictions, each kept as it passes."""
        for prediction in predictions:
            self.add(prediction)
            yield prediction

    def add(self, prediction: Prediction, reference: str = "") -> None:
        """Keep a prediction. `reference`: the label of the image, good or the kind of defect, where it has one."""
        place = len(self.rows)
        self.rows.append(row_of(prediction, self.model, reference))
        if len(self._urgent) == self.most and (not self.most or prediction.urgency <= self._urgent[0][0]):
            return
        shown = pictures.of_prediction(prediction, prediction.colour_scale, self.picture_limits)
        if shown is None:
            return
        self.kept[place] = shown
        heapq.heappush(self._urgent, (prediction.urgency, place))
        if len(self._urgent) > self.most:
            del self.kept[heapq.heappop(self._urgent)[1]]

    def entries(self, page: Path, link: bool) -> list[Entry]:
        """Worst first."""
        places = sorted(range(len(self.rows)), key=lambda place: urgency(self.rows[place]))
        return [_entry(self.rows[place], self.kept.get(place), page, link) for place in places]


def row_of(prediction: Prediction, model: str = "", reference: str = "") -> Row:
    """The row of an image that was scored just now."""
    return Row(
        prediction.file.name,
        prediction.class_name,
        None if prediction.score is None else six_digits(prediction.score),
        None if prediction.threshold is None else six_digits(prediction.threshold),
        prediction.verdict,
        prediction.error,
        prediction.p_value,
        prediction.regions,
        datetime.now(timezone.utc),
        model,
        prediction.photo,
        reference=reference,
    )


def with_photos(rows: Sequence[Row], page: Path, most: int, workers: int, link: bool) -> list[Entry]:
    """Worst first, the worst `most` with their photos."""
    ordered = worst_first(rows)
    limits = pictures.limits_for(min(len(ordered), most))
    photos = iter(pictures.of_files([photo_of(row) for row in ordered[:most]], limits, workers))
    return [_entry(row, next(photos, None), page, link) for row in ordered]


def with_overlays(
    rows: Sequence[Row],
    predicted: Callable[[str, Sequence[ImageFile]], Iterable[Prediction]],
    page: Path,
    shown: Shown,
) -> tuple[list[Entry], int]:
    """Worst first, the worst with photo, overlay and regions; and how many scores differ from their rows.

    predicted: a function of a product and its files, to their predictions with maps and regions.
    """
    ordered = worst_first(rows)
    entries = [_entry(row, None, page, shown.link) for row in ordered]
    limits = pictures.limits_for(min(len(ordered), shown.pictures))
    differ = 0
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(ordered[: shown.pictures]):
        groups.setdefault(row.class_name, []).append(place)
    for name, places in groups.items():
        files = [ImageFile(photo_of(ordered[place]), Path(ordered[place].path), "") for place in places]
        for place, prediction in zip(places, predicted(name, files), strict=True):
            row, new_row = ordered[place], row_of(prediction)
            differ += not _same(row.score, new_row.score)
            small = pictures.of_prediction(prediction, prediction.colour_scale, limits)
            why = pictures.explanations_of(prediction) if place < shown.explained else ()
            if small is not None and why:
                small = small._replace(explained=why)
            if row.regions is None or why:  # explanations are numbered like the regions of this prediction
                row = replace(row, regions=new_row.regions)
            entries[place] = replace(entries[place], row=row, pictures=small)
    return entries, differ


def _same(score: float | None, new_score: float | None) -> bool:
    """Whether a photo scores as before; counted as the same where either score is missing."""
    return score is None or new_score is None or math.isclose(score, new_score, rel_tol=SCORE_TOLERANCE)


def _entry(row: Row, shown: Pictures | None, page: Path, link: bool) -> Entry:
    photo = photo_of(row)
    there = _exists(photo)
    digest = sha256_of(photo)[:DIGITS] if shown is not None and there else ""
    return Entry(row, shown, link_to(str(photo), page) if link and there else "", digest)


def photo_of(row: Row) -> Path:
    """The photo of a row: where a watch moved it, or where it was scored."""
    moved = Path(row.moved_to)
    return moved if row.moved_to and _exists(moved) else Path(row.path)


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for a path that is too long)
