"""Scoring split between machines: which files a shard takes, and the rows of all shards put together again.

A file's shard follows from its path below the folder that was given, so that it depends on no order, no machine and no
other file. The rows of a shard say which shard of how many they are of, and each row the place of its file among all
files; so the rows of all shards come back into the order of a single run, and one that is missing is seen.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data.image_files import ImageFile, same_name
from mambaad_cli.files import shown
from mambaad_cli.inspection.row_files import complete_lines
from mambaad_cli.inspection.rows import quoted_line

COLUMNS = ("shard", "shards", "place", "files")  # behind the other columns of a row, and fields of a JSON row
MAX_NAMED = 5  # files that an error names


class Shard(NamedTuple):
    """One of so many shards, from 1."""

    number: int
    of: int


class Share(NamedTuple):
    """The files of a shard."""

    shard: Shard
    files: list[ImageFile]
    places: list[int]  # of each of these files among all files, from 1
    total: int  # all files

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that a row ends with."""
        return COLUMNS

    def columns(self, index: int) -> dict[str, int]:
        """What the row of a file tells of the shards."""
        values = (self.shard.number, self.shard.of, self.places[index], self.total)
        return dict(zip(COLUMNS, values, strict=True))


def shard_of(relative: str | Path, count: int) -> int:
    """The number, 1 … count, of the shard that a file belongs to by its path below the folder that was given.

    Both separators of paths are the same, and so are both forms of an accented letter.

    >>> shard_of("nut/001.png", 100), shard_of("nut\\\\001.png", 100)
    (36, 36)
    """
    name = same_name(str(relative)).replace("\\", "/")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count + 1


def share(files: Sequence[ImageFile], shard: Shard) -> Share:
    """The files of one shard, in their order."""
    numbered = [
        (place, file) for place, file in enumerate(files, 1) if shard_of(file.relative, shard.of) == shard.number
    ]
    return Share(shard, [file for _, file in numbered], [place for place, _ in numbered], len(files))


@dataclass(frozen=True)
class ShardRow:
    """A row of a shard."""

    line: str  # without what it tells of the shards, as a single run writes it
    path: str
    verdict: str
    shard: Shard
    place: int
    total: int
    source: Path


class Merged(NamedTuple):
    """All rows of a run."""

    header: str  # of CSV; '' for JSON
    rows: list[ShardRow]
    verdicts: "Counter[str]"

    def lines(self) -> Iterator[str]:
        if self.header:
            yield self.header
        yield from (row.line for row in self.rows)


def merge(paths: Sequence[Path], listed: Sequence[ImageFile] | None = None) -> Merged:
    """The rows of all shards in the order of a single run.

    listed: the files as they are now, to name those that are missing. Raises MambaADError where a row is missing or
    double, where the shards are not of the same run, and for a file that no shard wrote.
    """
    headers: dict[str, Path] = {}
    rows: dict[int, ShardRow] = {}
    for path in paths:
        header, found = read_shard(path)
        if found or header:
            headers.setdefault(header, path)
        for row in found:
            _check_same_run(row, next(iter(rows.values()), row))
            other = rows.setdefault(row.place, row)
            if other is not row:
                where = f"in {shown(other.source)}" + ("" if other.source == path else f" and {shown(path)}")
                raise MambaADError(f"{shown(row.path)} is there twice, {where}: give each shard's rows once")
    if len(headers) > 1:
        raise MambaADError(f"rows of several kinds: {' and '.join(map(shown, headers.values()))} have other columns")
    if not rows:
        raise MambaADError(f"no rows in {', '.join(map(shown, paths))}")
    _check_complete(rows, listed)
    ordered = [rows[place] for place in sorted(rows)]
    return Merged(next(iter(headers)), ordered, Counter(row.verdict for row in ordered))


def _check_same_run(row: ShardRow, first: ShardRow) -> None:
    if (row.shard.of, row.total) != (first.shard.of, first.total):
        runs = [f"{shown(one.source)} is of {one.shard.of} shards of {one.total} files" for one in (first, row)]
        raise MambaADError(f"{', but '.join(runs)}: score all shards anew, on the same files")


def _check_complete(rows: dict[int, ShardRow], listed: Sequence[ImageFile] | None) -> None:
    """Raises MambaADError that names what is missing."""
    first = next(iter(rows.values()))
    if listed is not None:
        if len(listed) != first.total:
            raise MambaADError(f"there are {len(listed)} files now, and were {first.total}: files came or went")
        for place, row in rows.items():
            relative = same_name(listed[place - 1].relative.as_posix())
            if not same_name(row.path).replace("\\", "/").endswith(relative):
                raise MambaADError(f"{shown(row.path)}: {shown(relative)} is in its place now: files came or went")
    missing = [place for place in range(1, first.total + 1) if place not in rows]
    if not missing:
        return
    seen = {row.shard.number for row in rows.values()}
    absent = [number for number in range(1, first.shard.of + 1) if number not in seen]
    said = f"{len(missing)} of {first.total} rows are missing"
    if listed is not None:
        files = [listed[place - 1] for place in missing]
        numbers = sorted({shard_of(file.relative, first.shard.of) for file in files})
        said += f": {_some(str(file.path) for file in files)}; of shard {_some(map(str, numbers))}"
    elif absent:
        said += f"; no rows of shard {_some(map(str, absent))}"
    raise MambaADError(f"{said} of {first.shard.of}" if listed is not None or absent else said)


def _some(names: Iterable[str]) -> str:
    """
    >>> _some(["a", "b"]), _some("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    shown_names = [shown(name) for name in names]
    more = f" and {len(shown_names) - MAX_NAMED} more" if len(shown_names) > MAX_NAMED else ""
    return ", ".join(shown_names[:MAX_NAMED]) + more


def read_shard(path: Path) -> tuple[str, list[ShardRow]]:
    """The header of a shard's rows, '' for JSON, and its rows. A last line without its end is left out.

    Raises MambaADError for a file that cannot be read, or that no shard wrote. A shard without files has no rows.
    """
    try:
        lines = list(complete_lines(path))
        if not lines or lines[0].startswith("{"):
            return "", [_of_json(line, path) for line in lines]
        return _of_csv(lines, path)
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise MambaADError(f"{shown(path)} holds no rows of a shard: write them with mambaad score --shard") from error


def _of_json(line: str, path: Path) -> ShardRow:
    values = json.loads(line)
    number, count, place, total = (int(values.pop(name)) for name in COLUMNS)
    return ShardRow(
        json.dumps(values) + "\n", values["path"], values["verdict"], Shard(number, count), place, total, path
    )


def _of_csv(lines: list[str], path: Path) -> tuple[str, list[ShardRow]]:
    records = csv.reader(lines)
    header = next(records)
    if tuple(header[-len(COLUMNS) :]) != COLUMNS:
        raise ValueError("no shard")
    names = header[: -len(COLUMNS)]
    path_at, verdict_at = names.index("path"), names.index("verdict")
    rows = []
    for cells in records:
        if len(cells) != len(header):
            raise ValueError("cut")
        number, count, place, total = map(int, cells[-len(COLUMNS) :])
        own = cells[: -len(COLUMNS)]
        rows.append(ShardRow(quoted_line(own), own[path_at], own[verdict_at], Shard(number, count), place, total, path))
    return quoted_line(names), rows
