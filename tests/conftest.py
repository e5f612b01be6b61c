"""What several tests need: tiny networks, tiny models, little folders of images."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, one thread each; torch reads it at its import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.files import shown
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network, new_network
from mambaad_cli.inspection.product import Calibration, Product
from mambaad_cli.inspection.torch_scorer import TorchScorer
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


def tiny_network(**settings: Any) -> Network:
    """An untrained network of 0.1 M parameters on 64 × 64 pixels. settings: fields of Settings."""
    chosen = Settings(**{"encoder": "test_resnet", "size": (64, 64), "options": dict(TINY)} | settings)
    network = new_network(chosen)
    network.detector.eval()
    return network


def calibrated(product: Product, scores: Sequence[float], **measured: Any) -> Product:
    """The product with these scores of good images. measured: other fields of its Calibration."""
    return replace(product, calibration=Calibration(product.conditions(), tuple(scores), **measured))


def around(record: ModelRecord, **choices: Any) -> FittedModel:
    """A record as programs use it. choices: fields of TorchScorer."""
    scorer = TorchScorer(record, **choices)
    return FittedModel(scorer, scorer)


def record_of(model: FittedModel) -> ModelRecord:
    assert model.fitted is not None
    return model.fitted.record


def with_products(model: FittedModel, *products: Product) -> FittedModel:
    """The model with these products instead of its own."""
    return around(replace(record_of(model), products={product.name: product for product in products}))


def with_scores(model: FittedModel, scores: Mapping[str, Sequence[float]], **measured: Any) -> FittedModel:
    """The model calibrated by these scores of good images by product; products that are not named are uncalibrated.

    A product that the model does not know yet is added. measured: other fields of each Calibration.
    """
    record = record_of(model)
    products = {name: replace(product, calibration=None) for name, product in record.products.items()}
    for name, product_scores in scores.items():
        product = products.get(name) or Product(name, record.network.settings.size)
        products[name] = calibrated(product, product_scores, **measured)
    return with_products(model, *products.values())


def with_settings(model: FittedModel, **settings: Any) -> FittedModel:
    """The model whose network has other settings."""
    record = record_of(model)
    network = replace(record.network, settings=replace(record.network.settings, **settings))
    return around(replace(record, network=network))


@pytest.fixture
def tiny_model() -> FittedModel:
    """An untrained model of 0.1 M parameters on 64 × 64 pixels, calibrated by hand: thresholds 3 (nut) and 4 (bolt)."""
    nut = calibrated(Product("nut", (64, 64), images=9), [1.0, 2.0, 3.0])
    bolt = calibrated(Product("bolt", (64, 64), images=8), [2.0, 4.0])
    return around(ModelRecord(tiny_network(), {"nut": nut, "bolt": bolt}))


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
