"""One tiny model with everything in it, and its exported file, made once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.roi import MaskFolder, Wish
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.recipe import RECIPES, RunOptions
from tests.conftest import TINY, around, picture

WHOLE = Settings(
    "mambaad",
    "test_resnet",
    (64, 48),
    options=TINY | {"local_branches": False},
    detail=1.5,
    looks=2,
    far_weight=0.5,
    binomial=True,
    memory_sigma=2.5,
    local_contrast=0.4,
)
WHOLE_INPUT = (96, 64)  # height and width of the images that the close view takes


class Saved(NamedTuple):
    """A tiny fitted model, its file, and photos of its products."""

    record: ModelRecord
    path: Path
    photos: Path
    onnx: Path  # the exported file

    @property
    def model(self) -> FittedModel:
        return around(self.record)


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


Fit = Callable[..., ModelRecord]


@pytest.fixture(scope="session")
def tiny_fit(photos: Path, weights: Path) -> Fit:
    """Fit a tiny model on the photos: `tiny_fit(settings, evidence=…)`.

    inside, masks: what of the photos counts. only: the folder of one product alone. Other choices are of the recipe.
    """

    def fitted(
        settings: Settings,
        inside: tuple[Wish, ...] = (),
        masks: MaskFolder | None = None,
        only: str = "",
        **choices: Any,
    ) -> ModelRecord:
        files = images.find([photos / only])
        goods = GoodFiles(files, [file.group or only for file in files], inside, masks=masks)
        recipe = replace(RECIPES["small"], **({"views": 24, "epochs": 1, "batch": 8, "cut_paste": False} | choices))
        return fit(goods, settings, recipe, RunOptions(encoder_weights=weights))

    return fitted


@pytest.fixture(scope="session")
def masks(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> MaskFolder:
    """A mask for each photo of the product nut: a rectangle that moves."""
    folder = tmp_path_factory.mktemp("masks")
    for i, file in enumerate(images.find([photos / "nut"])):
        mask = np.zeros((90, 96, 3), np.uint8)
        mask[10 + 3 * i : 70, 15:80] = 255
        images.write(folder / file.path.name, mask)
    return MaskFolder(folder)


@pytest.fixture(scope="session")
def whole(tiny_fit: Fit, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Both witnesses, two products that are recognised, a detail size; exported without the gate."""
    needs("onnx", "onnxscript", "onnxruntime")
    from mambaad_cli.export.onnx_file import onnx_bytes

    folder = tmp_path_factory.mktemp("whole")
    record = tiny_fit(WHOLE, memory_size=700)
    store.save(record, folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(onnx_bytes(record, folder / "model.safetensors"))
    return Saved(record, folder / "model.safetensors", photos, folder / "model.onnx")


def scorer_of(record: ModelRecord, masks: MaskFolder | None = None) -> TorchScorer:
    """The record as it scores with the encoder that is exported."""
    return TorchScorer(record, masks=masks).expecting(None)
