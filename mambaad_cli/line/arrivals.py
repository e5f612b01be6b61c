"""Photos that arrive in a folder, each handed on once it is complete: its size and its times stand still."""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mambaad_cli.data.image_files import SUFFIXES, ImageFile, is_hidden, natural_order, unread_suffix


class Version(NamedTuple):
    """What distinguishes a file from an earlier or later one of the same name."""

    size: int  # bytes
    mtime_ns: int
    ctime_ns: int = 0  # on Windows the time of creation
    inode: int = 0  # 0 on Windows, where a listing does not tell it

    def times(self) -> tuple[int, int, int]:
        """All but the inode, which some network drives number differently at every look."""
        return self[:3]


MISSING = Version(-1, 0)  # of a file that vanished before it was complete, or of a link to nothing


class Arrival(NamedTuple):
    """A photo to score, or one to report where there is a problem."""

    file: ImageFile
    version: Version
    problem: str = ""


class _Waiting(NamedTuple):
    version: Version
    since: float  # when this version was seen first, in seconds of the caller's clock
    first: float  # when the file was seen first
    late: bool = False  # it was reported as one that never stands still


class Arrivals:
    """Lists a folder and all its sub-folders, again and again. Hidden files, and those of the system, are left out.

    settle: seconds for which size and times of a file must stand still. With 0 a file is complete when it is seen,
        which is right where files are renamed into place.
    patience: seconds after which a file that still changes is reported; it is handed on all the same once it is
        complete.
    has_row: whether this version of a file, named by its path below the folder, has a row. It is asked once for each
        version that lies in the folder.
    """

    def __init__(
        self, folder: Path, has_row: Callable[[str, Version], bool], settle: float = 0.5, patience: float = 60.0
    ) -> None:
        self.folder, self.has_row, self.settle, self.patience = folder, has_row, settle, patience
        self.waiting: dict[str, _Waiting] = {}
        self.present = True  # whether the folder could be listed the last time
        self.unread: Counter[str] = Counter()  # pictures there of kinds that are not read, by suffix
        self._done: dict[str, Version] = {}  # photos with a row that still lie in the folder

    def list_new(self, now: float) -> list[Arrival]:
        """What became complete, vanished or ran out of patience since the last call, in order of arrival.

        now: seconds of a clock that only runs forwards (time.monotonic).
        """
        try:
            listed = list(self._listed())
        except OSError:
            self.present = False  # photos that wait are listed again when the folder is back
            return []
        self.present = True
        done: dict[str, Version] = {}
        unscored: dict[str, Version] = {}
        for name, version in listed:
            known = self._done.get(name) == version or self.has_row(name, version)
            (done if known else unscored)[name] = version
        self._done = done
        vanished = [self._arrival(name, MISSING, "vanished before it was complete") for name in self._gone(unscored)]
        complete, late = [], []
        for name, version in unscored.items():
            before = self.waiting.get(name)
            if before is None or before.version.times() != version.times():
                first, was_late = (now, False) if before is None else (before.first, before.late)
                before = self.waiting[name] = _Waiting(version, now, first, was_late)
            if now - before.since >= self.settle:
                del self.waiting[name]
                complete.append(self._arrival(name, version))
            elif now - before.first > self.patience and not before.late:
                self.waiting[name] = before._replace(late=True)
                late.append(self._arrival(name, MISSING, f"still changes after {self.patience:g} s"))
        complete.sort(key=lambda arrival: (arrival.version.mtime_ns, natural_order(str(arrival.file.relative))))
        return [*vanished, *late, *complete]

    def due(self, now: float) -> float:
        """Seconds until the first of the waiting photos can be complete; infinite where none waits."""
        return min((max(0.0, photo.since + self.settle - now) for photo in self.waiting.values()), default=math.inf)

    def _gone(self, unscored: dict[str, Version]) -> list[str]:
        gone = [name for name in self.waiting if name not in unscored]
        reported = [name for name in gone if self.waiting.pop(name).late]
        return [name for name in gone if name not in reported]

    def _arrival(self, name: str, version: Version, problem: str = "") -> Arrival:
        return Arrival(image_file(self.folder, name), version, problem)

    def _listed(self) -> Iterator[tuple[str, Version]]:
        """(path below the folder, version) of each image. Raises OSError where the folder itself cannot be listed."""
        entered: set[tuple[int, int]] = set()
        self.unread = Counter()
        folders = [""]
        while folders:
            below = folders.pop()
            try:
                status = os.stat(self.folder / below)  # noqa: PTH116 (a name that scandir gave)
                if (status.st_dev, status.st_ino) in entered:  # a link back to a folder above
                    continue
                entered.add((status.st_dev, status.st_ino))
                with os.scandir(self.folder / below) as entries:
                    listed = list(entries)
            except OSError:
                if not below:
                    raise
                continue  # a sub-folder that vanished, or that is closed
            for entry in listed:
                name = f"{below}{entry.name}"
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(f"{name}/")
                elif entry.name.lower().endswith(SUFFIXES):
                    yield name, version_of(entry)
                elif suffix := unread_suffix(entry.name):
                    self.unread[suffix] += 1


def image_file(folder: Path, name: str) -> ImageFile:
    """The file of a path below a folder."""
    relative = Path(name)
    return ImageFile(folder / relative, relative, relative.parts[0] if len(relative.parts) > 1 else "")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def version_of(file: "os.DirEntry[str] | Path") -> Version:
    """The version that lies there now; MISSING where there is no file."""
    try:
        status = file.stat()
    except OSError:
        return MISSING
    inode = 0 if sys.platform == "win32" else status.st_ino & (2**63 - 1)  # as SQLite keeps it
    return Version(status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode)
