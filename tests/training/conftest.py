"""A tiny training that takes a second."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.roi import MaskFolder, parse
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Calibration
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.job import Job, planned_products
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RECIPES, Recipe, RunOptions
from tests.conftest import TINY, picture

VIEWS = 24  # 500 views of a few tiny images would take most of the tests' time
OPTIONS = {option.name for option in fields(RunOptions)}
REGIONS = {"inside", "ignored", "masks"}


class Told(Progress):
    """Hands what it is told on to functions."""

    def __init__(
        self,
        on_step: Callable[..., None] = lambda *_: None,
        on_unreadable: Callable[[ImageError], None] = lambda error: None,
    ) -> None:
        self.on_step, self.on_unreadable = on_step, on_unreadable

    def unreadable(self, error: ImageError) -> None:
        self.on_unreadable(error)

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        self.on_step(step, steps, loss, images)


def tiny_settings(letterbox: bool = False, drop_path: float = 0.0) -> Settings:
    return Settings("mambaad", "test_resnet", (64, 64), letterbox, TINY | {"drop_path": drop_path})


def tiny_recipe(**choices: Any) -> Recipe:
    return replace(RECIPES["small"], **({"views": VIEWS, "epochs": 2, "batch": 8, "evidence": "decoder"} | choices))


def goods_of(files: Sequence[ImageFile], names: Sequence[str] = (), **regions: Any) -> GoodFiles:
    """Files with the product of each: `names`, or that of its folder. regions: other fields of GoodFiles."""
    return GoodFiles(files, list(names) or [file.group or "part" for file in files], **regions)


def judged(record: ModelRecord, files: Sequence[ImageFile], masks: MaskFolder | None = None) -> list[Prediction]:
    """Files as `score` judges them."""
    return list(predict(TorchScorer(record, masks=masks), files, PredictOptions()))


def calibration_of(record: ModelRecord, name: str) -> Calibration:
    """The calibration of a product that has one."""
    calibration = record.products[name].calibration
    assert calibration is not None
    return calibration


def scores_of(record: ModelRecord) -> dict[str, list[float]]:
    """The scores of good images behind each threshold."""
    return {name: list(product.scores) for name, product in record.products.items() if product.calibration is not None}


def promising(record: ModelRecord) -> set[str]:
    """The products whose thresholds promise something for new images."""
    return {name for name, product in record.products.items() if product.promising}


def learnt_from(record: ModelRecord) -> dict[str, int]:
    """How many images each product was learnt from."""
    return {name: product.images for name, product in record.products.items()}


def job_of(record: ModelRecord, goods: GoodFiles, recipe: Recipe | None = None, **run: Any) -> Job:
    """A training on these images by a network that is there."""
    products = planned_products(goods, record.network.settings, record.products)
    return Job(record.network, products, recipe or tiny_recipe(), RunOptions(**run), Progress(), goods.masks)


@pytest.fixture
def run(goods: Path, weights: Path) -> Callable[..., ModelRecord]:
    """Fit a tiny model on the two products, or on other `files`; three steps if not told otherwise.

    Keyword arguments are fields of GoodFiles, RunOptions and Recipe.
    """

    def fitted(
        files: list[ImageFile] | None = None,
        letterbox: bool = False,
        drop_path: float = 0.0,
        two_looks: bool = False,
        on_step: Callable[..., None] = lambda *_: None,
        on_unreadable: Callable[[ImageError], None] = lambda error: None,
        **choices: Any,
    ) -> ModelRecord:
        files = images.find([goods]) if files is None else files
        chosen = {name: value for name, value in choices.items() if name in OPTIONS}
        options = RunOptions(**{"encoder_weights": weights} | chosen)
        recipe = tiny_recipe(**{k: v for k, v in choices.items() if k not in OPTIONS | REGIONS})
        settings = tiny_settings(letterbox, drop_path)
        if two_looks:
            settings = replace(settings, detail=2.5, looks=2)
        regions = {k: v for k, v in choices.items() if k in REGIONS}
        return fit(goods_of(files, **regions), settings, recipe, options, Told(on_step, on_unreadable))

    return fitted


@pytest.fixture(scope="session")
def never_stopped(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """What the fixture `run` makes of the two products: where their folder lies must not matter."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, first in (("nut", 0), ("bolt", 100)):
        for i in range(6):
            images.write(folder / name / f"{i}.png", picture(first + i))
    goods = goods_of(images.find([folder]))
    return fit(goods, tiny_settings(), tiny_recipe(), RunOptions(encoder_weights=weights))


def tensors(record: ModelRecord) -> dict[str, Tensor]:
    known = {
        f"{name} {i}": scale.whitening
        for name, product in record.products.items()
        for i, scale in enumerate(product.learnt.statistics)
    }
    return {**record.network.detector.state_dict(), **record.network.encoder.state_dict(), **known}


def same(record: ModelRecord, other: ModelRecord) -> bool:
    a, b = tensors(record), tensors(other)
    assert list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a) and scores_of(record) == scores_of(other)


def stop_at(step: int) -> Callable[..., None]:
    """An `on_step` that is Ctrl-C at one step."""

    def on_step(at: int, *_: object) -> None:
        if at == step:
            raise KeyboardInterrupt

    return on_step


def counted(counting: str, goods: Path) -> dict[str, Any]:
    """The fields of GoodFiles for what counts of photos of 80 × 96 pixels."""
    if counting == "region":
        return {"inside": (parse("20%,25%,50%,50%"),)}
    if counting == "all":
        return {}
    folder = goods.parent / "masks"
    for number, file in enumerate(images.find([goods])):
        mask = np.zeros((80, 96, 3), np.uint8)
        mask[10 + number : 50 + number, 20:70] = 255
        images.write(folder / file.relative, mask)
    for path in folder.glob("bolt/*.png"):  # one mask for each stem
        path.unlink()
    return {"masks": MaskFolder(folder)}


def nuts_again(goods: Path) -> GoodFiles:
    """More images of a product."""
    for i in range(6):
        images.write(goods.parent / "more" / "nut" / f"{i}.png", picture(20 + i))
    return goods_of(images.find([goods.parent / "more"]))
