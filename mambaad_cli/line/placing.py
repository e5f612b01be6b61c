"""A photo moves to another folder in two steps, and its row is written in between: a new name, then the old one goes.

Nothing is ever written over: the new name is taken only where no file has it, by calls that fail otherwise.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mambaad_cli.line.disk import sync_folder

NO_HARD_LINK = (  # the folders lie on different disks, or the disk has no hard links, as FAT and many network drives
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.EMLINK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
)


def place(source: Path, target: Path) -> Path:
    """Let a file have the name `target` as well, or one with a number where that is taken. Returns the new name.

    Where the disk cannot do so, it is a copy, which is on disk when this returns. A name that the file has got already,
    from a run that was interrupted, is taken again. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():  # a relative link would not lead there from another folder
        real = os.path.realpath(source)
        return _under_free_name(target, lambda path: path.symlink_to(real), source)
    try:
        return _under_free_name(target, lambda path: os.link(source, path), source)
    except OSError as error:
        if error.errno not in NO_HARD_LINK:
            raise
    return _copied(source, target)


def withdraw(path: Path) -> None:
    """Take back the name that `place` gave."""
    path.unlink(missing_ok=True)


def _copied(source: Path, target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=".", suffix=target.suffix, dir=target.parent)  # hidden while it is half
    half = Path(name)
    try:
        with os.fdopen(handle, "wb") as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            with suppress(OSError):  # times and rights, which not every disk has
                shutil.copystat(source, half)
            os.fsync(copy.fileno())
        path = _under_free_name(target, lambda path: _name_copy(half, path), source)
    finally:
        half.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def _name_copy(half: Path, path: Path) -> None:
    try:
        os.link(half, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINK:
            raise
        path.touch(exist_ok=False)  # reserves the name
        half.replace(path)


def _under_free_name(target: Path, create: Callable[[Path], object], source: Path) -> Path:
    """Create the first of target.png, target_2.png, … for which `create` does not raise FileExistsError."""
    path, number = target, 1
    while True:
        try:
            create(path)
            return path
        except FileExistsError:
            if _same_file(source, path):
                return path
        number += 1
        path = target.with_name(f"{target.stem}_{number}{target.suffix}")


def _same_file(source: Path, path: Path) -> bool:
    try:
        return source.samefile(path)
    except OSError:  # a link to nothing
        return False
