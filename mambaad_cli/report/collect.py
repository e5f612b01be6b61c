"""Rows or predictions -> the entries of a report, with pictures of the worst ones."""

import heapq
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.calibration import six_digits
from mambaad_cli.inspection.predict import Prediction
from mambaad_cli.inspection.row_files import Row
from mambaad_cli.report import pictures
from mambaad_cli.report.content import Entry, link_to, urgency, worst_first
from mambaad_cli.report.pictures import Pictures

SAME = 0.01  # a score that moves by a larger share of itself comes from another model, or another photo


class Collector:
    """Predictions pass through it on their way to rows or a table; it keeps what a report shows of them.

    Of more than `most` images, the worst `most` have pictures. `model` is the first digits of the SHA-256 of its file.
    """

    def __init__(self, images: int, most: int, model: str = "") -> None:
        self.most, self.model = most, model
        self.room = pictures.room_for(min(images, most))
        self.rows: list[Row] = []
        self.kept: dict[int, Pictures] = {}
        self._urgent: list[tuple[float, int]] = []  # a heap of those with pictures, the least urgent first

    def passing(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same predictions, each kept as it passes."""
        for one in predictions:
            self.add(one)
            yield one

    def add(self, one: Prediction, reference: str = "") -> None:
        """Keep a prediction; `reference` is what is known of it: good, or the kind of defect."""
        place = len(self.rows)
        self.rows.append(row_of(one, self.model, reference))
        if len(self._urgent) == self.most and (not self.most or one.urgency <= self._urgent[0][0]):
            return
        own = pictures.of_prediction(one, one.colour_scale, self.room)
        if own is None:
            return
        self.kept[place] = own
        heapq.heappush(self._urgent, (one.urgency, place))
        if len(self._urgent) > self.most:
            del self.kept[heapq.heappop(self._urgent)[1]]

    def entries(self, page: Path, link: bool) -> list[Entry]:
        """Worst first."""
        places = sorted(range(len(self.rows)), key=lambda place: urgency(self.rows[place]))
        return [_entry(self.rows[place], self.kept.get(place), page, link) for place in places]


def row_of(one: Prediction, model: str = "", reference: str = "") -> Row:
    """The row of an image that was scored just now."""
    return Row(
        str(one.file.path),
        one.class_name,
        None if one.score is None else six_digits(one.score),
        None if one.threshold is None else six_digits(one.threshold),
        one.verdict,
        one.error,
        one.p_value,
        one.regions,
        datetime.now(timezone.utc),
        model,
        one.photo,
        reference=reference,
    )


def with_photos(rows: Sequence[Row], page: Path, most: int, workers: int, link: bool) -> list[Entry]:
    """Worst first, the worst `most` with their photos."""
    ordered = worst_first(rows)
    room = pictures.room_for(min(len(ordered), most))
    photos = iter(pictures.of_files([photo_of(row) for row in ordered[:most]], room, workers))
    return [_entry(row, next(photos, None), page, link) for row in ordered]


def with_overlays(
    rows: Sequence[Row],
    predicted: Callable[[str, Sequence[ImageFile]], Iterable[Prediction]],
    page: Path,
    most: int,
    link: bool,
) -> tuple[list[Entry], int]:
    """Worst first, the worst `most` with photo, overlay and regions; and how many score otherwise than their row says.

    predicted: from the product in the rows, and files, to their predictions with maps and regions.
    """
    ordered = worst_first(rows)
    entries = [_entry(row, None, page, link) for row in ordered]
    room = pictures.room_for(min(len(ordered), most))
    differ = 0
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(ordered[:most]):
        groups.setdefault(row.class_name, []).append(place)
    for name, places in groups.items():
        files = [ImageFile(photo_of(ordered[place]), Path(ordered[place].path), "") for place in places]
        for place, one in zip(places, predicted(name, files), strict=True):
            row, said = ordered[place], row_of(one)
            differ += not _same(row.score, said.score)
            seen = row if row.regions is not None else replace(row, regions=said.regions)
            own = pictures.of_prediction(one, one.colour_scale, room)
            entries[place] = replace(entries[place], row=seen, pictures=own)
    return entries, differ


def _same(score: float | None, again: float | None) -> bool:
    """Whether a photo scores as before; one that is gone or was never scored says nothing."""
    return score is None or again is None or math.isclose(score, again, rel_tol=SAME)


def _entry(row: Row, own: Pictures | None, page: Path, link: bool) -> Entry:
    photo = photo_of(row)
    return Entry(row, own, link_to(str(photo), page) if link and _there(photo) else "")


def photo_of(row: Row) -> Path:
    """The photo of a row: where a watch moved it, or where it was scored."""
    moved = Path(row.moved_to)
    return moved if row.moved_to and _there(moved) else Path(row.path)


def _there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for a path that is too long)
