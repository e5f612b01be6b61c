"""The ledger beside a file of rows, an SQLite database: which photos have a row, and where the last row ends.

It is locked while it is open, so that there is one writer. A photo is forgotten once it has been moved away, so the
ledger holds the photos that may still lie in the watched folder. Nothing of it is kept in memory.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.line import old_ledger
from mambaad_cli.line.arrivals import Version

FORMAT = 2  # 1 was lines of JSON, see old_ledger
STAYS, HELD, PLACED = "stays", "held", "placed"  # see Photo
TABLES = """
BEGIN;
CREATE TABLE IF NOT EXISTS about (
    folder BLOB, model TEXT, recorded INTEGER, device TEXT, inode TEXT, offset INTEGER, tail BLOB);
CREATE TABLE IF NOT EXISTS photos (
    name BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, verdict TEXT, digest BLOB,
    state TEXT, moved_to BLOB, since REAL, returned INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unfinished ON photos (state) WHERE state != 'stays';
CREATE TABLE IF NOT EXISTS moved (
    moved_to BLOB PRIMARY KEY, name BLOB, size INTEGER, mtime_ns INTEGER, inode INTEGER, until REAL) WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""


class End(NamedTuple):
    """Where the last row ends, and in which file: rows may be rotated away and go on in a new one."""

    device: int
    inode: int
    offset: int
    tail: bytes | None  # a digest of what comes right before; None: not known, of a ledger of format 1


class Photo(NamedTuple):
    """A photo that has a row.

    state: STAYS in the folder; HELD until it cannot grow any more, then moved; PLACED: it has its new name, and the
        old one is still to be removed.
    """

    name: str  # its path below the watched folder, with "/" between the parts
    version: Version
    verdict: str
    digest: bytes | None = None  # of its content; None: not known
    state: str = STAYS
    moved_to: str = ""
    since: float = 0.0  # when it was recorded, in seconds of time.time()
    returned: bool = False  # it changed after it had been moved, and was brought back


class Moved(NamedTuple):
    """A photo that was moved a moment ago: if its writer is still at it, it is brought back."""

    moved_to: str
    name: str
    size: int
    mtime_ns: int
    inode: int
    until: float  # in seconds of time.time()


class Ledger:
    """Opens the ledger, or begins it, or takes over one of format 1.

    folder: the one that is watched, or "" in a new ledger.
    model: the last one that wrote rows.

    Raises MambaADError where another process has it open, and where it is damaged or of a newer mambaad.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error):
                raise self._refusal(error) from error
            old_ledger.take_over(path, _write_new)
            try:
                self._connection = self._opened()
            except sqlite3.DatabaseError as error:
                raise self._refusal(error) from error
        about = self._connection.execute("SELECT * FROM about").fetchone()
        self.folder, self.model, self.recorded, self.end = "", "", 0, None
        if about is not None:
            folder, self.model, self.recorded, device, inode, offset, tail = about
            self.folder, self.end = os.fsdecode(folder), End(int(device), int(inode), offset, tail)

    folder: str
    model: str
    recorded: int  # rows, ever
    end: End | None

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=0, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL, which then needs no shared memory
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                raise MambaADError(f"{shown(self.path)} is of a newer mambaad: upgrade this one")
            connection.executescript(TABLES)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refusal(self, error: sqlite3.Error) -> MambaADError:
        if "locked" in str(error):
            rows = shown(self.path.with_suffix(""))
            return MambaADError(f"another mambaad watch writes {rows}: choose another --output")
        if isinstance(error, sqlite3.OperationalError):  # the disk, or the rights
            return MambaADError(f"cannot write {shown(self.path)}: {error}")
        return MambaADError(f"{shown(self.path)} is damaged: {error}: choose another --output")

    def begin(self, folder: str, model: str, end: End) -> None:
        """Rows of this model, and of this folder, go on here."""
        self._connection.execute("DELETE FROM about")
        about = (os.fsencode(folder), model, self.recorded, str(end.device), str(end.inode), end.offset, end.tail)
        self._connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?, ?)", about)
        self.folder, self.model, self.end = folder, model, end
        self.commit()

    def record(self, photos: Iterable[Photo], end: End) -> None:
        """These photos have rows, and the last row ends here. On disk when this returns."""
        rows = [_values(photo) for photo in photos]
        self._connection.executemany(f"REPLACE INTO photos VALUES ({', '.join('?' * 11)})", rows)
        self.recorded += len(rows)
        self.begin(self.folder, self.model, end)

    def find(self, name: str) -> Photo | None:
        """The photo of this name, if it has a row."""
        values = self._connection.execute("SELECT * FROM photos WHERE name = ?", (os.fsencode(name),)).fetchone()
        return None if values is None else _photo(values)

    def unfinished(self) -> list[Photo]:
        """Photos that are still to be moved."""
        query = "SELECT * FROM photos WHERE state != 'stays' ORDER BY since, name"
        return [_photo(values) for values in self._connection.execute(query)]

    def moved(self) -> list[Moved]:
        """Photos that were moved a moment ago."""
        rows = self._connection.execute("SELECT * FROM moved").fetchall()
        return [Moved(os.fsdecode(target), os.fsdecode(name), *numbers) for target, name, *numbers in rows]

    # Changes below are on disk with the next `commit`: what is lost in a crash is found out again.

    def update(self, photo: Photo) -> None:
        """Replace what is known of a photo."""
        self._connection.execute(f"REPLACE INTO photos VALUES ({', '.join('?' * 11)})", _values(photo))

    def forget(self, name: str) -> None:
        """Forget a photo that does not lie in the folder any more."""
        self._connection.execute("DELETE FROM photos WHERE name = ?", (os.fsencode(name),))

    def add_moved(self, moved: Moved) -> None:
        """Keep an eye on a photo that was moved."""
        values = (os.fsencode(moved.moved_to), os.fsencode(moved.name), *moved[2:])
        self._connection.execute("REPLACE INTO moved VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget_moved(self, moved: Moved) -> None:
        self._connection.execute("DELETE FROM moved WHERE moved_to = ?", (os.fsencode(moved.moved_to),))

    def commit(self) -> None:
        if self._connection.in_transaction:
            self._connection.commit()

    def close(self) -> None:
        """Put all of it on disk, in one file, and open it to others."""
        try:
            self.commit()
        finally:
            self._connection.close()


def _values(photo: Photo) -> tuple[object, ...]:
    place = (photo.state, os.fsencode(photo.moved_to), photo.since, int(photo.returned))
    return (os.fsencode(photo.name), *photo.version, photo.verdict, photo.digest, *place)


def _photo(values: tuple) -> Photo:
    name, size, mtime_ns, ctime_ns, inode, verdict, digest, state, moved_to, since, returned = values
    version = Version(size, mtime_ns, ctime_ns, inode)
    return Photo(os.fsdecode(name), version, verdict, digest, state, os.fsdecode(moved_to), since, bool(returned))


def _write_new(path: Path, entries: Iterator[old_ledger.Entry]) -> None:
    """Write a ledger with the content of one of format 1."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(TABLES)
        folder = model = ""
        offset = recorded = 0
        for entry in entries:
            offset = entry.end
            if entry.about is not None:
                folder, model = entry.about
                continue
            recorded += 1
            photo = Photo(entry.name, Version(entry.size, entry.mtime_ns), entry.verdict)
            connection.execute(f"REPLACE INTO photos VALUES ({', '.join('?' * 11)})", _values(photo))
        about = (os.fsencode(folder), model, recorded, "0", "0", offset, None)
        connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?, ?)", about)
        connection.commit()
    finally:
        connection.close()
