"""One tiny model with everything in it, and its exported file, made once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mambaad_cli.data import images
from mambaad_cli.inspection import model_file
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.recipe import RECIPES, RunOptions
from tests.conftest import TINY, picture

WHOLE = Settings(
    "mambaad",
    "test_resnet",
    (96, 64),
    options=TINY | {"local_branches": False},
    detail=1.5,
    looks=2,
    far_weight=0.5,
    binomial=True,
    memory_sigma=2.5,
    local_contrast=0.4,
)


class Saved(NamedTuple):
    """A tiny fitted model, its file, and photos of its products."""

    model: FittedModel
    path: Path
    photos: Path
    onnx: Path  # the exported file


def needs(*packages: str) -> None:
    """Skip where an optional package is missing."""
    for package in packages:
        pytest.importorskip(package, reason=f"the extra `export` is not installed: {package} is missing")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products, the second in another aspect."""
    folder = tmp_path_factory.mktemp("photos")
    for name, first, width in (("nut", 0, 96), ("bolt", 100, 70)):
        for i in range(6):
            images.write(folder / name / f"{i}.png", picture(first + i, 90, width))
    return folder


@pytest.fixture(scope="session")
def tiny_fit(photos: Path, weights: Path) -> Callable[..., FittedModel]:
    """Fit a tiny model on the photos: `tiny_fit(settings, evidence=…)`."""

    def fitted(settings: Settings, **choices: Any) -> FittedModel:
        files = images.find([photos])
        recipe = replace(RECIPES["small"], **({"views": 24, "epochs": 1, "batch": 8, "cut_paste": False} | choices))
        return fit(files, [file.group for file in files], settings, recipe, RunOptions(encoder_weights=weights))

    return fitted


@pytest.fixture(scope="session")
def whole(tiny_fit: Callable[..., FittedModel], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Both witnesses, two products that are recognised, a detail size; exported without the gate."""
    needs("onnx", "onnxscript", "onnxruntime")
    from mambaad_cli.export.onnx_file import onnx_bytes

    folder = tmp_path_factory.mktemp("whole")
    model = tiny_fit(WHOLE, memory_size=700)
    model_file.save(model, folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(onnx_bytes(model, folder / "model.safetensors"))
    return Saved(model, folder / "model.safetensors", photos, folder / "model.onnx")
