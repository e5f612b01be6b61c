"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mambaad_cli import MambaADError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving it is renamed to `path`, on an error it is removed.

    Folders that are missing are made. Raises MambaADError naming `path` where the disk or the folder refuses.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "note.txt"
    >>> with written_whole(target) as half:
    ...     _ = half.write_text("whole")
    ...     target.exists()
    False
    >>> target.read_text()
    'whole'
    """
    half = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the ending stays: image writers choose the format by it
        handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
        half = Path(name)
        os.close(handle)
        yield half
        half.chmod(0o666 & ~_umask())  # mkstemp's, or the writer's own, may be for us alone
        half.replace(path)
    except OSError as error:
        raise MambaADError(f"cannot write {shown(path)}: {error.strerror or error}") from error
    finally:
        if half is not None:
            half.unlink(missing_ok=True)


def shown(path: str | Path) -> str:
    r"""The path on one line: what cannot be printed is escaped.

    >>> shown("two\nlines ä.png")
    'two\\nlines ä.png'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
