"""What is known of a product stays known when another one is added, and grows when it gets more images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.roi import parse
from mambaad_cli.inspection import store
from mambaad_cli.inspection.lessons import Lesson
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Product, p_value_of
from mambaad_cli.inspection.teaching import taught_record
from mambaad_cli.training import features, trial
from mambaad_cli.training import fit as fit_module
from mambaad_cli.training.adding import add
from mambaad_cli.training.examples import MAX_EXAMPLES, pixels_of
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.memories import KNOWN, remember
from mambaad_cli.training.recipe import Recipe, RunOptions, recipe_of
from tests.conftest import calibrated, picture
from tests.training.conftest import (
    Told,
    calibration_of,
    goods_of,
    judged,
    learnt_from,
    nuts_again,
    promising,
    scores_of,
    stop_at,
)

BOTH: dict[str, Any] = {"evidence": "both", "memory_size": 60}
MEMORY: dict[str, Any] = {"evidence": "memory", "memory_size": 60}


@pytest.fixture(autouse=True)
def few_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_DEFECTS", 5)


@pytest.fixture
def washers(tmp_path: Path) -> GoodFiles:
    """Six images of a product that no model knows yet."""
    for i in range(6):
        images.write(tmp_path / "new" / "washer" / f"{i}.png", picture(200 + i))
    return goods_of(images.find([tmp_path / "new"]))


@pytest.fixture
def more_nuts(tmp_path: Path) -> GoodFiles:
    """Six new images of a product that is known."""
    for i in range(6):
        images.write(tmp_path / "more" / "nut" / f"{i}.png", picture(20 + i))
    return goods_of(images.find([tmp_path / "more"]))


def shortly(model: ModelRecord, **choices: Any) -> Recipe:
    """The model's own recipe for additions, cut short."""
    return replace(recipe_of(model).for_adding(), **{"epochs": 1} | choices)


def assert_same_memories(product: Product, other: Product) -> None:
    assert len(product.learnt.memories) == len(other.learnt.memories) > 0
    for memory, other_memory in zip(product.learnt.memories, other.learnt.memories, strict=True):
        for part, other_part in zip(memory, other_memory, strict=True):
            assert torch.equal(part, other_part)


# ---- a product without new images ----


@pytest.mark.parametrize("choices", [BOTH, MEMORY, BOTH | {"two_looks": True}])
def test_a_product_without_new_images_keeps_its_memory_and_how_its_photos_were_taken(
    run: Callable[..., ModelRecord], washers: GoodFiles, choices: dict[str, Any]
) -> None:
    model = run(**choices)
    grown = add(model, washers, shortly(model))
    for name in ("bolt", "nut"):
        assert_same_memories(grown.products[name], model.products[name])
        assert calibration_of(grown, name).photos == calibration_of(model, name).photos
        assert grown.products[name].images == model.products[name].images == 6


def test_thresholds_from_many_new_photos_stay_where_only_a_memory_is_evidence(
    run: Callable[..., ModelRecord], washers: GoodFiles
) -> None:
    model = run(**MEMORY)
    nut = calibrated(model.products["nut"], [1 + i / 100 for i in range(99)], max_false_reject=0.05)
    model = model.with_products(nut)
    grown = add(model, washers, shortly(model, max_false_reject=0.01))
    before, after = calibration_of(model, "nut"), calibration_of(grown, "nut")
    assert (after.scores, after.max_false_reject, after.threshold) == (before.scores, 0.05, before.threshold)
    assert calibration_of(grown, "washer").max_false_reject == 0.01


@pytest.mark.parametrize(
    "choices", [BOTH, *(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"distance": "published"}))]
)
def test_scores_move_by_what_the_decoder_finds_now_in_the_images_that_the_model_carries(
    run: Callable[..., ModelRecord], goods: Path, washers: GoodFiles, choices: dict[str, Any]
) -> None:
    """With a memory, as much as the decoder counts; without one, by all of it."""
    model = run(epochs=10, **choices)
    calibrated_by_many = [float(score) for score in np.linspace(1, 2, 99)]
    model = model.with_products(calibrated(model.products["nut"], calibrated_by_many))
    files = images.find([goods / "nut"])
    before = [row.score or 0.0 for row in judged(model, files)]
    kept = [tensor.clone() for tensor in model.network.detector.parameters()]
    grown = add(model, washers, shortly(model, epochs=20, lr=0.02))
    assert any(not torch.equal(old, new) for old, new in zip(kept, grown.network.detector.parameters(), strict=True))
    moved = np.array(scores_of(grown)["nut"]) - calibrated_by_many
    assert len(moved) == 99
    assert moved == pytest.approx(np.full(99, moved[0]), abs=1e-6)
    now = [row.score or 0.0 for row in judged(grown, files)]
    assert abs(np.median(now) - moved[0] - np.median(before)) < 0.5 * max(abs(moved[0]), 0.1)


