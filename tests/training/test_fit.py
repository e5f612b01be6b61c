"""Good images in, a calibrated model out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import verdict_of
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.training.examples import MAX_EXAMPLES, examples_to_keep, pixels_of
from mambaad_cli.training.features import Features
from mambaad_cli.training.loop import TrainingLoop
from mambaad_cli.training.splits import folds_of, split
from mambaad_cli.training.trial import Trial
from tests.conftest import picture
from tests.training.conftest import (
    calibration_of,
    judged,
    learnt_from,
    promising,
    same,
    scores_of,
)


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


def test_what_was_learnt_from_and_held_out_is_counted_by_class(run: Callable[..., ModelRecord]) -> None:
    model = run()
    assert learnt_from(model) == {"bolt": 5, "nut": 5}
    assert {name: len(scores) for name, scores in scores_of(model).items()} == {"bolt": 1, "nut": 1}
    assert promising(model) == {"bolt", "nut"}


def test_three_images_are_enough_and_set_a_threshold_without_holding_any_out(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    model = run(images.find([goods / "nut"])[:3])
    assert learnt_from(model) == {"part": 3}
    assert (len(scores_of(model)["part"]), promising(model)) == (3, set())
    assert model.products["part"].threshold == max(scores_of(model)["part"])


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_images_are_refused(run: Callable[..., ModelRecord], goods: Path, count: int) -> None:
    with pytest.raises(MambaADError, match=f"^{count} readable images: at least 3"):
        run(images.find([goods / "nut"])[:count])


def test_unreadable_images_are_told_and_leave_no_trace_in_the_model(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    """Of 6 images there are 4 views each, of 8 there would be 3."""
    clean = run(images.find([goods / "nut"]))
    for name in ("0_broken.png", "3_broken.png"):
        (goods / "nut" / name).write_text("text")
    told: list[str] = []
    model = run(images.find([goods / "nut"]), on_unreadable=lambda error: told.append(error.path.name))
    assert told == ["0_broken.png", "3_broken.png"]
    assert same(model, clean)


def test_only_unreadable_images_are_too_few(run: Callable[..., ModelRecord], goods: Path) -> None:
    for path in goods.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(MambaADError, match=r"^0 readable images"):
        run()


def test_the_same_seed_gives_the_same_model_to_the_bit_and_another_seed_another(
    run: Callable[..., ModelRecord],
) -> None:
    first = run(seed=1)
    torch.rand(3)  # whatever was drawn in between
    assert same(run(seed=1), first)
    assert not same(run(seed=2), first)


def test_training_in_bf16_differs_from_fp32_but_little(run: Callable[..., ModelRecord]) -> None:
    exact: list[float] = []
    rounded: list[float] = []
    run(on_step=lambda step, steps, loss, images: exact.append(loss))
    run(precision="bf16", on_step=lambda step, steps, loss, images: rounded.append(loss))
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact


def test_the_encoder_stays_as_it_came(run: Callable[..., ModelRecord], weights: Path) -> None:
    given = {name.replace(".", "_"): tensor for name, tensor in read_state_dict(weights).items()}
    net = run().network.encoder.net.state_dict()
    assert net
    assert all(torch.equal(tensor, given[name.replace(".", "_")]) for name, tensor in net.items())


def test_several_products_are_told_apart_and_one_needs_no_telling(
    run: Callable[..., ModelRecord], tmp_path: Path
) -> None:
    for i in range(6):
        images.write(tmp_path / "kinds" / "dark" / f"{i}.png", picture(i) // 4)
        images.write(tmp_path / "kinds" / "light" / f"{i}.png", 255 - picture(i) // 4)
    model = run(images.find([tmp_path / "kinds"]))
    (tmp_path / "kinds" / "dark").rename(tmp_path / "kinds" / "a")
    (tmp_path / "kinds" / "light").rename(tmp_path / "kinds" / "b")
    found = judged(model, images.find([tmp_path / "kinds"]))
    assert [row.class_name for row in found] == ["dark"] * 6 + ["light"] * 6
    assert all(row.certainty is not None for row in found)
    assert all(row.threshold == model.products[row.class_name].threshold for row in found)
    assert run(images.find([tmp_path / "kinds" / "a"])).recogniser is None


def test_an_image_like_no_product_is_unknown(run: Callable[..., ModelRecord], goods: Path, tmp_path: Path) -> None:
    model = run()
    assert model.recogniser is not None
    strict = [
        replace(product, calibration=replace(calibration_of(model, name), farthest=1e-9))
        for name, product in model.products.items()
    ]
    model = model.with_products(*strict)
    (only,) = judged(model, images.find([goods / "nut" / "0.png"]))
    assert only.score is not None
    assert (only.class_name, only.threshold) == ("nut", model.products["nut"].threshold)
    assert only.verdict == verdict_of(only.score, model.products["nut"].threshold)
    (goods / "nut" / "0.png").rename(tmp_path / "alone.png")
    (only,) = judged(model, images.find([tmp_path / "alone.png"]))
    assert (only.class_name, only.verdict, only.threshold) == ("", "unknown", None)
    assert only.score is not None


def test_a_model_carries_images_as_the_decoder_saw_them(run: Callable[..., ModelRecord], goods: Path) -> None:
    model = run(letterbox=True)
    assert [(example.class_name, example.held_out) for example in model.examples].count(("nut", True)) == 1
    assert len(model.examples) == 12
    first = model.examples[0]
    learnt = split(["bolt"] * 6 + ["nut"] * 6, 42)[0][0]
    pixels, box = images.letterbox(images.read(goods / "bolt" / f"{learnt}.png"), model.network.settings.size)
    assert (pixels_of(first, (64, 64)) - pixels).abs().max() < 0.6 / 255  # kept without loss, in 8 bits
    assert first.box == box
    assert not run(keep_examples=False).examples


def test_of_many_images_a_model_carries_some_of_each_class() -> None:
    names = ["nut"] * 500 + ["bolt"] * 10
    train, held_out = split(names, 0)
    kept = examples_to_keep(names, train, held_out)
    assert sum(names[i] == "bolt" for i in kept) == 10
    assert sum(i in set(train) and names[i] == "nut" for i in kept) == MAX_EXAMPLES
    assert sum(i in set(held_out) and names[i] == "nut" for i in kept) == MAX_EXAMPLES


@pytest.mark.parametrize("evidence", ["decoder", "both"])
def test_with_folds_each_image_is_learnt_and_scored_by_a_model_that_did_not_see_it(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch, evidence: str
) -> None:
    learnt_by: dict[int, set[int]] = {}
    scored: list[int] = []

    def start(self: TrainingLoop, *args: Any) -> None:
        learnt_by[id(args[0])] = set(args[2])
        kept.append(args[0])
        real_start(self, *args)

    def decoder_maps(self: Trial, features: Features, chosen: Sequence[int], judging: Sequence[int]) -> Tensor | None:
        if features is self.good.features:
            for i in judging:
                (judge,) = [decoder for decoder in self.decoders if decoder.images is None or i in decoder.images]
                assert i not in learnt_by[id(judge.network.detector)]
                scored.append(i)
        return real_maps(self, features, chosen, judging)

    kept: list[Any] = []  # so that no two have one id
    real_start, real_maps = TrainingLoop.__init__, Trial._decoder_maps
    plain = run(evidence=evidence)
    monkeypatch.setattr(TrainingLoop, "__init__", start)
    monkeypatch.setattr(Trial, "_decoder_maps", decoder_maps)
    crossed = run(folds=3, evidence=evidence)
    everything = set(range(12))
    assert learnt_by[id(crossed.network.detector)] == everything  # the model itself
    assert sorted(scored) == sorted(everything)
    assert learnt_from(crossed) == {"bolt": 6, "nut": 6}
    assert [len(scores) for scores in scores_of(crossed).values()] == [6, 6]
    assert promising(crossed) == {"bolt", "nut"}
    assert [len(scores) for scores in scores_of(plain).values()] == ([1, 1] if evidence == "decoder" else [6, 6])
    assert crossed.recogniser is not None


def test_each_fold_holds_some_of_each_class_and_all_hold_everything() -> None:
    names = ["nut"] * 10 + ["bolt"] * 7
    parts = folds_of(names, 3, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(17))
    for part in parts:
        kinds = [names[i] for i in part]
        assert kinds.count("nut") in (3, 4)
        assert kinds.count("bolt") in (2, 3)


def test_an_image_that_is_gone_after_the_training_costs_its_example_not_the_model(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    model = run(on_step=lambda step, *_: (goods / "nut" / "0.png").unlink(missing_ok=True))
    assert learnt_from(model) == {"bolt": 5, "nut": 5}
    assert len(model.examples) == 11
