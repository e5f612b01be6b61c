"""A file of rows and, beside it, the ledger of the photos that have a row: a photo gets one row, whatever happens.

A row is on disk before its line in the ledger is, and that line says where the row ends. What follows the end of the
last one is of a run that was interrupted between the two: it is taken back, and its photo is scored again.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.line.arrivals import Version

FORMAT = 1  # of the ledger


class Entry(NamedTuple):
    """A photo that has a row."""

    version: Version
    verdict: str


class Journal:
    """Rows with their ledger, both open to append, locked against a second writer.

    known: entry by path below the watched folder.
    mended: what was taken back or noticed when it was opened, each in a line for people.

    Raises MambaADError where another process writes the same rows, where the files belong to something else, and where
    the disk refuses.
    """

    def __init__(self, output: Path, folder: Path, model: str, header: str = "") -> None:
        self.output, self._header = output.resolve(), header.encode()
        self.path = self.output.with_name(f"{self.output.name}.ledger")
        self.known: dict[str, Entry] = {}
        self.mended: list[str] = []
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._ledger = self.path.open("a+b", buffering=0)
            self._lock()
            end = self._read(folder, model)
            self._rows = self.output.open("a+b", buffering=0)
            self._mend(end)
            about = {"ledger": FORMAT, "folder": str(folder.resolve()), "model": model}
            self._append(self._ledger, _line(about | {"end": self._size()}))
            if header and not self._size():
                self._append(self._rows, self._header)
                self._append(self._ledger, _line(about | {"end": self._size()}))
            _sync_folder(self.output.parent)
        except OSError as error:
            raise MambaADError(f"cannot write {shown(self.output)}: {error.strerror or error}") from error

    def has(self, name: str, version: Version) -> bool:
        """Whether this version of a photo has a row."""
        entry = self.known.get(name)
        return entry is not None and entry.version == version

    def record(self, rows: Sequence[str], photos: Sequence[tuple[str, Version, str]]) -> None:
        """Append a row for each photo (path, version, verdict). When this returns, both are on disk."""
        try:
            self._follow_rotation()
            lines, end = [], self._size()
            for row, (name, version, verdict) in zip(rows, photos, strict=True):
                end += len(row.encode(errors="surrogateescape"))
                lines.append(_line({"path": name, **version._asdict(), "verdict": verdict, "end": end}))
            self._append(self._rows, "".join(rows).encode(errors="surrogateescape"))
            self._append(self._ledger, b"".join(lines))
        except OSError as error:
            where = shown(self.output)
            raise MambaADError(f"cannot write {where}: {error.strerror}; the rows before are kept") from error
        self.known |= {name: Entry(version, verdict) for name, version, verdict in photos}

    def close(self) -> None:
        self._rows.close()
        self._ledger.close()  # and with it the lock

    def _lock(self) -> None:
        try:
            fcntl.flock(self._ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MambaADError(f"another mambaad watch writes {shown(self.output)}: choose another --output") from None

    def _read(self, folder: Path, model: str) -> int:
        """Take in the ledger, without a last line that is half-written; returns the end of the last row that counts."""
        self._ledger.seek(0)
        data = self._ledger.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        end, models = 0, [model]
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                found = json.loads(line)
                end = int(found["end"])
                if "ledger" not in found:
                    self._take_in(found)
                    continue
                watched, newer = found["folder"], found["ledger"] > FORMAT
                models.append(found["model"])
            except (KeyError, TypeError, ValueError):
                raise MambaADError(f"{shown(self.path)} is damaged in line {number}: choose another --output") from None
            if newer:
                raise MambaADError(f"{shown(self.path)} is of a newer mambaad: upgrade this one")
            if watched != str(folder.resolve()):
                raise MambaADError(f"{shown(self.output)} is of the folder {shown(watched)}: choose another --output")
        if not data and self.output.exists() and self.output.stat().st_size:
            raise MambaADError(f"{shown(self.output)} has rows and no ledger: choose another --output")
        if models[-1] != model:
            self.mended.append(f"the rows so far are of another model, {models[-1]}; their photos are not scored again")
        return end

    def _take_in(self, found: dict[str, object]) -> None:
        version = Version(int(str(found["size"])), int(str(found["mtime_ns"])))
        self.known[str(found["path"])] = Entry(version, str(found["verdict"]))

    def _mend(self, end: int) -> None:
        """Cut the rows where the ledger ends. Rows that are shorter than that were cut by others: they stay so."""
        size = self._size()
        if size < end:
            self.mended.append(f"{shown(self.output)} is shorter than it was: rows go on from here")
            self._rows.seek(0)
            end = self._rows.read().rfind(b"\n") + 1
        if size > end:
            os.truncate(self.output, end)
            self.mended.append("took back what an interrupted run wrote last: its photos are scored again")

    def _follow_rotation(self) -> None:
        """Begin a new file of rows where the old one was moved away."""
        if self.output.exists() and os.path.samestat(self.output.stat(), os.fstat(self._rows.fileno())):
            return
        self._rows.close()
        self._rows = self.output.open("a+b", buffering=0)
        if not self._size():
            self._append(self._rows, self._header)

    def _size(self) -> int:
        return os.fstat(self._rows.fileno()).st_size

    @staticmethod
    def _append(file: IO[bytes], data: bytes) -> None:
        """Write all of it, to disk."""
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _line(values: dict[str, object]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    """Put the names of new files on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
