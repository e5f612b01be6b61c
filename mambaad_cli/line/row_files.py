"""Files of rows, of score or watch, as programs read them: JSON lines or CSV, whole or still growing."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.files import shown
from mambaad_cli.inspection.rows import COLUMNS, SCHEMA


class Row(NamedTuple):
    """What is read of a row."""

    path: str
    class_name: str
    score: float | None
    verdict: str
    time: datetime | None = None  # these are None in CSV
    model: str | None = None
    photo: PhotoStatistics | None = None


class Damaged(NamedTuple):
    """A line that is no row."""


def read_rows(path: Path) -> Iterator[Row | Damaged]:
    """The rows of a file of JSON lines or CSV, in their order. A last line without its end is still being written.

    Raises MambaADError for a file that cannot be read, that is of something else, or of a newer mambaad.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = (line for line in file if line.endswith("\n"))
            first = next(lines, "")
            if first.startswith("path,class,score,"):
                yield from _csv_rows(itertools.chain([first], lines))
            elif first.startswith("{") or not first:
                yield from (_json_row(path, line) for line in itertools.chain([first] if first else [], lines))
            else:
                raise MambaADError(f"{shown(path)} was not written by mambaad watch or mambaad score --json or --csv")
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error


def _csv_rows(lines: Iterable[str]) -> Iterator[Row | Damaged]:
    for found in csv.DictReader(lines):
        try:
            score = float(found["score"]) if found["score"] else None
            yield Row(found["path"], found["class"], score, _verdict(found["verdict"]))
        except (KeyError, TypeError, ValueError):
            yield Damaged()


def _json_row(path: Path, line: str) -> Row | Damaged:
    try:
        found = json.loads(line)
        schema = found.get("schema", SCHEMA)
        if schema > SCHEMA:
            raise MambaADError(f"{shown(path)} has rows of a newer mambaad (schema {schema}): upgrade this one")
        missing = set(COLUMNS[:5]) - set(found)
        if missing:
            return Damaged()
        time = found.get("time")
        if time is not None:
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
            time = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        values = [found.get(name) for name in PhotoStatistics._fields]
        photo = None if None in values else PhotoStatistics(*map(float, values))
        score = None if found["score"] is None else float(found["score"])
        return Row(found["path"], found["class"], score, _verdict(found["verdict"]), time, found.get("model"), photo)
    except (AttributeError, TypeError, ValueError):
        return Damaged()


def _verdict(text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError
    return text
