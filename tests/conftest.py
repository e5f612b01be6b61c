"""What several tests need: tiny networks, tiny models, little folders of images."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mambaad_cli.data import images
from mambaad_cli.files import shown
from mambaad_cli.inspection.fitted_model import FittedModel, new_model
from mambaad_cli.model.encoder import build_encoder
from mambaad_cli.model.settings import Settings

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parent / "golden"
TINY = {"depths": (1, 1, 1, 1), "directions": 2, "drop_path": 0.0}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden() -> Path:
    """The folder of stored numbers."""
    return GOLDEN


@pytest.fixture
def cookies() -> Path:
    """Real photos: good/ to learn from, incoming/ to score, masks/."""
    return DATA / "cookie"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for pretrained weights of timm's test_resnet."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture
def tiny_model() -> FittedModel:
    """An untrained model of 0.1 M parameters on 64 × 64 pixels, calibrated by hand: thresholds 3 (nut) and 4 (bolt)."""
    settings = Settings(encoder="test_resnet", size=(64, 64), options=dict(TINY))
    model = new_model(settings, build_encoder("test_resnet", (4, 8, 16)))
    model.detector.eval()
    model.scores = {"nut": [1.0, 2.0, 3.0], "bolt": [2.0, 4.0]}
    model.held_out = {"nut", "bolt"}
    model.trained_on = {"nut": 9, "bolt": 8}
    return model


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that an ordinary user can enter, who is the one running the test: root may do everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    shown("\n")  # loads its codec, which an ordinary user may not be able to
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for path in [*folder.rglob("*")]:
        path.chmod(0o777)
    shutil.rmtree(folder)


def picture(seed: int = 0, height: int = 80, width: int = 96) -> np.ndarray:
    """A smooth coloured pattern, uint8 RGB, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(4, 12) + y / rng.uniform(4, 12) + rng.uniform(0, 6)) for _ in range(3)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture
def goods(tmp_path: Path) -> Path:
    """A folder of two products with six good images each."""
    for name, first in (("nut", 0), ("bolt", 100)):
        for i in range(6):
            images.write(tmp_path / "goods" / name / f"{i}.png", picture(first + i))
    return tmp_path / "goods"
