"""Rows that `mambaad score` and others wrote, JSON lines or CSV -> Row."""

import csv
import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.inspection.regions import Region, of_json

NEEDED = ("path", "verdict")
SCHEMA = 1  # the newest that is understood


@dataclass(frozen=True)
class Row:
    """One image as its row tells; what the row does not tell is None or empty."""

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


class RowFile(NamedTuple):
    """A file of rows."""

    path: Path
    sha256: str
    rows: list[Row]
    damaged: list[int]  # the numbers of lines that are cut or damaged, and left out


@dataclass
class _Lines:
    """What is found while a file is read."""

    rows: list[Row] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


def read_rows(path: Path) -> RowFile:
    """Read a file of rows, JSON lines or CSV by its first character. Lines that are cut are left out and counted.

    Raises MambaADError for a file that cannot be read, holds no row, or has rows of a newer schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    text = data.decode("utf-8-sig", errors="surrogateescape")  # names of files may be any bytes
    found = _of_json(path, text) if text.lstrip().startswith("{") else _of_csv(path, text)
    if not found.rows:
        raise MambaADError(f"{shown(path)} holds no rows: expected what mambaad score --json or --csv writes")
    return RowFile(path, hashlib.sha256(data).hexdigest(), found.rows, found.damaged)


def _of_json(path: Path, text: str) -> _Lines:
    found = _Lines()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if values.get("schema", SCHEMA) > SCHEMA:
                raise MambaADError(f"{shown(path)} line {number} is of a newer mambaad: upgrade this one")
            found.rows.append(_row(values))
        except (AttributeError, KeyError, TypeError, ValueError):
            found.damaged.append(number)
    return found


def _of_csv(path: Path, text: str) -> _Lines:
    found = _Lines()
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if not set(NEEDED) <= set(reader.fieldnames or ()):
            raise MambaADError(f"{shown(path)} holds no rows: expected what mambaad score --json or --csv writes")
        for values in reader:
            try:
                if None in values or None in values.values():  # too many cells, or too few
                    raise ValueError("cut")
                found.rows.append(_row({name: _uncovered(text) for name, text in values.items()}))
            except (TypeError, ValueError):
                found.damaged.append(reader.line_num)
    except csv.Error as error:
        raise MambaADError(f"cannot read {shown(path)}: {error}") from error
    return found


def _uncovered(text: str) -> str:
    """A cell without the apostrophe that `rows.csv_line` puts before what a spreadsheet would run.

    >>> _uncovered("'=1+1.png"), _uncovered("'quoted'.png")
    ('=1+1.png', "'quoted'.png")
    """
    return text[1:] if text[:1] == "'" and text[1:2] in tuple("=+-@\t\r") else text


def _row(values: dict[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError where a value is missing or of another kind."""
    regions = values.get("regions")
    return Row(
        str(values["path"]),
        str(values.get("class") or ""),
        _number(values.get("score")),
        _number(values.get("threshold")),
        str(values["verdict"]),
        str(values.get("error") or ""),
        _number(values.get("p_value")),
        None if regions is None else tuple(of_json(one) for one in regions),
        _time(values.get("time")),
        str(values.get("model") or ""),
        str(values.get("reference") or ""),
    )


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
