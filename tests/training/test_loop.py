"""How long a training takes, and which images each step sees."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.training import fit as fit_module
from mambaad_cli.training import loop
from mambaad_cli.training.features import Features, Group, Seen
from mambaad_cli.training.loop import TrainingLoop, lr_factor, recompute_activations
from mambaad_cli.training.recipe import MOST_STEPS, Recipe, RunOptions
from tests.conftest import record_of
from tests.training.conftest import (
    same,
    tiny_recipe,
    tiny_settings,
)


def test_activations_computed_again_give_the_same_model(run: Callable[..., ModelRecord]) -> None:
    """DropPath has to draw the same numbers again."""
    assert same(run(checkpoint_activations=True, drop_path=0.5), run(drop_path=0.5))


def test_activations_that_are_computed_again_are_not_kept(tiny_model: FittedModel) -> None:
    network = record_of(tiny_model).network
    features = [torch.rand(2, c, 16 >> i, 16 >> i) for i, c in enumerate(network.encoder.channels)]

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            network.detector.train().loss(features)
        return sum(sizes)

    before = kept()
    recompute_activations(network.detector)
    assert kept() < before / 2


def test_with_folds_too_activations_are_not_kept(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputing: list[bool] = []
    real = TrainingLoop.train

    def train(self: TrainingLoop, *args: Any) -> None:
        parts = [module for module in self.detector.modules() if hasattr(module, "recompute")]
        recomputing.append(bool(parts) and all(part.recompute for part in parts))
        real(self, *args)

    monkeypatch.setattr(TrainingLoop, "train", train)
    run(folds=2, checkpoint_activations=True)
    assert recomputing == [True] * 3


def test_only_mambaad_can_compute_activations_again() -> None:
    with pytest.raises(MambaADError, match="--checkpoint-activations is for the detector mambaad"):
        recompute_activations(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("seconds", "steps"), [(60, 25), (17.9, 3), (1, 1)])
def test_a_given_time_holds_as_many_steps_as_fit_after_the_five_that_were_timed(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
) -> None:
    """A clock on which every step takes two seconds, and all else no time."""
    monkeypatch.setattr(fit_module, "limited", lambda recipe, *_: recipe)
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0))
    told: list[int] = []
    monkeypatch.setattr(TrainingLoop, "advance", fake_step)
    run(max_minutes=seconds / 60, on_step=lambda step, steps, loss, images: told.append(steps))
    assert told == [steps] * steps


def fake_step(self: TrainingLoop) -> float:
    self.step += 1
    return 1.0


def test_the_steps_that_were_timed_leave_no_trace(
    run: Callable[..., ModelRecord], never_stopped: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "limited", lambda recipe, *_: recipe)
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0))
    assert same(run(max_minutes=17 / 60), never_stopped)


def test_on_step_is_told_each_step_its_loss_and_its_images(run: Callable[..., ModelRecord]) -> None:
    told: list[tuple[int, int, float, int]] = []
    run(epochs=3, batch=4, on_step=lambda *facts: told.append(facts))
    assert [(step, steps, count) for step, steps, _, count in told] == [(i, 8, 4) for i in range(1, 9)]  # ⌈3 · 10 / 4⌉
    assert told[-1][2] < told[0][2]


def test_every_image_is_seen_equally_often_in_an_order_of_its_own_each_epoch(tiny_model: FittedModel) -> None:
    recipe = Recipe(steps=6, batch=4, lr=0.1, schedule="step", seed=3)
    detector = record_of(tiny_model).network.detector
    walk = TrainingLoop(detector, Features([], []), [2, 3, 5, 7, 11, 13], recipe, RunOptions())
    seen = torch.cat([walk.chosen(step) for step in range(6)]).view(4, 6).tolist()
    assert [sorted(epoch) for epoch in seen] == [[2, 3, 5, 7, 11, 13]] * 4
    assert len({tuple(epoch) for epoch in seen}) == 4
    assert walk.chosen(2).tolist() == seen[1][2:6]  # in whatever order it is asked


def test_sizes_take_turns_in_proportion_to_their_images_in_a_time_that_grows_with_the_steps(
    tiny_model: FittedModel,
) -> None:
    groups = [
        Group([torch.zeros(n, 1, 1, 1)], list(members), [1] * n) for n, members in ((6, range(6)), (3, range(6, 9)))
    ]
    recipe = Recipe(steps=6, batch=3, lr=0.1, schedule="step")
    detector = record_of(tiny_model).network.detector
    walk = TrainingLoop(detector, Features(groups, [Seen()] * 9), list(range(9)), recipe, RunOptions())
    sizes = ["small" if int(walk.chosen(step)[0]) < 6 else "large" for step in range(9)]
    assert (sizes.count("small"), sizes.count("large")) == (6, 3)
    assert sorted(torch.cat([walk.chosen(step) for step in range(3)]).tolist()) == list(range(9))

    def lines_run(step: int) -> int:
        fresh = TrainingLoop(detector, Features(groups, [Seen()] * 9), list(range(9)), recipe, RunOptions())
        ran = 0

        def trace(*_: object) -> Any:
            nonlocal ran
            ran += 1
            return trace

        sys.settrace(trace)
        try:
            fresh.chosen(step)
        finally:
            sys.settrace(None)
        return ran

    assert lines_run(800) < 5 * lines_run(200)  # quadratic: sixteen times as many


def test_the_paper_schedule_drops_to_a_tenth_at_four_fifths() -> None:
    assert [lr_factor("step", i / 10) for i in range(10)] == [1.0] * 8 + [0.1] * 2


def test_the_short_schedule_warms_up_and_then_falls_to_nothing() -> None:
    factors = [lr_factor("cosine", i / 100) for i in range(101)]
    assert factors[0] == 0
    assert factors[10] == max(factors) == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_a_training_that_diverges_says_so_and_gives_no_model(run: Callable[..., ModelRecord]) -> None:
    with pytest.raises(MambaADError, match="--lr"):
        run(lr=1e9)


def test_a_detector_starts_afresh_from_the_seed_alone(weights: Path) -> None:
    settings = tiny_settings()
    torch.manual_seed(5)
    one = new_network(settings).detector.state_dict()
    torch.manual_seed(5)
    other = new_network(settings).detector.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_images_take_more_steps() -> None:
    recipe = tiny_recipe(epochs=None, steps=300, steps_per_image=1.5)
    assert [recipe.steps_for(n, 8) for n in (10, 100, 10**6)] == [315, 450, MOST_STEPS]
    assert replace(recipe, steps_per_image=0.0).steps_for(100, 8) == 300
    assert replace(recipe, epochs=3).steps_for(10, 4) == 8  # ⌈3 · 10 / 4⌉


class Read:
    """A loss on a device that notes when it is read."""

    def __init__(self, value: float, step: int, read: list[int]) -> None:
        self.value, self.step, self.read = value, step, read

    def __float__(self) -> float:
        self.read.append(self.step)
        return self.value


def losses_read(
    model: FittedModel, monkeypatch: pytest.MonkeyPatch, device: str, losses: dict[int, float] | None = None
) -> tuple[list[int], list[float], str]:
    """Of 25 steps that a device is told to run: those whose loss is read, the losses that are told, the error."""
    read: list[int] = []
    told: list[float] = []

    def advance(self: TrainingLoop) -> Read:
        self.step += 1
        return Read((losses or {}).get(self.step, float(self.step)), self.step, read)

    monkeypatch.setattr(TrainingLoop, "advance", advance)
    recipe, detector = Recipe(steps=25, batch=3, lr=0.1, schedule="step"), record_of(model).network.detector
    walk = TrainingLoop(detector, Features([], []), [0, 1, 2], recipe, RunOptions(device=device))
    try:
        walk.train(lambda step, steps, loss, images: told.append(loss))
    except MambaADError as error:
        return read, told, str(error)
    return read, told, ""


def test_a_gpu_is_not_waited_for_at_each_step(tiny_model: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert losses_read(tiny_model, monkeypatch, "cpu")[0] == list(range(1, 26))
    read, told, _ = losses_read(tiny_model, monkeypatch, "cuda")
    assert read == [1, 10, 20, 25]
    assert told == [1.0] * 9 + [10.0] * 10 + [20.0] * 5 + [25.0]


@pytest.mark.parametrize(("device", "step"), [("cpu", 3), ("cuda", 10)])
def test_a_training_that_diverged_ends_when_its_loss_is_read(
    device: str, step: int, tiny_model: FittedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dict.fromkeys(range(3, 26), float("nan"))
    _, told, error = losses_read(tiny_model, monkeypatch, device, lost)
    assert error == f"the training diverged at step {step}: choose a lower --lr"
    assert len(told) == step - 1
