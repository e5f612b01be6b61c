"""Files of rows that `mambaad score`, `map` or `watch` wrote, JSON lines or CSV, whole or still growing -> Row."""

import csv
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.files import shown
from mambaad_cli.inspection.regions import Region, of_json
from mambaad_cli.inspection.rows import COLUMNS, SCHEMA

REQUIRED = COLUMNS[:5]  # path, class, score, threshold and verdict: all rows have them


@dataclass(frozen=True)
class Row:
    """The row of one image. A value that the row lacks is None or empty; CSV has none from `regions` on."""

    path: str
    class_name: str = ""
    score: float | None = None
    threshold: float | None = None
    verdict: str = ""
    error: str = ""
    p_value: float | None = None
    regions: tuple[Region, ...] | None = None
    time: datetime | None = None  # when it was scored, UTC
    model: str = ""  # the first digits of the SHA-256 of the model's file
    photo: PhotoStatistics | None = None
    moved_to: str = ""  # where a watch moved the photo
    reference: str = ""  # good, or the kind of defect, where the rows are of a labelled benchmark

    @property
    def margin(self) -> float:
        """How far the score lies above the threshold, in units of |threshold|; infinite without either.

        >>> Row("a.png", score=3.0, threshold=2.0).margin, Row("a.png", verdict="error").margin
        (0.5, inf)
        """
        if self.score is None or self.threshold is None:
            return math.inf
        return (self.score - self.threshold) / (abs(self.threshold) or 1.0)


class Damaged(NamedTuple):
    """A line that is no row."""

    number: int  # of the line, from 1
    growing: bool = False  # the last one, without its end: where the file grows, it is still being written


class RowFile(NamedTuple):
    """All that a file of rows holds."""

    path: Path
    sha256: str
    rows: list[Row]
    damaged: list[int]  # the numbers of the lines that are left out, the last one too if it has no end


@dataclass
class _Lines:
    """The lines of a file that have an end, one after the other; digest and `growing` count once all were read."""

    path: Path
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    growing: int = 0  # the number of a last line without its end

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                self.digest.update(line)
                if not line.endswith(b"\n"):
                    self.growing = number
                    return
                text = line.decode(errors="surrogateescape")  # names of files may be any bytes
                yield text.removeprefix("\ufeff") if number == 1 else text


def complete_lines(path: Path) -> Iterator[str]:
    """The lines of a file; a last one without its end, which is still being written or was cut, is left out."""
    return iter(_Lines(path))


def read_rows(path: Path) -> Iterator[Row | Damaged]:
    """The rows of a file, in their order, as they are read.

    Raises MambaADError for a file that cannot be read, that is of something else, or that has rows of a newer mambaad.
    """
    return _rows(_Lines(path))


def read_file(path: Path) -> RowFile:
    """All rows of a file at once. Raises MambaADError as `read_rows` does, and for a file without a row."""
    lines = _Lines(path)
    entries = list(_rows(lines))
    rows = [entry for entry in entries if isinstance(entry, Row)]
    if not rows:
        raise MambaADError(f"{shown(path)} holds no rows: expected what mambaad watch or mambaad score --json writes")
    damaged = [entry.number for entry in entries if isinstance(entry, Damaged)]
    return RowFile(path, lines.digest.hexdigest(), rows, damaged)


def _rows(lines: _Lines) -> Iterator[Row | Damaged]:
    path = lines.path
    try:
        complete_lines = iter(lines)
        first = next(complete_lines, None)
        if first is not None:
            all_lines = itertools.chain([first], complete_lines)
            yield from _of_json(path, all_lines) if first.startswith("{") else _of_csv(path, all_lines)
        if lines.growing:
            yield Damaged(lines.growing, growing=True)
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    except csv.Error as error:
        raise MambaADError(f"cannot read {shown(path)}: {error}") from error


def _of_json(path: Path, lines: Iterable[str]) -> Iterator[Row | Damaged]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            schema = values.get("schema", SCHEMA)
            if schema > SCHEMA:
                raise MambaADError(f"{shown(path)} has rows of a newer mambaad (schema {schema}): upgrade this one")
            yield _row(values)
        except (AttributeError, KeyError, TypeError, ValueError):
            yield Damaged(number)


def _of_csv(path: Path, lines: Iterable[str]) -> Iterator[Row | Damaged]:
    reader = csv.DictReader(lines)
    if not set(REQUIRED) <= set(reader.fieldnames or ()):
        raise MambaADError(f"{shown(path)} was not written by mambaad watch or mambaad score --json or --csv")
    for values in reader:
        try:
            if None in values or None in values.values():  # too many cells, or too few
                raise ValueError("cut")
            yield _row({name: _without_apostrophe(text) for name, text in values.items()})
        except (TypeError, ValueError):
            yield Damaged(reader.line_num)


def _without_apostrophe(text: str) -> str:
    """A cell without the apostrophe that `rows.csv_line` puts before what a spreadsheet would run.

    >>> _without_apostrophe("'=1+1.png"), _without_apostrophe("'quoted'.png")
    ('=1+1.png', "'quoted'.png")
    """
    return text[1:] if text[:1] == "'" and text[1:2] in tuple("=+-@\t\r") else text


def _row(values: dict[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError where a value is missing or of another kind."""
    regions = values.get("regions")
    return Row(
        path=_text(values["path"]),
        class_name=str(values["class"] or ""),
        score=_number(values["score"]),
        threshold=_number(values["threshold"]),
        verdict=_text(values["verdict"]),
        error=str(values.get("error") or ""),
        p_value=_number(values.get("p_value")),
        regions=None if regions is None else tuple(of_json(region) for region in regions),
        time=_time(values.get("time")),
        model=str(values.get("model") or ""),
        photo=_photo(values),
        moved_to=str(values.get("moved_to") or ""),
        reference=str(values.get("reference") or ""),
    )


def _photo(values: dict[str, Any]) -> PhotoStatistics | None:
    """How a photo was taken; None in rows of an error, and in CSV. Earlier rows have fewer statistics."""
    known = {name: float(values[name]) for name in PhotoStatistics._fields if values.get(name) is not None}
    return PhotoStatistics(**known) if {"brightness", "contrast", "sharpness"} <= known.keys() else None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no text")
    return value


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _time(text: Any) -> datetime | None:
    """
    >>> _time("2026-03-01T23:30:00-02:00").isoformat()
    '2026-03-02T01:30:00+00:00'
    """
    if not text:
        return None
    time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))  # Python 3.10 does not know Z
    return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
