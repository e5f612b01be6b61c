"""Photos that arrive in a folder, each given out once it is complete: its size and its time stand still."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mambaad_cli.data.images import SUFFIXES, ImageFile, natural_order


class Version(NamedTuple):
    """What tells a file from a later one of the same name."""

    size: int  # bytes
    mtime_ns: int


MISSING = Version(-1, 0)  # of a file that vanished while it was looked at, or of a link to nothing


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
    """Looks into a folder and all its sub-folders, again and again. Hidden files and folders are left out.

    settle: seconds for which size and time of a file must stand still. With 0 a file is complete when it is seen, which
        is right where files are renamed into place.
    patience: seconds after which a file that still changes is reported; it is given out all the same once it is
        complete.
    known: whether a version of a file, by its path below the folder, needs no look any more.
    """

    def __init__(
        self, folder: Path, known: Callable[[str, Version], bool], settle: float = 0.5, patience: float = 60.0
    ) -> None:
        self.folder, self.known, self.settle, self.patience = folder, known, settle, patience
        self.waiting: dict[str, _Waiting] = {}
        self.present = True  # whether the folder could be listed at the last look

    def look(self, now: float) -> list[Arrival]:
        """What became complete, vanished or ran out of patience since the last look, in order of arrival.

        now: seconds of a clock that only runs forwards (time.monotonic).
        """
        try:
            seen = {name: version for name, version in self._listed() if not self.known(name, version)}
        except OSError:
            self.present = False  # what waits is looked at again when the folder is back
            return []
        self.present = True
        vanished = [self._arrival(name, MISSING, "vanished before it was complete") for name in self._vanished(seen)]
        complete, late = [], []
        for name, version in seen.items():
            before = self.waiting.get(name)
            if before is None or before.version != version:
                first, was_late = (now, False) if before is None else (before.first, before.late)
                before = self.waiting[name] = _Waiting(version, now, first, was_late)
            if now - before.since >= self.settle:
                del self.waiting[name]
                complete.append(self._arrival(name, version))
            elif now - before.first > self.patience and not before.late:
                self.waiting[name] = before._replace(late=True)
                late.append(self._arrival(name, MISSING, f"still changes after {self.patience:g} s"))
        complete.sort(key=lambda one: (one.version.mtime_ns, natural_order(str(one.file.relative))))
        return [*vanished, *late, *complete]

    def due(self, now: float) -> float:
        """Seconds until the first of the photos that wait can be complete; infinite where none waits."""
        return min((max(0.0, one.since + self.settle - now) for one in self.waiting.values()), default=math.inf)

    def _vanished(self, seen: dict[str, Version]) -> list[str]:
        gone = [name for name in self.waiting if name not in seen]
        gone_late = [name for name in gone if self.waiting.pop(name).late]
        return [name for name in gone if name not in gone_late]  # those have a row already

    def _arrival(self, name: str, version: Version, problem: str = "") -> Arrival:
        return Arrival(image_file(self.folder, name), version, problem)

    def _listed(self) -> Iterator[tuple[str, Version]]:
        """(path below the folder, version) of each image. Raises OSError where the folder itself cannot be listed."""
        entered: set[tuple[int, int]] = set()
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
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(f"{name}/")
                elif entry.name.lower().endswith(SUFFIXES):
                    yield name, version_of(entry)


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
    return Version(status.st_size, status.st_mtime_ns)
