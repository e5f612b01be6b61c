"""Weights files from elsewhere: safetensors, or PyTorch files without code in them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mambaad_cli import MambaADError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, which may lie under a key; `module.` is removed from their names.

    PyTorch files are loaded with weights_only=True: code in them is refused, not run.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MambaADError(f"no file {path}") from None
    except pickle.UnpicklingError as error:
        raise MambaADError(f"{path} holds more than tensors, or is no PyTorch file: refused") from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise MambaADError(f"cannot read weights from {path}, is it damaged? ({reason})") from error
    state = _unwrapped(loaded)
    if not state:
        raise MambaADError(f"no tensors in {path}: expected a state dict, or one under a key such as state_dict")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _unwrapped(loaded: Any) -> dict[str, Tensor]:
    """The largest dict of tensors in `loaded`: itself or under one of its keys."""
    if not isinstance(loaded, Mapping):
        return {}
    own = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    nested = [_unwrapped(value) for value in loaded.values() if isinstance(value, Mapping)]
    return max([own, *nested], key=len)
