"""Room for the features of a training: in memory while there is some, else in a file that vanishes with the process."""

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.training.recipe import RunOptions

BLOCK = 2**24  # bytes that are written at once
EXACT = 2**29  # bytes of features in float32 before others are kept in half precision, unless a type is chosen
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}


def fill(room: Tensor, features: Tensor) -> None:
    """Copy features into their room, of any type; those that are too large for half precision become its largest."""
    if room.dtype == torch.float16:
        most = torch.finfo(room.dtype).max
        features = features.clamp(-most, most)
    room.copy_(features)


class Cache:
    """Room for the features of all images of a training, whatever their sizes and views."""

    def __init__(self, run: RunOptions) -> None:
        self.run = run
        self.left = run.cache_memory  # bytes of memory
        self.exact = EXACT

    def allocated(self, n: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Uninitialised (n, h, w, c) tensors: in memory while there is room, else in an unnamed temporary file each."""
        sizes = [n * math.prod(shape) for shape in shapes]
        dtype = self._dtype(sum(sizes))
        needed = dtype.itemsize * sum(sizes)
        if needed <= self.left:
            self.left -= needed
            return [torch.empty(n, *shape, dtype=dtype) for shape in shapes]
        folder = tempfile.gettempdir()
        if needed > (free := shutil.disk_usage(folder).free):
            raise MambaADError(
                f"the features take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: set TMPDIR to "
                "a larger disk, or give --cache-dtype fp16 or --cache-memory"
            )
        return [_mapped(size, dtype).view(n, *shape) for size, shape in zip(sizes, shapes, strict=True)]

    def _dtype(self, numbers: int) -> torch.dtype:
        """The type of so many more numbers."""
        if self.run.cache_dtype != "auto":
            return DTYPES[self.run.cache_dtype]
        self.exact -= torch.float32.itemsize * numbers
        return torch.float32 if self.exact >= 0 else torch.float16


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    handle, path = tempfile.mkstemp(prefix="mambaad-")
    try:
        _reserve(handle, max(1, size * dtype.itemsize))
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    except OSError as error:
        raise MambaADError(f"cannot reserve a file in {Path(path).parent}: {error.strerror}") from error
    finally:
        os.close(handle)
        _remove(Path(path))  # the mapping keeps the data until the process ends


def _reserve(handle: int, size: int) -> None:
    """Make a file as long as that, on the disk: blocks that were missing later would end the process.

    Only Linux reserves them without writing.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    zeros = bytes(min(size, BLOCK))
    left = size
    while left:
        left -= os.write(handle, zeros[:left])


def _remove(path: Path) -> None:
    """Remove a file that is mapped: at once, or on Windows, which refuses that, when the process ends."""
    try:
        path.unlink()
    except PermissionError:
        atexit.register(_remove_if_possible, path)


def _remove_if_possible(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
