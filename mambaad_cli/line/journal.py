"""A file of rows that grows, with its ledger: each version of a photo gets exactly one row, also after a crash.

A row is on disk before the ledger knows its photo. The ledger also knows where the last row ends, and in which file.
What follows there was written by a run that was interrupted between the two: it is cut off, and its photo is scored
again. Log rotation may rename the file at any moment, or copy and truncate it.
"""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.line.arrivals import Version
from mambaad_cli.line.disk import sync_folder
from mambaad_cli.line.ledger import End, Ledger, Photo

TAIL = 4096  # bytes before the end of the last row, whose digest recognises the file
BLOCK = 1 << 16


class Journal:
    """Rows, open to append, and their ledger, locked against a second writer.

    ledger: the photos that have a row.
    notices: what was taken back or noticed when the files were opened, one line each.

    Raises MambaADError where another process writes the same rows, where the files belong to something else, and where
    the disk refuses.
    """

    def __init__(self, output: Path, folder: Path, model: str, header: str = "") -> None:
        self.output, self._header = output.resolve(), header.encode()
        self._folder, self._model = str(folder.resolve()), model
        self.notices: list[str] = []
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.ledger = Ledger(self.output.with_name(f"{self.output.name}.ledger"))
            try:
                self._check_owner()
                if self.ledger.end is not None:
                    self._take_back(self.ledger.end)
                self._rows = self._opened()
            except BaseException:
                self.ledger.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._refusal(error) from error

    def has(self, name: str, version: Version) -> bool:
        """Whether this very version of a photo, named by its path below the folder, has a row."""
        photo = self.ledger.find(name)
        return photo is not None and photo.version == version

    def go_on_with(self, model: str) -> None:
        """The rows from now on are of another model."""
        self._model = model
        self.ledger.begin(self._folder, model, self._end())

    def record(self, rows: Sequence[str], photos: Sequence[Photo]) -> None:
        """Append a row for each photo. When this returns, both are on disk."""
        try:
            self._follow_rotation()
            before = self._size()
            try:
                _append(self._rows, "".join(rows).encode(errors="surrogateescape"))
            except OSError:
                os.ftruncate(self._rows.fileno(), before)
                raise
            self.ledger.record(photos, self._end())
        except (OSError, sqlite3.Error) as error:
            raise self._refusal(error, "; the rows before are kept") from error

    def close(self) -> None:
        """Open the files to others."""
        if self._rows.closed:
            return
        self._rows.close()
        try:
            self.ledger.close()
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError | sqlite3.Error, more: str = "") -> MambaADError:
        reason = getattr(error, "strerror", None) or str(error)
        return MambaADError(f"cannot write {shown(self.output)}: {reason}{more}")

    def _check_owner(self) -> None:
        watched, model = self.ledger.folder, self.ledger.model
        if self.ledger.end is None:
            if self.output.exists() and self.output.stat().st_size:
                raise MambaADError(f"{shown(self.output)} has rows and no ledger: choose another --output")
            return
        if watched != self._folder and watched:
            raise MambaADError(f"{shown(self.output)} is of the folder {shown(watched)}: choose another --output")
        if model != self._model:
            self.notices.append(f"the rows so far are of another model, {model}; their photos are not scored again")

    # ---- after a crash ----

    def _take_back(self, end: End) -> None:
        """Cut off what an interrupted run wrote last, wherever rotation has put it. Rows cut by others stay so."""
        if not self._cut(self.output, end):
            beside = [path for path in self._beside(end.offset) if self._cut(path, end)]
            if self.output.exists():
                self._cut_half_line(end)
            if end.offset and not beside:
                self.notices.append(f"{shown(self.output)} is shorter than it was: rows go on from here")

    def _cut(self, path: Path, end: End) -> bool:
        """Cut a file where the last row ends, if it is that file, or surely a copy of it. Returns whether it is."""
        if not path.exists():
            return False
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if end.tail is None:  # of a ledger of format 1
                ours = path == self.output and size >= end.offset and _ends_line(file, end.offset)
            else:
                copied = end.offset > len(self._header) and (path == self.output or not self._header)
                ours = copied or _is_file_of(file, end)  # JSON rows have times: no two files end alike by chance
                ours = ours and size >= end.offset and _tail(file, end.offset) == end.tail
            if ours and size > end.offset:
                self._truncate(file, end.offset)
            return ours

    def _cut_half_line(self, end: End) -> None:
        """Where others truncated the file of rows, cut what an interrupted run wrote last to whole lines."""
        with self.output.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if _is_file_of(file, end) and (whole := _end_of_last_line(file, size)) < size:
                self._truncate(file, whole)

    def _truncate(self, file: IO[bytes], end: int) -> None:
        file.truncate(end)
        os.fsync(file.fileno())
        self.notices.append("took back what an interrupted run wrote last: its photos are scored again")

    def _beside(self, size: int) -> list[Path]:
        """Files larger than `size` to which rotation may have renamed or copied the rows."""
        with os.scandir(self.output.parent) as entries:
            named = [entry for entry in entries if entry.name.startswith(self.output.stem) and entry.is_file()]
            others = [Path(entry.path) for entry in named if entry.stat().st_size >= size]
        kept = (self.output.name, self.ledger.path.name)
        return [path for path in others if not path.name.startswith(kept[1]) and path.name != kept[0]]

    # ---- the open file ----

    def _opened(self) -> IO[bytes]:
        """The file of rows, open to append. The ledger knows of it before its first row is written."""
        self._rows = self.output.open("a+b", buffering=0)
        sync_folder(self.output.parent)
        if not _ends_line(self._rows, self._size()):
            _append(self._rows, b"\n")  # after a line that others left half
        self._mark()
        if self._header and not self._size():
            _append(self._rows, self._header)
            self._mark()
        return self._rows

    def _follow_rotation(self) -> None:
        """Begin a new file of rows where the old one was moved away; go on where it was truncated."""
        if not self.output.exists() or not os.path.samestat(self.output.stat(), os.fstat(self._rows.fileno())):
            self._rows.close()
            self._rows = self._opened()
        elif self.ledger.end is None or self._size() != self.ledger.end.offset:
            if self._header and not self._size():
                self._mark()
                _append(self._rows, self._header)
            self._mark()

    def _mark(self) -> None:
        self.ledger.begin(self._folder, self._model, self._end())

    def _size(self) -> int:
        return os.fstat(self._rows.fileno()).st_size

    def _end(self) -> End:
        status = os.fstat(self._rows.fileno())
        return End(status.st_dev, status.st_ino, status.st_size, _tail(self._rows, status.st_size))


def _is_file_of(file: IO[bytes], end: End) -> bool:
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino) == (end.device, end.inode)


def _tail(file: IO[bytes], offset: int) -> bytes:
    """A digest of the bytes before an offset."""
    file.seek(max(0, offset - TAIL))
    return hashlib.blake2b(file.read(min(offset, TAIL)), digest_size=16).digest()


def _ends_line(file: IO[bytes], offset: int) -> bool:
    """Whether a line ends at this offset, or the file begins."""
    file.seek(max(0, offset - 1))
    return offset == 0 or file.read(1) == b"\n"


def _end_of_last_line(file: IO[bytes], size: int) -> int:
    """Where the last line with an end has it."""
    end = size
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        if (last := file.read(end - start).rfind(b"\n")) >= 0:
            return start + last + 1
        end = start
    return 0


def _append(file: IO[bytes], data: bytes) -> None:
    """Write all of it, to disk."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())
