"""Files: written so that they appear whole or not at all, shown on one line, and told apart."""

import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mambaad_cli import MambaADError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RENAME_PAUSES = (0.05, 0.1, 0.25, 0.6)  # seconds


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. At the end it is renamed to `path`; after an error it is removed.

    Missing folders are created. A symbolic link stays one: the file that it points to is written. The content reaches
    the disk before the new name does, so that after a power cut `path` is the old file or the new one, never empty.

    Raises MambaADError where the disk or the folder cannot be written. It names `path`, or another file that could not
    be written or read inside the `with` block, such as one on another disk.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "note.txt"
    >>> with written_whole(target) as half:
    ...     _ = half.write_text("whole")
    ...     target.exists()
    False
    >>> target.read_text()
    'whole'
    """
    half, target = None, target_of(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # keep the ending: image writers choose the format by it
        handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=target.parent)
        half = Path(name)
        os.close(handle)
        yield half
        _sync(half)
        half.chmod(0o666 & ~_umask())  # mkstemp makes it readable for this user only
        _rename(half, target)
        with suppress(OSError):  # not every file system lets a folder be synchronised
            _sync(target.parent)
    except OSError as error:
        raise MambaADError(_refusal(error, path, half)) from error
    finally:
        if half is not None:
            half.unlink(missing_ok=True)


def target_of(path: Path) -> Path:
    """The file that is written where `path` is asked for: what a symbolic link points to, else `path` itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Windows synchronises only what is open to be written, and no folders.
    """
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(half: Path, target: Path) -> None:
    """Give the finished file its name.

    Windows refuses it while another program has the old file open, such as one that looks for viruses in new files: it
    is tried again for a second.
    """
    for pause in RENAME_PAUSES if sys.platform == "win32" else ():
        try:
            half.replace(target)
            return
        except PermissionError:
            time.sleep(pause)
    half.replace(target)


def _refusal(error: OSError, path: Path, half: Path | None) -> str:
    """One line that says what failed while `half`, which becomes `path`, was written."""
    reason = error.strerror or str(error)
    if half is None or not isinstance(error.filename, str | bytes):  # a failed write does not name its file
        return f"cannot write {shown(path)}: {reason}"
    other = Path(os.fsdecode(error.filename))
    if half.name in str(other) or other.absolute() == path.absolute():
        return f"cannot write {shown(path)}: {reason}"
    if error.errno in DISK_FULL:
        return f"cannot write {shown(other)}: {reason}"
    return f"cannot write {shown(path)}: {shown(other)}: {reason}"


def is_closed_pipe(error: BaseException) -> bool:
    """Whether the reader of our output has closed it: Windows tells of an invalid argument, and names no file."""
    invalid = isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and invalid)


def check_plot(path: Path) -> None:
    """Raise MambaADError, before minutes of work, where a plot could not be written."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise MambaADError(f"cannot plot to {shown(path)}: name a .png or .svg file")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MambaADError("plots need matplotlib: pip install 'mambaad[plot]', or leave out --plot") from error


def shown(path: str | Path) -> str:
    r"""The path on one line: what cannot be printed is escaped.

    >>> shown("two\nlines ä.png")
    'two\\nlines ä.png'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    """The process's umask. Setting it in order to read it would affect files that other threads create meanwhile."""
    return _UMASK_AT_START if (mask := _umask_now()) is None else mask


def _umask_now() -> int | None:
    """The umask that Linux tells of this process; None where the system does not tell it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("Umask:")]
    return int(lines[0].split()[1], 8) if lines else None


def _umask_by_setting() -> int:
    """The umask, read in the only way that every system knows: by setting it for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK_AT_START = _umask_by_setting() if _umask_now() is None else 0o022  # while no other thread runs yet
