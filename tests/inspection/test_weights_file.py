"""Weights from elsewhere: what a training saves beside them is passed over, code is refused by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.inspection.weights_file import read_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}


def checkpoint(**record: Any) -> dict[str, Any]:
    """In the form of a training's file."""
    optimiser = {"state": {}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
    return {"net": WEIGHTS, "optimizer": optimiser, "scaler": None, "iter": 1130, "record": record}


@pytest.mark.parametrize(
    "value",
    [
        *(np.float64(90.5), np.float32(0.5), np.int64(80), np.uint8(3), np.bool_(True), np.complex128(1j)),
        *(np.str_("bottle"), np.datetime64("2026-01-01")),
        *(np.arange(6.0).reshape(2, 3), np.array([], np.float32), np.asfortranarray(np.eye(3))),
        [np.float64(1.0), {"x": np.int32(2)}],
    ],
    ids=repr,
)
@pytest.mark.parametrize("numpy_1", [False, True])
def test_numpy_numbers_and_arrays_beside_the_weights_are_data(tmp_path: Path, value: Any, numpy_1: bool) -> None:
    path = tmp_path / "ckpt.pth"
    torch.save(checkpoint(metric=value), path, _use_new_zipfile_serialization=not numpy_1)
    if numpy_1:  # which called the module numpy.core; the older file format has no checksum in the way
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    state = read_state_dict(path)
    assert list(state) == list(WEIGHTS)
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, ("ckpt.pth", "run")


@pytest.mark.parametrize("value", [RunsCode(), np.array([RunsCode()], object)])
def test_code_beside_numpy_numbers_is_refused_by_name_with_the_file_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(metric=np.float64(1), other=value), "ckpt.pth")
    with pytest.raises(MambaADError) as caught:
        read_state_dict(Path("ckpt.pth"))
    assert str(caught.value) == (
        "ckpt.pth holds more than tensors, shutil.copyfile: refused, because loading it could run code; "
        "take the file that holds the weights alone (often net.pth or model.safetensors)"
    )
    assert not Path("run").exists()


def test_an_object_of_a_training_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(checkpoint(path=Path("runs/1")), tmp_path / "ckpt.pth")
    with pytest.raises(MambaADError, match=r"ckpt\.pth holds more than tensors, pathlib\.\w+: refused.*net\.pth"):
        read_state_dict(tmp_path / "ckpt.pth")


def test_reading_a_checkpoint_leaves_torch_as_strict_as_it_was(tmp_path: Path) -> None:
    torch.save(checkpoint(metric=np.float64(1)), tmp_path / "ckpt.pth")
    before = set(torch.serialization.get_safe_globals())
    read_state_dict(tmp_path / "ckpt.pth")
    assert set(torch.serialization.get_safe_globals()) == before
