"""Photos are moved to a folder for each verdict. One that changes afterwards, because it is still written, comes back.

A photo gets its new name before its row is written, so that the row tells the truth, and loses the old one afterwards.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.line import placing
from mambaad_cli.line.arrivals import MISSING, Version, version_of
from mambaad_cli.line.delivery import Say
from mambaad_cli.line.disk import sync_folder
from mambaad_cli.line.ledger import HELD, PLACED, STAYS, Ledger, Moved, Photo

BLOCK = 1 << 20
MAX_REPORTED = 10_000  # photos that are remembered as reported


class Mover:
    """Moves photos to `target`/VERDICT/, under the path that they have below `folder`.

    patience: seconds for which a held photo must stand still before it is moved, and for which a moved one is watched.
    """

    def __init__(self, folder: Path, target: Path, ledger: Ledger, patience: float, say: Say) -> None:
        self.folder, self.target, self.ledger, self.patience, self.say = folder, target, ledger, patience, say
        self._later: list[Photo] = []  # they have a row of a run that did not move them
        self._reported: set[str] = set()  # photos that could not be moved

    def place(self, photo: Photo) -> Photo:
        """Give a photo its new name, if it is still the version that was scored."""
        source = self.folder / photo.name
        if version_of(source) != photo.version:
            return photo  # it has been written again, and will be scored again
        try:
            path = placing.place(source, self.target / photo.verdict / photo.name)
        except FileNotFoundError:
            return photo  # it vanished
        except OSError as error:
            self._report(source, error)
            return photo
        version = version_of(source)  # a second name changes the ctime
        if _content(version) != _content(photo.version):
            placing.withdraw(path)
            return photo
        return photo._replace(state=PLACED, moved_to=str(path), version=version)

    def sync(self, photos: Sequence[Photo]) -> None:
        """Put the new names on disk. Raises MambaADError where that fails."""
        for folder in {Path(photo.moved_to).parent for photo in photos if photo.state == PLACED}:
            try:
                sync_folder(folder)
            except OSError as error:
                raise MambaADError(f"cannot write {shown(folder)}: {error.strerror}") from error

    def withdraw(self, photos: Sequence[Photo]) -> None:
        """Take the new names back: no row tells of them."""
        for photo in photos:
            if photo.state == PLACED:
                placing.withdraw(Path(photo.moved_to))

    def finish(self, photos: Sequence[Photo]) -> None:
        """Remove the old names of photos whose rows are on disk."""
        for photo in photos:
            if photo.state != PLACED:
                continue
            source, path = self.folder / photo.name, Path(photo.moved_to)
            version = version_of(source)
            if version == photo.version:
                try:
                    source.unlink()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._report(source, error)
                    continue  # `go_on` tries again
            elif version == MISSING and not self.folder.is_dir():
                continue  # the folder is gone: the photo may come back with it
            elif version != MISSING and version.inode and version.inode == photo.version.inode:
                placing.withdraw(path)  # its writer is still at it: it will be scored again
                self.ledger.update(photo._replace(state=STAYS, moved_to=""))
                continue
            self._moved(photo, path)

    def move_later(self, photo: Photo) -> None:
        """Move, at the next `go_on`, a photo whose row was written by a run that did not move it."""
        self._later.append(photo)

    def go_on(self) -> None:
        """Move photos that were held long enough, finish what a run left, and bring back what changed after all."""
        now = time.time()
        for photo in (*self._later, *self.ledger.unfinished()):
            if photo.state == HELD and photo.since <= now < photo.since + self.patience:
                continue
            self._move(photo)
        self._later = []
        for moved in self.ledger.moved():
            self._check_moved(moved, now)
        self.ledger.commit()

    def _move(self, photo: Photo) -> None:
        if photo.state != PLACED:
            placed = self.place(photo)
            if placed.state != PLACED:
                source = self.folder / photo.name
                if version_of(source) == MISSING and self.folder.is_dir():
                    self.ledger.forget(photo.name)
                elif photo.state == HELD:
                    self.ledger.update(photo._replace(state=STAYS))
                return
            photo = placed
            self.sync([photo])
            self.ledger.update(photo)
            self.ledger.commit()
        self.finish([photo])

    def _moved(self, photo: Photo, path: Path) -> None:
        current = self.ledger.find(photo.name)
        if current is not None and current.moved_to == photo.moved_to:
            self.ledger.forget(photo.name)
        size, mtime_ns, _, inode = photo.version
        if not photo.returned and inode and inode == version_of(path).inode:  # its writer cannot reach a copy
            until = time.time() + self.patience
            self.ledger.add_moved(Moved(str(path), photo.name, size, mtime_ns, inode, until))

    def _check_moved(self, moved: Moved, now: float) -> None:
        """Bring a photo back to be scored again if it changed after it had been moved, once."""
        path = Path(moved.moved_to)
        version = version_of(path)
        if version.inode == moved.inode and version != MISSING and version[:2] != (moved.size, moved.mtime_ns):
            self._bring_back(path, moved)
        elif version.inode == moved.inode and now <= moved.until <= now + self.patience:
            return
        self.ledger.forget_moved(moved)

    def _bring_back(self, path: Path, moved: Moved) -> None:
        try:
            source = placing.place(path, self.folder / moved.name)
            path.unlink()
        except OSError as error:
            self._report(path, error)
            return
        self.say(f"{shown(path)} changed after it was moved: it is scored again")
        name = source.relative_to(self.folder).as_posix()
        never = Version(-2, 0)  # so that any version of it is scored
        self.ledger.update(Photo(name, never, "", since=time.time(), returned=True))

    def _report(self, path: Path, error: OSError) -> None:
        if len(self._reported) >= MAX_REPORTED:
            self._reported.clear()
        if str(path) not in self._reported:
            self._reported.add(str(path))
            self.say(f"{shown(path)} stays where it is: {error.strerror}")


def _content(version: Version) -> tuple[int, int, int]:
    return version.size, version.mtime_ns, version.inode


def digest_of(path: Path) -> bytes | None:
    """A digest of a file's content; None where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()
