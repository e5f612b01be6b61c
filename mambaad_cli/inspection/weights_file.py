"""Weights files from elsewhere: safetensors, or PyTorch files without code in them."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.files import shown


class _NumpyData:
    """Stands for a NumPy number or array: a training records its metrics with them. Nothing of NumPy itself is run."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# what numbers and arrays are pickled by, in NumPy 1 and 2
NUMPY_DATA = ("dtype", "ndarray", "core.multiarray.scalar", "core.multiarray._reconstruct", "core.numeric._frombuffer")
HARMLESS: list[Any] = [
    (_NumpyData, f"numpy.{name.replace('core', core)}") for name in NUMPY_DATA for core in ("core", "_core")
] + [(_NumpyData, "builtins.bytes")]  # what an empty array holds


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, which may lie under a key; `module.` is removed from their names.

    PyTorch files are loaded with weights_only=True: code in them is refused, not run. NumPy numbers and arrays, which
    the checkpoint of a training holds beside its weights, are passed over.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MambaADError(f"no file {shown(path)}") from None
    except pickle.UnpicklingError as error:
        raise MambaADError(_refusal(path, str(error))) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise MambaADError(f"cannot read weights from {shown(path)}, is it damaged? ({reason})") from error
    state = _unwrapped(loaded)
    if not state:
        raise MambaADError(f"no tensors in {shown(path)}: expected a state dict, or one under a key such as state_dict")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _refusal(path: Path, error: str) -> str:
    """Why a file is refused, and which to take instead.

    >>> print(_refusal(Path("ckpt.pth"), "Unsupported global: GLOBAL os.system was not an allowed global by default."))
    ckpt.pth holds more than tensors, os.system: refused, because loading it could run code; take the file that holds \
the weights alone (often net.pth or model.safetensors)
    """
    not_allowed = re.search(r"GLOBAL (\w[\w.]*\w)", error)
    if not_allowed is None:
        return f"{shown(path)} holds more than tensors, or is no PyTorch file: refused"
    return (
        f"{shown(path)} holds more than tensors, {not_allowed[1]}: refused, because loading it could run code; "
        "take the file that holds the weights alone (often net.pth or model.safetensors)"
    )


def _unwrapped(loaded: Any) -> dict[str, Tensor]:
    """The largest dict of tensors in `loaded`: itself or under one of its keys."""
    if not isinstance(loaded, Mapping):
        return {}
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    nested = [_unwrapped(value) for value in loaded.values() if isinstance(value, Mapping)]
    return max([tensors, *nested], key=len)
