"""Files that survive a power cut."""

import errno
import os
import sys
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk. Windows, and some network drives, cannot be asked to."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
