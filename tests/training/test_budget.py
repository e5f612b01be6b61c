"""Minutes are those of the whole fit."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.training import budget, loop, trial
from mambaad_cli.training import fit as fit_module
from mambaad_cli.training.budget import limited, tile_passes
from mambaad_cli.training.features import Features, Seen
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.loop import TrainingLoop
from mambaad_cli.training.recipe import RECIPES
from tests.conftest import record_of, with_settings
from tests.training.conftest import goods_of, job_of


def test_without_minutes_nothing_changes() -> None:
    assert limited(RECIPES["small"], 500, 1, 1000.0) == RECIPES["small"]


def test_many_products_and_folds_leave_less_time_for_training() -> None:
    recipe = replace(RECIPES["small"], max_minutes=10.0)
    one, eight = (limited(recipe, 1000, classes, 30.0).max_minutes for classes in (1, 8))
    folds = limited(replace(recipe, folds=4), 1000, 1, 30.0).max_minutes
    assert one == pytest.approx(10 - (30 + 12) / 60, abs=1e-3)
    assert eight == pytest.approx(10 - (30 + 96) / 60, abs=1e-3)
    assert folds is not None
    assert one is not None
    assert folds < one


def test_tiles_that_follow_leave_less_time_for_training(tiny_model: FittedModel) -> None:
    recipe = replace(RECIPES["small"], max_minutes=10.0)
    model = with_settings(tiny_model, tiles=(128, 128))
    job = job_of(record_of(model), goods_of([]))
    photos = [replace(product, photo_shape=(2000, 8000)) for product in job.products.values()]
    job = replace(job, products={product.name: product for product in photos})
    good = GoodImages(Features([], [Seen()] * 40), ["nut"] * 40, list(range(40)), [], lambda i: None)
    passes = tile_passes(job, good)
    assert passes > 4 * 40 * 2000 * 8000 / (64 * 64)  # 40 photos, each of whose tiles overlap, in units of one 64 × 64
    plain, tiled = (limited(recipe, 1000, 1, 30.0, more).max_minutes or 0.0 for more in (0.0, 1000.0))
    assert plain - tiled == pytest.approx(1000 * 30 / 1000 / 60, abs=1e-3)
    assert tile_passes(job_of(record_of(tiny_model), goods_of([])), good) == 0


STEP_SECONDS = 10


class Clock:
    """A clock that goes on only where a network works: by a second for each image, and by more for each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._tick(monkeypatch, Network, "far_features", lambda stages: len(stages[0]))
        self._tick(monkeypatch, Network, "residuals", lambda scales: len(scales[0].difference))
        self._tick(monkeypatch, TrainingLoop, "advance", lambda _: STEP_SECONDS)
        for module in (fit_module, loop):
            clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
            monkeypatch.setattr(module, "time", clock)

    def _tick(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: Callable[[Any], float]) -> None:
        real = getattr(owner, name)

        def working(*args: Any) -> Any:
            result = real(*args)
            self.now += seconds(result)
            return result

        monkeypatch.setattr(owner, name, working)


@pytest.mark.parametrize("choices", [{}, {"folds": 2}])
def test_the_minutes_of_a_fit_are_those_of_all_its_work(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    monkeypatch.setattr(trial, "MAX_DEFECTS", 5)
    monkeypatch.setattr(budget, "DESCRIBED", 20)  # images of a product are 6 here, and as many nudged views
    clock = Clock(monkeypatch)
    model = run(evidence="both", memory_size=60, turns=False, epochs=None, max_minutes=6.0, **choices)
    assert model.recipe["evidence"] == "both"
    assert 0.5 * 360 < clock.now <= 360


def test_a_decoder_that_has_no_memory_beside_it_is_trained_all_the_same() -> None:
    recipe = replace(RECIPES["small"], evidence="decoder", max_minutes=0.1)
    assert limited(recipe, 1000, 1, 30.0) == replace(recipe, max_minutes=0.0)
    assert limited(replace(recipe, evidence="both"), 1000, 1, 30.0).evidence == "memory"
    assert limited(replace(recipe, evidence="both", folds=4), 1000, 1, 30.0).evidence == "both"
