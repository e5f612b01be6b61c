"""What is asked for is checked before an image is read, and the same for the command and the API."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.training import fit as training
from mambaad_cli.training.fit import fit, fit_request
from mambaad_cli.training.recipe import RECIPES, check, preset
from mambaad_cli.training.request import FitRequest
from tests.training.conftest import goods_of

NOWHERE = Path("no/such/folder")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"preset": "paper", "evidence": "both"}, "--evidence both needs the distances of the preset small"),
        ({"preset": "rd4ad", "evidence": "both"}, "--evidence both needs the distances"),
        ({"preset": "memory", "evidence": "both"}, "--detector memory has no decoder: leave out --evidence both"),
        ({"preset": "memory", "evidence": "decoder"}, "--detector memory has no decoder"),
        ({"evidence": "memmory"}, "no evidence 'memmory': choose decoder, memory, both"),
        ({"folds": 1}, "1 folds: expected 0, or 2 or more"),
        ({"folds": 3, "evidence": "memory"}, "--folds has no effect with --evidence memory"),
        ({"folds": 3, "tile_size": (384, 384)}, "--folds and --tiles do not go together"),
        ({"batch": 0}, "at least one image per batch"),
        ({"lr": 0.0}, "a learning rate above 0"),
        ({"epochs": 0}, "0 epochs: expected 1 or more"),
        ({"max_minutes": 0.0}, "0 minutes: expected more than 0"),
        ({"max_false_reject": 3.0}, "max_false_reject is 3: expected a share between 0 and 1"),
        ({"drop_suspects": -1}, "drop_suspects is -1"),
        ({"drop_suspects": "all"}, "drop_suspects is 'all'"),
    ],
)
def test_choices_that_do_not_go_together_are_one_line_before_an_image_is_read(
    choices: dict[str, Any], message: str
) -> None:
    request = FitRequest(NOWHERE, **choices)
    with pytest.raises(MambaADError, match=message) as asked:
        fit_request(request)
    assert "\n" not in str(asked.value)
    with pytest.raises(MambaADError, match=message):  # a program that calls `fit` itself is told the same
        fit(goods_of([ImageFile(NOWHERE / "1.png", Path("1.png"), "nut")]), request.settings(), request.recipe())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"letterbox": True, "pixels": 512}, "--pixels: not with --letterbox"),
        ({"letterbox": True, "detail": 2.0}, "--detail: not with --letterbox"),
        ({"size": (256, 256), "pixels": 512, "detail": 2.0}, "--pixels, --detail: not with --res"),
        ({"preset": "fast", "scan": "zorder"}, "--scan: only for the Mamba decoder, and fast has none"),
        ({"preset": "uniad", "scan": "zorder"}, "--scan: only for the Mamba decoder, and uniad has none"),
        ({"preset": "rd4ad", "directions": 4}, "--directions: only for the Mamba decoder, and rd4ad has none"),
        (
            {"preset": "memory", "local_branches": False},
            "--local-branches: only for the Mamba decoder, and memory has none",
        ),
        ({"evidence": "decoder", "detail": 2.0}, "--detail is for the memory: it has no effect"),
        ({"scale": 0.5}, "--scale is for --tiles"),
        ({"tile_size": (64, 384)}, "tiles need at least 128 pixels a side"),
        ({"tile_size": (384, 384), "scale": 0.0}, "--scale 0: expected a factor above 0"),
        ({"pixels": 16}, "--pixels 16: expected at least 64"),
        ({"detail": 0.5}, "--detail 0.5: expected a factor of 1 to 4"),
        ({"epochs": 3, "max_minutes": 2.0}, "--epochs and --max-minutes both limit the training"),
        ({"evidence": "memory", "epochs": 3, "lr": 0.1}, "--epochs, --lr: no effect on a memory alone"),
    ],
)
def test_a_choice_that_would_be_ignored_is_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(MambaADError, match=message):
        FitRequest(NOWHERE, **choices).check()


def test_a_memory_alone_may_be_given_minutes() -> None:
    """They are an upper limit, which a fit without training keeps."""
    FitRequest(NOWHERE, preset="memory", max_minutes=2.0).check()


@pytest.mark.parametrize("name", ["small", "paper", "memory", "rd4ad", "uniad"])
def test_each_preset_goes_together_as_it_is(name: Any) -> None:
    FitRequest(NOWHERE, preset=name).check()
    check(*preset(name))
    assert FitRequest(NOWHERE, preset=name).settings() == preset(name)[0]
    assert FitRequest(NOWHERE, preset=name).recipe() == preset(name)[1]


def test_folds_under_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MambaADError, match="--folds runs in one process: leave out torchrun"):
        FitRequest(NOWHERE, folds=3).check()


def test_letterboxes_and_one_size_have_no_close_view() -> None:
    assert FitRequest(NOWHERE).settings().detail == 2.5
    one_size = FitRequest(NOWHERE, size=(320, 192)).settings()
    assert (one_size.size, one_size.detail, one_size.own_aspect) == ((320, 192), 1.0, False)
    assert FitRequest(NOWHERE, letterbox=True).settings().detail == 1.0
    assert FitRequest(NOWHERE, pixels=512).settings().size == (512, 512)


def test_what_is_chosen_is_obeyed() -> None:
    request = FitRequest(
        NOWHERE, scan="zorder", directions=4, evidence="decoder", folds=3, epochs=7, batch=2, lr=0.5, seed=3,
        drop_suspects="auto", flips=True, keep_examples=False, max_false_reject=0.1,
        recipe_choices={"dropout": 0.0},
    )  # fmt: skip
    settings, recipe = request.settings(), request.recipe()
    assert {"order": "zorder", "directions": 4}.items() <= settings.options.items()
    expected = replace(
        RECIPES["small"].showing("decoder"), folds=3, epochs=7, batch=2, lr=0.5, seed=3, drop_suspects="auto",
        flips=True, keep_examples=False, max_false_reject=0.1, dropout=0.0,
    )  # fmt: skip
    assert recipe == expected
    adding = request.recipe_for_adding(RECIPES["small"])
    assert (adding.lr, adding.epochs, adding.folds, adding.flips) == (0.5, 7, 0, True)
    assert FitRequest(NOWHERE).recipe_for_adding(replace(RECIPES["small"], flips=True)).flips  # as the model was fitted


def test_the_api_asks_for_what_the_command_asks_for(monkeypatch: pytest.MonkeyPatch, tiny_record: ModelRecord) -> None:
    asked: list[FitRequest] = []
    monkeypatch.setattr(training, "fit_request", lambda request, progress: asked.append(request) or tiny_record)
    mambaad_cli.fit(NOWHERE, pixels=512, detail=2.0, tile_size=(384, 384), scale=0.5, folds=0, views=7, device="cpu")
    same = FitRequest(
        NOWHERE, pixels=512, detail=2.0, tile_size=(384, 384), scale=0.5, device="cpu", recipe_choices={"views": 7}
    )
    assert asked == [same]
    assert (asked[0].settings(), asked[0].recipe()) == (same.settings(), same.recipe())
    with pytest.raises(MambaADError, match="fit has no choice tiles: choose from"):
        mambaad_cli.fit(NOWHERE, tiles=True)


def test_an_api_choice_that_the_command_would_refuse_is_refused() -> None:
    with pytest.raises(MambaADError, match="--letterbox, which gives all products one size"):
        mambaad_cli.fit(NOWHERE, letterbox=True, detail=2.0)
    with pytest.raises(MambaADError, match="max_false_reject is 3"):
        mambaad_cli.fit(NOWHERE, max_false_reject=3)


@pytest.fixture
def tiny_record() -> ModelRecord:
    from tests.conftest import tiny_network

    return ModelRecord(tiny_network())
