import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.inspection.fitted_model import FittedModel, new_model
from mambaad_cli.inspection.predict import PredictOptions, predict, verdict_of
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model.anomaly_map import Residual
from mambaad_cli.training import describe, loop
from mambaad_cli.training import fit as fit_module
from mambaad_cli.training.examples import EXAMPLES, examples_to_keep, pixels_of
from mambaad_cli.training.features import Features, Group, Views, features_of_files
from mambaad_cli.training.fit import add
from mambaad_cli.training.loop import TrainingLoop, lr_factor, recompute_activations
from mambaad_cli.training.memories import Compared, Remembered
from mambaad_cli.training.recipe import MOST_STEPS, RECIPES, Recipe, RunOptions, recipe_of
from mambaad_cli.training.splits import folds_of, split
from tests.conftest import picture
from tests.training.conftest import Told, same, stop_at, tiny_recipe, tiny_settings

# ---- which images ----


@examples(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 9))
def test_of_each_class_with_five_images_or_more_a_fifth_is_held_out(classes: list[str], seed: int) -> None:
    train, held_out = split(classes, seed)
    assert sorted(train + held_out) == list(range(len(classes)))
    for name in set(classes):
        assert sum(classes[i] == name for i in held_out) == classes.count(name) // 5
    assert split(classes, seed) == (train, held_out)


def test_other_seeds_hold_out_other_images() -> None:
    assert len({tuple(split(["a"] * 50, seed)[1]) for seed in range(5)}) > 1


def test_what_was_learnt_from_and_held_out_is_counted_by_class(run: Callable[..., FittedModel]) -> None:
    model = run()
    assert model.trained_on == {"bolt": 5, "nut": 5}
    assert {name: len(scores) for name, scores in model.scores.items()} == {"bolt": 1, "nut": 1}
    assert model.held_out == {"bolt", "nut"}


