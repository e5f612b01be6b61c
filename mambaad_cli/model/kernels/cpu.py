"""The compiled kernels for CPUs (cpu.c), called over the addresses of tensors."""

import ctypes
import importlib.machinery
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambaad_cli import MambaADError

SYSTEM_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}  # of a shared library; elsewhere .so
ISA = ("portable", "AVX2", "AVX-512")  # what cpu.c was built for, by number; portable is SSE2 or NEON


@lru_cache(maxsize=1)
def kernels() -> Any:
    """The compiled cpu.c, or None where this installation was made without a C compiler."""
    own = SYSTEM_SUFFIXES.get(sys.platform, ".so")
    for suffix in (own, *importlib.machinery.EXTENSION_SUFFIXES):  # the latter in a checkout that an older setup built
        path = Path(__file__).with_name(f"_cpu{suffix}")
        if path.exists():
            library: Any = ctypes.CDLL(str(path))
            library.mambaad_isa = library.mambaad_best_isa()
            library.mambaad_parallel = _torch_team()
            return library
    return None


def _torch_team() -> ctypes.c_void_p:
    """OpenMP's entry point, if the process has libgomp or LLVM's libomp: then the kernels use the same threads."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):
        return ctypes.c_void_p(None)


def suit(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can work on these."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors) and kernels() is not None


def call(function: str, work: type[ctypes.Structure], tensors: Mapping[str, Tensor], **numbers: int) -> None:
    """Run one of the kernels on contiguous tensors; ctypes releases the GIL during the call.

    work: the struct of cpu.c that its tensors and numbers are passed in.
    """
    library = kernels()
    assert library is not None
    struct = work(**numbers, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
    threads = ctypes.c_int64(torch.get_num_threads())
    if getattr(library, function)(ctypes.byref(struct), library.mambaad_isa, threads, library.mambaad_parallel):
        raise MambaADError("out of memory in a compiled kernel: try a smaller --batch or --res")


def fields(numbers: str, tensors: str) -> list[tuple[str, Any]]:
    """The fields of a struct of cpu.c, in its order: names of whole numbers, and of pointers to tensors.

    >>> [name for name, _ in fields("b l", "x y")]
    ['b', 'l', 'x', 'y']
    """
    whole, pointers = ctypes.c_int64, ctypes.c_void_p
    return [(name, whole) for name in numbers.split()] + [(name, pointers) for name in tensors.split()]
