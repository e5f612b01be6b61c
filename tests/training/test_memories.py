"""The memory in a fit: built, fused with the decoder, kept in the file; suspects among the good."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from mambaad_cli.data import images
from mambaad_cli.data.simulated_defects import KINDS
from mambaad_cli.inspection import model_file
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import PredictOptions, predict
from mambaad_cli.model.memory import memory_of, spacing_of
from mambaad_cli.training import describe, memories
from mambaad_cli.training.fit import add, fit
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.memories import WEIGHTS, Remembered, Trial, fusion_of, images_to_score
from mambaad_cli.training.recipe import RunOptions, recipe_of
from mambaad_cli.training.sizes import own_size
from tests.conftest import picture
from tests.training.conftest import Told, tiny_recipe, tiny_settings

BOTH: dict[str, Any] = {"evidence": "both", "memory_size": 60}


@pytest.fixture(autouse=True)
def few_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "SIMULATED", 10)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A product of 30 images, of which a fit holds out 6."""
    for i in range(30):
        images.write(tmp_path / "many" / f"{i}.png", picture(i % 3) // 2 + i)
    return tmp_path / "many"


@pytest.mark.parametrize("two_looks", [False, True])
def test_a_model_with_both_witnesses_is_the_same_after_it_was_saved(
    run: Callable[..., FittedModel], goods: Path, tmp_path: Path, two_looks: bool
) -> None:
    model = run(two_looks=two_looks, **BOTH)
    assert set(model.memories) == set(model.fusion) == set(model.statistics) == {"bolt", "nut"}
    assert {len(looks) for looks in model.memories.values()} == {1 + two_looks}
    model.save(tmp_path / "m.safetensors")
    again = model_file.load(tmp_path / "m.safetensors")
    found = [[one.score for one in predict(each, images.find([goods]))] for each in (model, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert again.fusion == model.fusion
    assert again.simulated == model.simulated


def test_simulated_defects_of_all_kinds_are_scored(run: Callable[..., FittedModel], many: Path) -> None:
    rows = run(images.find([many]), **BOTH).simulated["part"]
    assert len(rows) == 10
    assert {kind for kind, _, _ in rows} == set(KINDS)
    assert all(length > 0 for _, length, _ in rows)


def test_a_memory_without_some_images_is_that_of_the_others() -> None:
    memory, chosen = memory_of(torch.randn(40, 6), 30, seed=0)
    remembered = Remembered(memory, chosen % 4)
    others = remembered.without(1, 2)
    kept = [int(i) for i in range(30) if int(chosen[i]) % 4 in (0, 3)]
    assert torch.equal(others.patches, memory.patches[kept])
    assert torch.equal(others.spacing, memory.spacing[kept])
    assert len(remembered.without(0, 1, 2, 3).patches) == 30  # there are no others


def test_a_coreset_holds_all_smaller_ones() -> None:
    patches = torch.randn(200, 6)
    memory, chosen = memory_of(patches, 50, seed=3)
    smaller, _ = memory_of(patches, 20, seed=3)
    first = Remembered(memory, chosen).first(20).memory
    assert torch.equal(first.patches, smaller.patches)
    assert torch.equal(first.spacing, spacing_of(smaller.patches))


def test_the_threshold_comes_from_held_out_images_and_from_others_where_these_are_few() -> None:
    good = GoodImages(None, ["a"] * 10 + ["b"] * 4, [0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 10], [4, 7, 13], None)  # type: ignore[arg-type]
    assert images_to_score(good, "a") == [4, 7, 0, 1, 2, 3, 5, 6, 8, 9]
    assert images_to_score(good, "a", 5) == [4, 7, 0, 2, 6]
    assert images_to_score(good, "a", 1) == [4, 7]
    assert images_to_score(good, "b") == [13, 10, 11, 12]


def test_each_good_image_is_scored_as_if_it_were_new(run: Callable[..., FittedModel], many: Path) -> None:
    """Compared with the memory of the others it is stranger than where its own patches are there."""
    files = images.find([many])
    model = run(files, evidence="memory", memory_size=2000)
    assert model.trained_on == {"part": 30}
    assert model.held_out == {"part"}
    known = [one.score or 0.0 for one in predict(model, files)]
    assert len(model.scores["part"]) == 30
    assert median(model.scores["part"]) > 1.2 * median(known)


def test_few_images_are_compared_with_a_memory_that_was_made_without_them(
    run: Callable[..., FittedModel], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise their own share in the whitening would make them look usual."""
    files = images.find([many])[:5]
    exact = run(files, evidence="memory", memory_size=2000)
    monkeypatch.setattr(describe, "FEW", 0)
    shared = run(files, evidence="memory", memory_size=2000)
    assert len(exact.scores["part"]) == len(shared.scores["part"]) == 5
    expected = [float(one.memories["part"][0].expected.mean()) for one in (exact, shared)]
    assert expected[0] > 1.05 * expected[1]


def test_a_product_of_one_image_has_no_threshold_of_its_own(run: Callable[..., FittedModel], goods: Path) -> None:
    files = [file for file in images.find([goods]) if file.group == "nut" or file.path.name == "0.png"]
    model = run(files, **BOTH)
    assert model.trained_on == {"bolt": 1, "nut": 6}
    assert set(model.scores) == model.held_out == {"nut"}
    assert model.threshold("bolt") == model.threshold("nut")


def test_folds_of_a_product_with_fewer_images_than_folds(run: Callable[..., FittedModel], goods: Path) -> None:
    files = [file for file in images.find([goods]) if file.group == "nut" or file.path.name in ("0.png", "1.png")]
    model = run(files, folds=4, **BOTH)
    assert {name: len(scores) for name, scores in model.scores.items()} == {"bolt": 2, "nut": 6}


def test_each_witness_counts_in_units_of_its_values_on_good_images() -> None:
    decoder, memory = torch.rand(20, 4, 4), 100 + 7 * torch.rand(20, 4, 4)
    fusion = fusion_of(Trial((decoder, memory), (decoder, memory), [], (decoder, memory)))
    assert (fusion.decoder.weight, fusion.memory.weight) == WEIGHTS
    assert fusion.memory.centre == pytest.approx(103.5, abs=0.5)
    assert fusion.memory.spread / fusion.decoder.spread == pytest.approx(7, rel=0.1)


def test_a_memory_alone_needs_no_training(goods: Path, weights: Path) -> None:
    files = images.find([goods])
    settings = replace(tiny_settings(), detector="memory", options={})
    steps: list[int] = []
    recipe = tiny_recipe(evidence="memory", memory_size=60)
    model = fit(
        files, [file.group for file in files], settings, recipe, RunOptions(encoder_weights=weights),
        Told(lambda step, *_: steps.append(step)),
    )  # fmt: skip
    assert steps == []
    assert model.fusion == {}
    assert all(one.score is not None and one.score > 0 for one in predict(model, files))


@pytest.mark.parametrize("looks", [1, 2])
def test_products_of_different_shapes_have_sizes_of_their_own_in_one_model(
    tmp_path: Path, weights: Path, looks: int
) -> None:
    for i in range(6):
        images.write(tmp_path / "in" / "wide" / f"{i}.png", picture(i, 40, 160))
        images.write(tmp_path / "in" / "tall" / f"{i}.png", picture(50 + i, 160, 40))
    files = images.find([tmp_path / "in"])
    settings = replace(tiny_settings(), own_aspect=True, detail=1.5, looks=looks)
    options = RunOptions(encoder_weights=weights)
    model = fit(files, [file.group for file in files], settings, tiny_recipe(**BOTH), options)
    assert model.sizes == {"tall": (192, 96), "wide": (96, 192)}  # 1.5 times 128 and 64, the least of a side
    (tmp_path / "in" / "tall").rename(tmp_path / "in" / "a")
    (tmp_path / "in" / "wide").rename(tmp_path / "in" / "b")
    found = list(predict(model, images.find([tmp_path / "in"]), PredictOptions(maps=True)))
    assert [one.class_name for one in found] == ["tall"] * 6 + ["wide"] * 6
    maps = {one.class_name: one.anomaly_map.shape for one in found if one.anomaly_map is not None}
    assert maps == {"tall": (128, 64), "wide": (64, 128)}
    (tmp_path / "in" / "a").rename(tmp_path / "in" / "tall")
    sizes = dict(model.sizes)
    grown = add(model, files[:6], ["tall"] * 6, replace(recipe_of(model).for_adding(), epochs=1))
    assert grown.sizes == sizes


@pytest.mark.parametrize(
    ("shape", "size"),
    [((100, 100), (256, 256)), ((1240, 500), (400, 160)), ((10, 9000), (128, 512)), ((512, 384), (288, 224))],
)
def test_an_own_size_has_the_budget_and_the_aspect(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert own_size([shape], 256 * 256) == size


@pytest.mark.parametrize("drop", [0, "auto"])
def test_an_odd_one_among_the_good_is_named_and_left_out_where_that_is_asked_for(
    many: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, drop: Any
) -> None:
    odd = picture(1) // 2
    odd[30:50, 30:60] = (255, 0, 255)
    images.write(many / "17.png", odd)
    told: list[tuple[list[str], int]] = []
    progress = Told()
    monkeypatch.setattr(
        progress, "suspects", lambda found, dropped: told.append(([file.path.name for file, *_ in found], dropped))
    )
    files, recipe = images.find([many]), tiny_recipe(**BOTH, drop_suspects=drop, folds=2)
    model = fit(files, ["part"] * 30, tiny_settings(), recipe, RunOptions(encoder_weights=weights), progress)
    ((names, dropped),) = told
    assert names[0] == "17.png"
    assert dropped == (len(names) if drop else 0)
    assert model.trained_on == {"part": 30 - dropped}