def test_three_images_are_enough_and_set_a_threshold_without_holding_any_out(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model = run(images.find([goods / "nut"])[:3])
    assert model.trained_on == {"part": 3}
    assert (len(model.scores["part"]), model.held_out) == (3, set())
    assert model.threshold("part") == max(model.scores["part"])


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_images_are_refused(run: Callable[..., FittedModel], goods: Path, count: int) -> None:
    with pytest.raises(MambaADError, match=f"^{count} readable images: at least 3"):
        run(images.find([goods / "nut"])[:count])


def test_unreadable_images_are_told_and_leave_no_trace_in_the_model(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    """Of 6 images there are 4 views each, of 8 there would be 3."""
    clean = run(images.find([goods / "nut"]))
    for name in ("0_broken.png", "3_broken.png"):
        (goods / "nut" / name).write_text("text")
    told: list[str] = []
    model = run(images.find([goods / "nut"]), on_unreadable=lambda error: told.append(error.path.name))
    assert told == ["0_broken.png", "3_broken.png"]
    assert same(model, clean)


def test_only_unreadable_images_are_too_few(run: Callable[..., FittedModel], goods: Path) -> None:
    for path in goods.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(MambaADError, match=r"^0 readable images"):
        run()


# ---- the same model again ----


def test_the_same_seed_gives_the_same_model_to_the_bit_and_another_seed_another(
    run: Callable[..., FittedModel],
) -> None:
    first = run(seed=1)
    torch.rand(3)  # whatever was drawn in between
    assert same(run(seed=1), first)
    assert not same(run(seed=2), first)


def test_features_kept_in_a_file_give_the_same_model(
    run: Callable[..., FittedModel], never_stopped: FittedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert same(run(cache_memory=0), never_stopped)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_features_of_half_the_size_give_nearly_the_same_training(run: Callable[..., FittedModel]) -> None:
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for dtype, found in losses.items():
        run(cache_dtype=dtype, dropout=0.0, on_step=lambda step, steps, loss, images, found=found: found.append(loss))
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


def test_a_temporary_folder_that_is_too_small_is_said_before_training(
    run: Callable[..., FittedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(MambaADError, match=r"GB free: set TMPDIR to a larger disk, or give --cache-dtype bf16"):
        run(cache_memory=0)


def test_activations_computed_again_give_the_same_model(run: Callable[..., FittedModel]) -> None:
    """DropPath has to draw the same numbers again."""
    assert same(run(checkpoint_activations=True, drop_path=0.5), run(drop_path=0.5))


def test_activations_that_are_computed_again_are_not_kept(tiny_model: FittedModel) -> None:
    features = [torch.rand(2, c, 16 >> i, 16 >> i) for i, c in enumerate(tiny_model.encoder.channels)]

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            tiny_model.detector.train().loss(features)
        return sum(sizes)

    before = kept()
    recompute_activations(tiny_model.detector)
    assert kept() < before / 2


def test_only_mambaad_can_compute_activations_again() -> None:
    with pytest.raises(MambaADError, match="--checkpoint-activations is for the detector mambaad"):
        recompute_activations(torch.nn.Linear(1, 1))


def test_training_in_bf16_differs_from_fp32_but_little(run: Callable[..., FittedModel]) -> None:
    exact: list[float] = []
    rounded: list[float] = []
    run(on_step=lambda step, steps, loss, images: exact.append(loss))
    run(precision="bf16", on_step=lambda step, steps, loss, images: rounded.append(loss))
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact


def test_the_encoder_stays_as_it_came(run: Callable[..., FittedModel], weights: Path) -> None:
    given = {name.replace(".", "_"): tensor for name, tensor in read_state_dict(weights).items()}
    net = run().encoder.net.state_dict()
    assert net
    assert all(torch.equal(tensor, given[name.replace(".", "_")]) for name, tensor in net.items())


def test_features_are_those_of_the_encoder_in_the_order_of_the_images(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model = run(epochs=1)
    (goods / "bolt" / "3.png").write_text("text")
    files = images.find([goods])
    features, readable = features_of_files(model, files, [file.group for file in files], RunOptions())
    assert readable == [0, 1, 2, *range(4, 12)]
    pixels = torch.stack([images.resize(images.read(files[i].path), (64, 64)) for i in readable])
    with torch.inference_mode():
        expected = model.encoder(pixels)
    for stage, found in zip(expected, features[torch.arange(11)], strict=True):
        assert torch.allclose(stage, found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize(
    ("evidence", "two_looks"),
    [("decoder", False), ("memory", False), ("memory", True), ("both", False), ("both", True)],
)
def test_the_scores_behind_the_threshold_are_those_that_score_gives(
    run: Callable[..., FittedModel],
    goods: Path,
    letterbox: bool,
    evidence: str,
    two_looks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the image's own patches, which are left out of the memory behind the threshold."""
    monkeypatch.setattr(Remembered, "without", lambda remembered, *_: remembered.memory)
    monkeypatch.setattr(Compared, "expected_without", lambda compared, _: compared.expected)
    monkeypatch.setattr(describe, "FEW", 0)
    model = run(letterbox=letterbox, evidence=evidence, two_looks=two_looks)
    scored = [(one.class_name, one.score) for one in predict(model, images.find([goods]))]
    for name, scores in model.scores.items():
        assert len(scores) == (1 if evidence == "decoder" else 6)
        for score in scores:
            same = [found for found_name, found in scored if found_name == name and found == pytest.approx(score, 1e-5)]
            assert len(same) == 1


def test_padding_does_not_set_the_threshold(
    run: Callable[..., FittedModel], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 80 × 96 pixels fill rows 5 … 57 of 64."""
    padded = torch.full((64, 64), 9.0)
    padded[5:58] = 1.0
    monkeypatch.setattr(FittedModel, "maps_of", lambda self, features, *_: padded.expand(len(features[0]), -1, -1))
    assert run(letterbox=True, epochs=1).scores == {"bolt": [1.0], "nut": [1.0]}


def test_each_class_is_normal_in_its_own_way(
    run: Callable[..., FittedModel], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "LOOKED_AT", 5)  # all that are learnt, and no nudged views
    model = run()
    features, _ = features_of_files(model, images.find([goods]), ["bolt"] * 6 + ["nut"] * 6, RunOptions())
    train, _ = split(["bolt"] * 6 + ["nut"] * 6, 42)
    bolts = torch.tensor([i for i in train if i < 6])
    with torch.inference_mode():
        residuals = model.detector.residuals(features[bolts])
    for residual, normal in zip(residuals, model.statistics["bolt"], strict=True):
        torch.testing.assert_close(normal.mean, residual.difference.mean((0, 1, 2)))
    assert not torch.allclose(model.statistics["bolt"][0].mean, model.statistics["nut"][0].mean)


@pytest.mark.parametrize(("kept_bytes", "passes"), [(0, 3), (10**6, 1)])
@pytest.mark.parametrize(("most", "shown", "nudged"), [(8, 3, 2), (4, 3, 1), (3, 3, 0), (2, 2, 0)])
def test_nudged_views_tell_what_is_normal_where_images_are_few(
    tiny_model: FittedModel,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    shown: int,
    nudged: int,
    kept_bytes: int,
    passes: int,
) -> None:
    sizes: list[int] = []

    def residuals(stages: list[Tensor]) -> list[Residual]:
        sizes.append(len(stages[0]))
        return [Residual(*torch.randn(2, len(stages[0]), 4, 4, 2))]

    monkeypatch.setattr(describe, "LOOKED_AT", most)
    monkeypatch.setattr(describe, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(tiny_model, "residuals", residuals)
    features = Features([Group([torch.randn(8, 4, 4, 2)], [0, 1, 2, 3], [1] * 4)], [None] * 4, 2)
    gone = {2}  # meanwhile
    good = describe.GoodImages(
        features, ["nut"] * 4, [0, 2, 3], [], lambda i: None if i in gone else torch.rand(3, 64, 64)
    )
    describe.statistics_of(tiny_model, good, good.train, tiny_recipe(), RunOptions())
    assert sizes == passes * [shown, nudged][: 2 if nudged else 1]  # once, if there is room to keep the residuals


def test_an_image_is_measured_as_one_of_its_class(run: Callable[..., FittedModel], goods: Path) -> None:
    model = run()
    pixels = torch.stack([images.resize(images.read(goods / "nut" / f"{i}.png"), (64, 64)) for i in range(2)])
    with torch.inference_mode():
        mixed = model.anomaly_maps(pixels, ["nut", "bolt"])
        nuts, bolts = model.anomaly_maps(pixels, ["nut", "nut"]), model.anomaly_maps(pixels, ["bolt", "bolt"])
    torch.testing.assert_close(mixed, torch.stack([nuts[0], bolts[1]]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(nuts[1], bolts[1])


# ---- stopped and resumed ----


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_never_stopped(
    run: Callable[..., FittedModel], never_stopped: FittedModel, tmp_path: Path, step: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(step))
    seen: list[int] = []
    resumed = run(checkpoint=checkpoint, resume=True, on_step=lambda at, *_: seen.append(at))
    assert seen == list(range(step + 1, 4))
    assert same(resumed, never_stopped)


def test_random_numbers_go_on_where_they_were(run: Callable[..., FittedModel], tmp_path: Path) -> None:
    """With DropPath a step draws some."""
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1), drop_path=0.5)
    torch.manual_seed(99)
    assert same(run(checkpoint=checkpoint, resume=True, drop_path=0.5), run(drop_path=0.5))


def test_ctrl_c_in_the_middle_of_a_step_loses_and_repeats_nothing(
    run: Callable[..., FittedModel], never_stopped: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, clip, calls = tmp_path / "checkpoint", torch.nn.utils.clip_grad_norm_, []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started us in the background

    def clip_and_interrupt(*values: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return clip(*values)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint)
    assert checkpoint.exists()
    assert same(run(checkpoint=checkpoint, resume=True), never_stopped)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_is_written_whenever_its_time_has_come(
    run: Callable[..., FittedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    present: list[bool] = []
    run(checkpoint=tmp_path / "checkpoint", on_step=lambda *_: present.append((tmp_path / "checkpoint").exists()))
    assert present == [False, True, True]


@pytest.mark.parametrize("change", ["images", "content", "settings", "seed", "weights", "folds", "flips", "recipe"])
def test_a_checkpoint_of_another_run_is_refused_in_one_line(
    run: Callable[..., FittedModel], tmp_path: Path, goods: Path, weights: Path, change: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1))
    choices: dict[str, Any] = {}
    if change == "images":
        images.write(goods / "nut" / "new.png", picture(50))
    elif change == "content":
        path = goods / "nut" / "0.png"
        data = bytearray(path.read_bytes())
        data[-20] ^= 1  # of the same size in bytes; no longer a sound image, but that is not asked
        path.write_bytes(bytes(data))
    elif change == "settings":
        choices["letterbox"] = True
    elif change == "seed":
        choices["seed"] = 43  # it would hold out images that were learnt from
    elif change in ("folds", "flips", "recipe"):
        choices |= {"folds": {"folds": 3}, "flips": {"flips": True}, "recipe": {"cut_paste": False}}[change]
    elif change == "weights":
        choices["encoder_weights"] = tmp_path / "other.safetensors"
        state = read_state_dict(weights)
        save_file({name: 2 * tensor for name, tensor in state.items()}, choices["encoder_weights"])
    with pytest.raises(MambaADError, match=r"checkpoint of other images or settings: fit without --resume$"):
        run(checkpoint=checkpoint, resume=True, **choices)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, "half", "foreign"])
def test_a_damaged_checkpoint_is_one_line(
    run: Callable[..., FittedModel], tmp_path: Path, content: bytes | str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    if content == "half":
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=checkpoint, on_step=stop_at(1))
        content = checkpoint.read_bytes()[: checkpoint.stat().st_size // 2]
    if content == "foreign":
        save_file({"a": torch.zeros(1)}, checkpoint)
    else:
        assert isinstance(content, bytes)
        checkpoint.write_bytes(content)
    with pytest.raises(MambaADError, match=r"checkpoint.* --resume") as caught:
        run(checkpoint=checkpoint, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_fields_of_another_version_is_one_line(
    run: Callable[..., FittedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    monkeypatch.setattr(loop, "as_dict", lambda recipe: {**asdict(recipe), "annealing": 1})
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1))
    with pytest.raises(MambaADError, match=r"of another version .*annealing.*: fit without --resume$") as caught:
        run(checkpoint=checkpoint, resume=True)
    assert "\n" not in str(caught.value)


def test_progress_shows_the_whole_work_of_folds_and_what_is_finished_is_kept(
    run: Callable[..., FittedModel], tmp_path: Path
) -> None:
    """4 steps of the model itself, then 3 folds of 2."""
    told: list[tuple[int, int]] = []
    whole = run(folds=3, epochs=3, on_step=lambda step, steps, *_: told.append((step, steps)))
    assert told == [(step, 5 + 3 * 3) for step in range(1, 15)]
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(folds=3, epochs=3, checkpoint=checkpoint, on_step=stop_at(9))
    told.clear()
    resumed = run(
        folds=3,
        epochs=3,
        checkpoint=checkpoint,
        resume=True,
        on_step=lambda step, steps, *_: told.append((step, steps)),
    )
    assert told == [(step, 14) for step in range(9, 15)]  # from the second fold on
    assert resumed.scores == whole.scores


def test_a_full_disk_under_a_checkpoint_is_one_line(
    run: Callable[..., FittedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*checkpoint: .*File too large"):
            run(checkpoint=tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == [tmp_path / "goods"]


# ---- how long and how fast ----


@pytest.mark.parametrize(("seconds", "steps"), [(60, 25), (17.9, 3), (1, 1)])
def test_a_given_time_holds_as_many_steps_as_fit_after_the_five_that_were_timed(
    run: Callable[..., FittedModel], monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
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
    run: Callable[..., FittedModel], never_stopped: FittedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "limited", lambda recipe, *_: recipe)
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0))
    assert same(run(max_minutes=17 / 60), never_stopped)


def test_on_step_is_told_each_step_its_loss_and_its_images(run: Callable[..., FittedModel]) -> None:
    told: list[tuple[int, int, float, int]] = []
    run(epochs=3, batch=4, on_step=lambda *facts: told.append(facts))
    assert [(step, steps, count) for step, steps, _, count in told] == [(i, 8, 4) for i in range(1, 9)]  # ⌈3 · 10 / 4⌉
    assert told[-1][2] < told[0][2]


def test_every_image_is_seen_equally_often_in_an_order_of_its_own_each_epoch(tiny_model: FittedModel) -> None:
    recipe = Recipe(steps=6, batch=4, lr=0.1, schedule="step", seed=3)
    walk = TrainingLoop(tiny_model.detector, Features([], []), [2, 3, 5, 7, 11, 13], recipe, RunOptions())
    seen = torch.cat([walk.chosen(step) for step in range(6)]).view(4, 6).tolist()
    assert [sorted(epoch) for epoch in seen] == [[2, 3, 5, 7, 11, 13]] * 4
    assert len({tuple(epoch) for epoch in seen}) == 4
    assert walk.chosen(2).tolist() == seen[1][2:6]  # in whatever order it is asked


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


def test_a_training_that_diverges_says_so_and_gives_no_model(run: Callable[..., FittedModel]) -> None:
    with pytest.raises(MambaADError, match="--lr"):
        run(lr=1e9)


def test_a_detector_starts_afresh_from_the_seed_alone(weights: Path) -> None:
    settings = tiny_settings()
    torch.manual_seed(5)
    one = new_model(settings).detector.state_dict()
    torch.manual_seed(5)
    other = new_model(settings).detector.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_several_products_are_told_apart_and_one_needs_no_telling(
    run: Callable[..., FittedModel], tmp_path: Path
) -> None:
    for i in range(6):
        images.write(tmp_path / "kinds" / "dark" / f"{i}.png", picture(i) // 4)
        images.write(tmp_path / "kinds" / "light" / f"{i}.png", 255 - picture(i) // 4)
    model = run(images.find([tmp_path / "kinds"]))
    (tmp_path / "kinds" / "dark").rename(tmp_path / "kinds" / "a")
    (tmp_path / "kinds" / "light").rename(tmp_path / "kinds" / "b")
    found = list(predict(model, images.find([tmp_path / "kinds"])))
    assert [one.class_name for one in found] == ["dark"] * 6 + ["light"] * 6
    assert all(one.certainty is not None and one.threshold == model.threshold(one.class_name) for one in found)
    assert run(images.find([tmp_path / "kinds" / "a"])).recogniser is None


def test_an_image_like_no_product_is_unknown(run: Callable[..., FittedModel], goods: Path, tmp_path: Path) -> None:
    model = run()
    assert model.recogniser is not None
    model.recogniser = model.recogniser._replace(limit=0.0)
    (only,) = predict(model, images.find([goods / "nut" / "0.png"]), PredictOptions(class_name=None))
    assert only.score is not None
    assert (only.class_name, only.threshold) == ("nut", model.threshold("nut"))
    assert only.verdict == verdict_of(only.score, model.threshold("nut"))
    (goods / "nut" / "0.png").rename(tmp_path / "alone.png")
    (only,) = predict(model, images.find([tmp_path / "alone.png"]))
    assert (only.class_name, only.verdict, only.threshold) == ("", "unknown", None)
    assert only.score is not None


def test_a_model_carries_images_as_the_encoder_saw_them(run: Callable[..., FittedModel], goods: Path) -> None:
    model = run(letterbox=True)
    assert [(one.class_name, one.held_out) for one in model.examples].count(("nut", True)) == 1
    assert len(model.examples) == 12
    first = model.examples[0]
    learnt = split(["bolt"] * 6 + ["nut"] * 6, 42)[0][0]
    pixels, box = images.letterbox(images.read(goods / "bolt" / f"{learnt}.png"), model.settings.size)
    assert (pixels_of(first, (64, 64)) - pixels).abs().mean() < 0.015  # kept as a JPEG
    assert first.box == box
    assert not run(keep_examples=False).examples


def test_a_model_keeps_how_its_good_photos_were_taken(run: Callable[..., FittedModel], goods: Path) -> None:
    model = run(letterbox=True)
    for name in ("nut", "bolt"):
        scored = [one.photo for one in model.predict_many([goods / name])]
        assert model.photo_statistics[name] == scored
    other = picture(1) // 2
    for i in range(6):
        images.write(goods.parent / "new" / "dark" / f"{i}.png", other)
    files = images.find([goods.parent / "new"])
    model = add(model, files, [file.group for file in files])
    assert set(model.photo_statistics) == {"nut", "bolt", "dark"}
    assert len(model.photo_statistics["nut"]) == 6


def test_add_teaches_a_product_and_keeps_the_others(run: Callable[..., FittedModel], tmp_path: Path) -> None:
    for i in range(6):
        images.write(tmp_path / "new" / f"{i}.png", picture(200 + i))
    model = run()
    before = [tensor.clone() for tensor in model.detector.parameters()]
    files = images.find([tmp_path / "new"])
    seen: list[int] = []
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, files, ["washer"] * 6, recipe, progress=Told(lambda step, *_: seen.append(step)))
    assert grown.trained_on == {"bolt": 5, "nut": 5, "washer": 5}
    assert set(grown.scores) == {"bolt", "nut", "washer"}
    assert grown.recogniser is not None
    assert set(grown.recogniser.names) == {"bolt", "nut", "washer"}
    assert len(seen) == 5  # 10 images that it knew, and the 5 new ones twice, by fours
    assert any(not torch.equal(old, new) for old, new in zip(before, grown.detector.parameters(), strict=True))
    assert len(grown.examples) == 18


def test_add_needs_examples_and_images(run: Callable[..., FittedModel], goods: Path) -> None:
    files = images.find([goods / "nut"])
    with pytest.raises(MambaADError, match="no examples"):
        add(run(keep_examples=False), files, ["nut"] * 6)
    with pytest.raises(MambaADError, match="2 readable images"):
        add(run(), files[:2], ["nut"] * 2)


def test_of_many_images_a_model_carries_some_of_each_class() -> None:
    names = ["nut"] * 500 + ["bolt"] * 10
    train, held_out = split(names, 0)
    kept = examples_to_keep(names, train, held_out)
    assert sum(names[i] == "bolt" for i in kept) == 10
    assert sum(i in set(train) and names[i] == "nut" for i in kept) == EXAMPLES
    assert sum(i in set(held_out) and names[i] == "nut" for i in kept) == EXAMPLES


def test_few_images_are_extended_by_moved_views(run: Callable[..., FittedModel], goods: Path) -> None:
    model = run()
    files = images.find([goods])
    classes = [file.group for file in files]
    features, _ = features_of_files(model, files, classes, RunOptions(), views_for=lambda images: Views(3))
    plain, _ = features_of_files(model, files, [file.group for file in files], RunOptions())
    assert len(features.groups[0].stages[0]) == 36
    chosen = torch.tensor([3, 7])
    for own, alone in zip(features[chosen], plain[chosen], strict=True):
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)
    drawn = torch.stack([features.any_view(chosen)[2] for _ in range(20)])
    assert len({float(one.sum()) for one in drawn[:, 0]}) == 3


def test_only_the_views_that_a_memory_remembers_are_looked_at_closely(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model, files = run(two_looks=True, evidence="memory"), images.find([goods])
    classes = [file.group for file in files]
    views = Views(3, turned=frozenset({"nut"}))
    features, _ = features_of_files(model, files, classes, RunOptions(), views_for=lambda images: views)
    plain, _ = features_of_files(model, files, classes, RunOptions())
    everything = Views(3, flips=True, turned=views.turned)
    known = {"bolt": 1, "nut": 3}
    assert {name: (views.remembered(name), everything.remembered(name)) for name in known} == {
        "bolt": (1, 3),
        "nut": (3, 3),
    }
    for i, name in enumerate(classes):
        remembered = features.remembered_views(i)
        assert [len(stage) for stage in remembered] == [known[name]] * len(remembered)
        for own, alone in zip(remembered, plain.remembered_views(i), strict=True):
            torch.testing.assert_close(own[:1], alone, atol=1e-5, rtol=1e-4)
    assert len(features.any_view(torch.tensor([0]))) == len(features[torch.tensor([0])]) - 1
    both = features.and_those_of(features)
    for own, alone in zip(both.remembered_views(len(files) + 3), features.remembered_views(3), strict=True):
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)


def test_more_images_take_more_steps() -> None:
    recipe = tiny_recipe(epochs=None, steps=300, steps_per_image=1.5)
    assert [recipe.steps_for(n, 8) for n in (10, 100, 10**6)] == [315, 450, MOST_STEPS]
    assert replace(recipe, steps_per_image=0.0).steps_for(100, 8) == 300
    assert replace(recipe, epochs=3).steps_for(10, 4) == 8  # ⌈3 · 10 / 4⌉


def test_with_folds_each_image_is_learnt_and_scored_by_a_model_that_did_not_see_it(
    run: Callable[..., FittedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[int]] = []
    scored: list[set[int]] = []
    real_describe = describe.describe

    def note(model: FittedModel, good: describe.GoodImages, *rest: Any, **named: Any) -> None:
        scored.append(set(good.held_out))
        real_describe(model, good, *rest, **named)

    def start(self: TrainingLoop, *args: Any) -> None:
        trained.append(set(args[2]))
        real_start(self, *args)

    real_start = TrainingLoop.__init__
    monkeypatch.setattr("mambaad_cli.training.fit.describe", note)
    monkeypatch.setattr(TrainingLoop, "__init__", start)
    plain, crossed = run(), run(folds=3)
    everything = set(range(12))
    assert trained[1] == everything  # the model itself
    for learnt, unseen in zip(trained[2:], scored[2:], strict=True):
        assert learnt == everything - unseen
    assert sorted(i for unseen in scored[2:] for i in unseen) == sorted(everything)
    assert crossed.trained_on == {"bolt": 6, "nut": 6}
    assert [len(crossed.scores[name]) for name in ("bolt", "nut")] == [6, 6]
    assert crossed.held_out == {"bolt", "nut"}
    assert [len(scores) for scores in plain.scores.values()] == [1, 1]
    assert crossed.recogniser is not None


def test_each_fold_holds_some_of_each_class_and_all_hold_everything() -> None:
    names = ["nut"] * 10 + ["bolt"] * 7
    parts = folds_of(names, 3, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(17))
    for part in parts:
        kinds = [names[i] for i in part]
        assert kinds.count("nut") in (3, 4)
        assert kinds.count("bolt") in (2, 3)


def test_a_product_added_to_a_model_with_folds_leaves_the_others_their_threshold_and_no_promise(
    run: Callable[..., FittedModel], tmp_path: Path
) -> None:
    """All their images were trained on: none may be called held out."""
    for i in range(6):
        images.write(tmp_path / "new" / f"{i}.png", picture(200 + i))
    model = run(folds=2)
    before = dict(model.scores)
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, images.find([tmp_path / "new"]), ["washer"] * 6, recipe)
    assert grown.held_out == {"washer"}
    assert {name: grown.scores[name] for name in before} == before
    assert (grown.p_value("nut", 0.0), grown.p_value("washer", -1e9)) == (None, 1.0)
    assert grown.trained_on == {"bolt": 6, "nut": 6, "washer": 5}


def test_a_product_with_too_few_images_to_hold_some_out_has_none_after_an_addition_either(
    run: Callable[..., FittedModel], goods: Path, tmp_path: Path
) -> None:
    for i in range(6):
        images.write(tmp_path / "new" / f"{i}.png", picture(200 + i))
    model = run(images.find([goods / "nut"])[:4])
    assert model.held_out == set()
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, images.find([tmp_path / "new"]), ["washer"] * 6, recipe)
    assert grown.held_out == {"washer"}


# ---- the recipe ----


def test_a_model_knows_its_recipe_and_a_product_is_added_by_it(run: Callable[..., FittedModel], goods: Path) -> None:
    model = run(flips=True, distance="published", cut_paste=False, lr=0.001)
    own = recipe_of(model)
    assert (own.flips, own.distance, own.cut_paste, own.lr, own.batch) == (True, "published", False, 0.001, 8)
    grown = add(model, images.find([goods / "nut"]), ["nut"] * 6, replace(own.for_adding(), epochs=1))
    assert grown.statistics == {}
    assert recipe_of(grown) == own


def test_adding_takes_the_share_of_false_rejects_that_is_asked_for(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model = run()
    recipe = replace(recipe_of(model).for_adding(), epochs=1, max_false_reject=0.2, flips=True)
    grown = add(model, images.find([goods / "nut"]), ["nut"] * 6, recipe)
    assert grown.max_false_reject == recipe_of(grown).max_false_reject == 0.2
    assert recipe_of(grown).flips


def test_the_recipe_of_a_file_that_does_not_hold_it_is_that_of_its_preset(run: Callable[..., FittedModel]) -> None:
    model = run()
    expected = replace(RECIPES["small"], expected_distance=True, evidence="decoder")
    model.recipe = {}
    assert recipe_of(model) == expected
    model.statistics = {}
    assert recipe_of(model) == replace(expected, distance="published", expected_distance=False)


def test_a_recipe_of_another_version_is_one_line(run: Callable[..., FittedModel]) -> None:
    model = run()
    model.recipe["annealing"] = 1
    with pytest.raises(
        MambaADError, match="^the model was trained by another version of mambaad, which knew annealing$"
    ):
        recipe_of(model)


def test_a_product_is_added_at_the_size_that_the_model_has_since_it_was_calibrated(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model = run(letterbox=True)
    model.settings = replace(model.settings, size=(96, 96))
    grown = add(model, images.find([goods / "nut"]), ["nut"] * 6, replace(recipe_of(model).for_adding(), epochs=1))
    assert set(grown.scores) == {"bolt", "nut"}
    assert all(torch.isfinite(torch.tensor(scores)).all() for scores in grown.scores.values())


def test_an_image_that_is_gone_after_the_training_costs_its_example_not_the_model(
    run: Callable[..., FittedModel], goods: Path
) -> None:
    model = run(on_step=lambda step, *_: (goods / "nut" / "0.png").unlink(missing_ok=True))
    assert model.trained_on == {"bolt": 5, "nut": 5}
    assert len(model.examples) == 11
