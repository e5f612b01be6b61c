"""Room for the features of a training: in memory while there is some, else in a file that vanishes with the process."""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.training.recipe import RunOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Cache:
    """Room for the features of all images of a training, whatever their sizes and views."""

    def __init__(self, run: RunOptions) -> None:
        self.run = run
        self.left = run.cache_memory  # bytes of memory

    def allocated(self, n: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Uninitialised (n, h, w, c) tensors: in memory while there is room, else in an unnamed temporary file each."""
        dtype, sizes = DTYPES[self.run.cache_dtype], [n * math.prod(shape) for shape in shapes]
        needed = dtype.itemsize * sum(sizes)
        if needed <= self.left:
            self.left -= needed
            return [torch.empty(n, *shape, dtype=dtype) for shape in shapes]
        folder = tempfile.gettempdir()
        if needed > (free := shutil.disk_usage(folder).free):
            raise MambaADError(
                f"the features take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: set TMPDIR to "
                "a larger disk, or give --cache-dtype bf16 or --cache-memory"
            )
        return [_mapped(size, dtype).view(n, *shape) for size, shape in zip(sizes, shapes, strict=True)]


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    handle, path = tempfile.mkstemp(prefix="mambaad-")
    try:
        # blocks that are reserved now cannot be missing later: then the process would be killed
        os.posix_fallocate(handle, 0, max(1, size * dtype.itemsize))
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    except OSError as error:
        raise MambaADError(f"cannot reserve a file in {Path(path).parent}: {error.strerror}") from error
    finally:
        os.close(handle)
        Path(path).unlink()  # the mapping keeps the data until the process ends
