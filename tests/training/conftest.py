"""A tiny training that takes a second."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RECIPES, Recipe, RunOptions
from tests.conftest import TINY, picture

VIEWS = 24  # 500 views of a few tiny images would take most of the tests' time
OPTIONS = {one.name for one in fields(RunOptions)}


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


@pytest.fixture
def run(goods: Path, weights: Path) -> Callable[..., FittedModel]:
    """Fit a tiny model on the two products, or on other `files`; three steps if not told otherwise."""

    def fitted(
        files: list[ImageFile] | None = None,
        letterbox: bool = False,
        drop_path: float = 0.0,
        two_looks: bool = False,
        on_step: Callable[..., None] = lambda *_: None,
        on_unreadable: Callable[[ImageError], None] = lambda error: None,
        **choices: Any,
    ) -> FittedModel:
        files = images.find([goods]) if files is None else files
        options = RunOptions(**{"encoder_weights": weights} | {k: v for k, v in choices.items() if k in OPTIONS})
        recipe = tiny_recipe(**{k: v for k, v in choices.items() if k not in OPTIONS})
        classes = [file.group or "part" for file in files]
        settings = tiny_settings(letterbox, drop_path)
        if two_looks:
            settings = replace(settings, size=(160, 160), detail=2.5, looks=2)
        return fit(files, classes, settings, recipe, options, Told(on_step, on_unreadable))

    return fitted


@pytest.fixture(scope="session")
def never_stopped(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedModel:
    """What the fixture `run` makes of the two products: where their folder lies must not matter."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, first in (("nut", 0), ("bolt", 100)):
        for i in range(6):
            images.write(folder / name / f"{i}.png", picture(first + i))
    files = images.find([folder])
    options = RunOptions(encoder_weights=weights)
    return fit(files, [file.group for file in files], tiny_settings(), tiny_recipe(), options)


def tensors(model: FittedModel) -> dict[str, Tensor]:
    known = {f"{name} {i}": one.whitening for name, scales in model.statistics.items() for i, one in enumerate(scales)}
    return {**model.detector.state_dict(), **model.encoder.state_dict(), **known}


def same(one: FittedModel, other: FittedModel) -> bool:
    a, b = tensors(one), tensors(other)
    assert list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a) and one.scores == other.scores


def stop_at(step: int) -> Callable[..., None]:
    """An `on_step` that is Ctrl-C at one step."""

    def on_step(at: int, *_: object) -> None:
        if at == step:
            raise KeyboardInterrupt

    return on_step