def test_a_turned_product_stays_turned(
    run: Callable[..., ModelRecord], washers: GoodFiles, more_nuts: GoodFiles, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In its memory, in the file, and when it gets more images."""
    monkeypatch.setattr(fit_module, "turned_classes", lambda *_: frozenset({"nut"}))
    model = run(**BOTH, two_looks=True)
    monkeypatch.setattr(fit_module, "turned_classes", lambda *_: frozenset())
    grown = add(model, washers, shortly(model))
    store.save(grown, tmp_path / "m.safetensors")
    grown = store.load(tmp_path / "m.safetensors")
    assert {name: product.turned for name, product in grown.products.items()} == {
        "bolt": False, "nut": True, "washer": False,
    }  # fmt: skip
    assert_same_memories(grown.products["bolt"], model.products["bolt"])
    remembered: list[int] = []
    real = features.Features.remembered_views
    monkeypatch.setattr(
        features.Features,
        "remembered_views",
        lambda self, image: remembered.append(self._remembered[image]) or real(self, image),
    )
    again = add(grown, more_nuts, shortly(grown))
    assert again.products["nut"].turned
    assert min(remembered) > 1


def test_the_images_that_a_model_carries_have_the_grain_of_photos(
    run: Callable[..., ModelRecord], tmp_path: Path
) -> None:
    """A lossy image has less grain: what is learnt of it would call the grain of new photos unusual."""
    rng = np.random.default_rng(0)
    for i in range(6):
        grain = rng.normal(0, 12, (64, 64, 1))
        images.write(
            tmp_path / "grainy" / f"{i}.png", (picture(i, 64, 64) * 0.6 + 40 + grain).clip(0, 255).astype("uint8")
        )
    files = images.find([tmp_path / "grainy"])
    for example in run(files).examples:
        photos = [torch.from_numpy(images.read(file.path)).permute(2, 0, 1) / 255 for file in files]
        assert min(float((pixels_of(example, (64, 64)) - photo).abs().max()) for photo in photos) < 1e-6


def test_a_region_is_of_products_that_get_images(run: Callable[..., ModelRecord], washers: GoodFiles) -> None:
    model = run(**MEMORY, inside=(parse("25%,25%,50%,50%"),))
    everywhere = replace(washers, inside=(parse("0,0,100%,100%"),))
    grown = add(model, everywhere, shortly(model))
    for name in ("bolt", "nut"):
        np.testing.assert_array_equal(grown.products[name].region, model.products[name].region)
        assert calibration_of(grown, name).conditions == calibration_of(model, name).conditions
    assert grown.products["washer"].region is not None
    with pytest.raises(MambaADError, match="a region is of product 'nut': the products are washer"):
        add(model, replace(washers, inside=(parse("nut=0,0,50%,50%"),)), shortly(model))


# ---- a product with new images ----


@pytest.mark.parametrize("choices", [BOTH, MEMORY, BOTH | {"two_looks": True}])
def test_new_images_of_a_known_product_join_its_memory_its_scores_and_its_photos(
    run: Callable[..., ModelRecord], more_nuts: GoodFiles, choices: dict[str, Any]
) -> None:
    model = run(**choices)
    grown = add(model, more_nuts, shortly(model))
    assert learnt_from(grown) == {"bolt": 6, "nut": 12}
    assert {name: len(scores) for name, scores in scores_of(grown).items()} == {"bolt": 6, "nut": 12}
    assert len(calibration_of(grown, "nut").photos) == 12
    assert_same_memories(grown.products["bolt"], model.products["bolt"])
    assert len(grown.products["nut"].learnt.memories[-1].patches) == 60


def test_a_memory_is_chosen_from_old_patches_and_from_those_of_new_images(
    run: Callable[..., ModelRecord], more_nuts: GoodFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[set[int]] = []

    def noted(*args: Any) -> Any:
        views = remember(*args)
        owners.extend(set(view.owners.tolist()) for view in views)
        return views

    model = run(**MEMORY)
    monkeypatch.setattr(fit_module, "remember", noted)
    add(model, more_nuts, shortly(model))
    assert min(owners[0]) <= KNOWN  # earlier patches, by their numbers
    assert len(owners[0]) > 3


def test_twenty_known_images_and_more_are_no_hindrance_to_an_addition(
    run: Callable[..., ModelRecord], tmp_path: Path, washers: GoodFiles
) -> None:
    """Products that have enough images for suspects."""
    for i in range(12):
        images.write(tmp_path / "dozens" / "nut" / f"{i}.png", picture(i))
        images.write(tmp_path / "dozens" / "bolt" / f"{i}.png", picture(100 + i))
    model = run(images.find([tmp_path / "dozens"]), two_looks=True, **BOTH)
    grown = add(model, washers, shortly(model, drop_suspects="auto"))
    assert set(scores_of(grown)) == {"bolt", "nut", "washer"}


def test_of_a_product_no_more_examples_are_carried_however_often_images_are_added(
    run: Callable[..., ModelRecord], tmp_path: Path
) -> None:
    def nuts(folder: str, first: int, count: int) -> GoodFiles:
        for i in range(count):
            images.write(tmp_path / folder / "nut" / f"{i}.png", picture(first + i, 40, 48))
        return goods_of(images.find([tmp_path / folder]))

    model = run(list(nuts("first", 0, 30).files), **MEMORY)
    for turn in range(2):
        model = add(model, nuts(f"more{turn}", 100 * (turn + 1), 30), shortly(model))
        held_out = [example.held_out for example in model.examples]
        assert held_out.count(False) == MAX_EXAMPLES
        assert held_out.count(True) <= MAX_EXAMPLES
    assert learnt_from(model) == {"nut": 90}


def test_photos_that_were_learnt_already_are_left_out_of_an_addition(
    run: Callable[..., ModelRecord], goods: Path, more_nuts: GoodFiles, tmp_path: Path
) -> None:
    """Compared with a memory that holds their own patches they would look usual, and the threshold would be too low."""
    model = run(**MEMORY)
    store.save(model, tmp_path / "m.safetensors")
    model = store.load(tmp_path / "m.safetensors")
    with pytest.raises(MambaADError, match="has learnt from all of these photos already"):
        add(model, goods_of(images.find([goods / "nut"]), ["nut"] * 6), shortly(model))
    both = [*images.find([goods / "nut"]), *more_nuts.files]
    again = add(model, goods_of(both, ["nut"] * 12), shortly(model, turns=False))
    once = add(model, more_nuts, shortly(model, turns=False))
    assert learnt_from(again) == {"bolt": 6, "nut": 12}
    assert sorted(scores_of(again)["nut"]) == pytest.approx(sorted(scores_of(once)["nut"]), rel=1e-5)


def test_a_model_keeps_how_its_good_photos_were_taken(run: Callable[..., ModelRecord], goods: Path) -> None:
    model = run(letterbox=True)
    photos = {name: [row.photo for row in judged(model, images.find([goods / name]))] for name in ("nut", "bolt")}
    for name, taken in photos.items():
        assert list(calibration_of(model, name).photos) == taken
    for i in range(6):
        images.write(goods.parent / "new" / "dark" / f"{i}.png", picture(1) // 2 + i)
    grown = add(model, goods_of(images.find([goods.parent / "new"])))
    photos_kept = {name: len(calibration_of(grown, name).photos) for name in grown.products}
    assert photos_kept == {"bolt": 6, "nut": 6, "dark": 6}
    assert list(calibration_of(grown, "nut").photos) == photos["nut"]


def test_add_teaches_a_product_and_keeps_the_others(run: Callable[..., ModelRecord], washers: GoodFiles) -> None:
    model = run()
    before = [tensor.clone() for tensor in model.network.detector.parameters()]
    seen: list[int] = []
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, washers, recipe, progress=Told(lambda step, *_: seen.append(step)))
    assert learnt_from(grown) == {"bolt": 5, "nut": 5, "washer": 5}
    assert set(scores_of(grown)) == {"bolt", "nut", "washer"}
    assert all(torch.equal(old, own) for old, own in zip(before, model.network.detector.parameters(), strict=True))
    assert grown.recogniser is not None
    assert set(grown.recogniser.names) == {"bolt", "nut", "washer"}
    assert len(seen) == 5  # 10 images that it knew, and the 5 new ones twice, by fours
    after = grown.network.detector.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert len(grown.examples) == 18


def test_add_needs_examples_and_images(run: Callable[..., ModelRecord], goods: Path) -> None:
    files = images.find([goods / "nut"])
    with pytest.raises(MambaADError, match="no examples"):
        add(run(keep_examples=False), goods_of(files, ["nut"] * 6))
    with pytest.raises(MambaADError, match="2 readable images"):
        add(run(), goods_of(files[:2], ["nut"] * 2))


def test_a_product_added_to_a_model_with_folds_leaves_the_others_their_scores_moved_with_the_decoder(
    run: Callable[..., ModelRecord], washers: GoodFiles
) -> None:
    """Each of their scores is still of an image that its decoder did not see."""
    model = run(folds=2)
    before = scores_of(model)
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, washers, recipe)
    assert promising(grown) == {"bolt", "nut", "washer"}
    for name, scores in before.items():
        moved = [after - score for after, score in zip(scores_of(grown)[name], scores, strict=True)]
        assert moved == pytest.approx([moved[0]] * len(scores), abs=1e-6)
    assert (p_value_of(grown.products, "nut", -1e9), p_value_of(grown.products, "washer", -1e9)) == (1.0, 1.0)
    assert learnt_from(grown) == {"bolt": 6, "nut": 6, "washer": 5}


def test_a_product_with_too_few_images_to_hold_some_out_promises_nothing_after_an_addition_either(
    run: Callable[..., ModelRecord], goods: Path, washers: GoodFiles
) -> None:
    model = run(images.find([goods / "nut"])[:4])
    assert promising(model) == set()
    recipe = replace(recipe_of(model).for_adding(), epochs=1, batch=4)
    grown = add(model, washers, recipe)
    assert promising(grown) == {"washer"}
    assert len(scores_of(grown)["part"]) == 4
    assert p_value_of({"part": grown.products["part"]}, "part", 0.0) is None


def test_adding_takes_the_share_of_false_rejects_that_is_asked_for(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    model = run()
    recipe = replace(recipe_of(model).for_adding(), epochs=1, max_false_reject=0.2, flips=True)
    grown = add(model, nuts_again(goods), recipe)
    assert calibration_of(grown, "nut").max_false_reject == recipe_of(grown).max_false_reject == 0.2
    assert calibration_of(grown, "bolt").max_false_reject is None  # as it was fitted
    assert recipe_of(grown).flips


def test_a_product_is_added_at_the_size_that_the_model_has_since_it_was_calibrated(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    """A product without images at that size has no threshold there: it was not calibrated at it."""
    model = run(letterbox=True).at_size((96, 96))
    grown = add(model, nuts_again(goods), replace(recipe_of(model).for_adding(), epochs=1))
    assert set(scores_of(grown)) == {"nut"}
    assert calibration_of(grown, "nut").conditions.size == (96, 96)
    assert all(torch.isfinite(torch.tensor(scores)).all() for scores in scores_of(grown).values())


# ---- stopped and resumed ----


@pytest.mark.parametrize("change", ["weights", "examples"])
def test_an_addition_is_not_resumed_for_another_state_of_the_model(
    run: Callable[..., ModelRecord], washers: GoodFiles, tmp_path: Path, change: str
) -> None:
    model = run()
    store.save(model, tmp_path / "m.safetensors")
    recipe, options = shortly(model), RunOptions(checkpoint=tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        add(store.load(tmp_path / "m.safetensors"), washers, recipe, options, Told(stop_at(1)))
    other = store.load(tmp_path / "m.safetensors")
    if change == "weights":
        with torch.no_grad():
            next(other.network.detector.parameters()).add_(1e-3)
    else:
        other = replace(other, examples=(other.examples[1], *other.examples[1:]))
    resuming = replace(options, resume=True)
    with pytest.raises(MambaADError, match="is a checkpoint of other images or settings"):
        add(other, washers, recipe, resuming)
    grown = add(store.load(tmp_path / "m.safetensors"), washers, recipe, resuming)
    assert set(scores_of(grown)) == {"bolt", "nut", "washer"}


def test_what_was_taught_by_verdicts_is_known_after_an_addition(
    run: Callable[..., ModelRecord], washers: GoodFiles, more_nuts: GoodFiles
) -> None:
    model = run(evidence="both")
    hardest = model.products["nut"].learnt.hardest
    assert hardest is not None
    lessons = [
        Lesson(f"{i}.png", str(i), i == 2, tuple(view[i] + 3.0 for view in hardest.patches), 9.0) for i in range(3)
    ]
    taught, _ = taught_record(model, {"nut": lessons})
    for goods in (washers, more_nuts):
        grown = add(taught, goods, shortly(taught))
        nut = grown.products["nut"]
        assert nut.learnt.taught is not None
        assert [one.name for one in nut.learnt.taught.lessons] == ["0.png", "1.png", "2.png"]
        known, before = nut.learnt.hardest, taught.products["nut"].learnt.hardest
        assert known is not None
        assert before is not None
        assert len(known.scores) == len(known.patches[0]) >= len(before.scores)
        assert nut.untaught is not None
        assert grown.products["bolt"].learnt.taught is None
