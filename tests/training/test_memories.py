"""The memory in a fit: built, fused with the decoder, kept in the file; suspects among the good."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.simulated_defects import KINDS
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.product import threshold_of
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.fusion import Fusion
from mambaad_cli.model.memory import memory_of, spacing_of
from mambaad_cli.training import memories, trial
from mambaad_cli.training.adding import add
from mambaad_cli.training.describe_product import images_to_score
from mambaad_cli.training.features import Features, Seen
from mambaad_cli.training.fit import fit
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.memories import Remembered
from mambaad_cli.training.recipe import RunOptions, recipe_of
from mambaad_cli.training.sizes import own_size
from mambaad_cli.training.trial import WEIGHTS, Maps, Trial
from tests.conftest import picture, record_of
from tests.training.conftest import (
    Told,
    calibration_of,
    goods_of,
    job_of,
    judged,
    learnt_from,
    promising,
    scores_of,
    tiny_recipe,
    tiny_settings,
)

BOTH: dict[str, Any] = {"evidence": "both", "memory_size": 60}


@pytest.fixture(autouse=True)
def few_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_DEFECTS", 10)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A product of 30 images, of which a fit holds out 6."""
    for i in range(30):
        images.write(tmp_path / "many" / f"{i}.png", picture(i) // 2)
    return tmp_path / "many"


@pytest.mark.parametrize("two_looks", [False, True])
def test_a_model_with_both_witnesses_is_the_same_after_it_was_saved(
    run: Callable[..., ModelRecord], goods: Path, tmp_path: Path, two_looks: bool
) -> None:
    model = run(two_looks=two_looks, **BOTH)
    for product in model.products.values():
        assert product.learnt.fusion is not None
        assert product.learnt.statistics
        assert len(product.learnt.memories) == 1 + two_looks
    store.save(model, tmp_path / "m.safetensors")
    again = store.load(tmp_path / "m.safetensors")
    found = [[row.score for row in judged(each, images.find([goods]))] for each in (model, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    for name, product in model.products.items():
        assert again.products[name].learnt.fusion == product.learnt.fusion
        assert again.products[name].calibration == product.calibration


@pytest.mark.parametrize("folds", [0, 2])
def test_simulated_defects_of_all_kinds_are_scored(run: Callable[..., ModelRecord], many: Path, folds: int) -> None:
    defects = calibration_of(run(images.find([many]), folds=folds, **BOTH), "part").simulated
    assert len(defects) == 10
    assert {defect.kind for defect in defects} == set(KINDS)
    assert all(defect.length > 0 for defect in defects)


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
    features = Features([], [Seen()] * 14)
    good = GoodImages(
        features, ["a"] * 10 + ["b"] * 4, [0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 10], [4, 7, 13], lambda i: None
    )

    def scored(name: str, most: int = 100) -> tuple[list[int], list[int]]:
        return images_to_score(good, name, compared=True, folds=False, most=most)

    assert scored("a") == ([4, 7], [4, 7, 0, 1, 2, 3, 5, 6, 8, 9])
    assert scored("a", 5) == ([4, 7], [4, 7, 0, 2, 6])
    assert scored("a", 1) == ([4, 7], [4, 7])
    assert scored("b") == ([13], [13, 10, 11, 12])
    assert images_to_score(good, "a", compared=False, folds=False) == ([4, 7], [4, 7])
    learnt = [10, 11, 12]
    assert images_to_score(good, "b", compared=True, folds=True) == (learnt, learnt)
    features.group([[4, 7], [1, 2], [0, 9]])  # of what shows nearly the same one counts
    assert scored("a") == ([4], [4, 0, 1, 3, 5, 6, 8])


def test_each_good_image_is_scored_as_if_it_were_new(run: Callable[..., ModelRecord], many: Path) -> None:
    """Compared with the memory of the others it is stranger than where its own patches are there."""
    files = images.find([many])
    model = run(files, evidence="memory", memory_size=2000)
    assert learnt_from(model) == {"part": 30}
    assert promising(model) == {"part"}
    known = [row.score or 0.0 for row in judged(model, files)]
    scores = scores_of(model)["part"]
    assert len(scores) == 30
    assert median(scores) > 1.2 * median(known)


def test_few_images_are_compared_with_a_memory_that_was_made_without_them(
    run: Callable[..., ModelRecord], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise their own share in the whitening would make them look usual."""
    files = images.find([many])[:5]
    exact = run(files, evidence="memory", memory_size=2000)
    monkeypatch.setattr(memories, "FEW_IMAGES", 0)
    shared = run(files, evidence="memory", memory_size=2000)
    assert len(scores_of(exact)["part"]) == len(scores_of(shared)["part"]) == 5
    expected = [float(model.products["part"].learnt.memories[0].expected.mean()) for model in (exact, shared)]
    assert expected[0] > 1.05 * expected[1]


@pytest.mark.parametrize("choices", [BOTH, BOTH | {"folds": 3}, {"folds": 3}])
def test_a_product_of_one_image_has_no_threshold_of_its_own(
    run: Callable[..., ModelRecord], goods: Path, choices: dict[str, Any]
) -> None:
    files = [file for file in images.find([goods]) if file.group == "nut" or file.path.name == "0.png"]
    model = run(files, **choices)
    assert learnt_from(model) == {"bolt": 1, "nut": 6}
    assert set(scores_of(model)) == promising(model) == {"nut"}
    assert threshold_of(model.products, "bolt") == threshold_of(model.products, "nut")


@pytest.mark.parametrize("count", [2, 5])
def test_with_folds_no_image_is_compared_with_its_own_patches_however_few_there_are(
    run: Callable[..., ModelRecord], goods: Path, count: int
) -> None:
    """Of five images in four folds, three are alone in theirs."""
    files = [file for file in images.find([goods]) if file.group == "nut" or int(file.path.stem) < count]
    model = run(files, folds=4, **BOTH | {"memory_size": 2000})
    scores = scores_of(model)
    assert {name: len(product_scores) for name, product_scores in scores.items()} == {"bolt": count, "nut": 6}
    known = {row.file.path: row.score or 0.0 for row in judged(model, files)}
    for name in ("bolt", "nut"):
        of_product = [score for path, score in known.items() if path.parent.name == name]
        assert min(scores[name]) > max(of_product)


@pytest.mark.parametrize("choices", [BOTH, {}])
def test_with_folds_all_images_are_scored_by_one_fusion_and_one_memory(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    fused: list[tuple[str, int]] = []
    real = Trial.fusion

    def fusion(self: Trial, maps: Maps) -> Fusion | None:
        fused.append((self.product.name, len(next(part for part in maps if part is not None))))
        return real(self, maps)

    monkeypatch.setattr(Trial, "fusion", fusion)
    run(folds=3, **choices)
    assert fused == [("bolt", 6), ("nut", 6)]


def test_each_witness_counts_in_units_of_its_values_on_good_images(tiny_model: FittedModel) -> None:
    job = job_of(record_of(tiny_model), goods_of([]), tiny_recipe(evidence="both"))
    good = GoodImages(Features([], [Seen()] * 20), ["nut"] * 20, list(range(20)), [], lambda i: None)
    decoder, memory = torch.rand(20, 16, 16), 100 + 7 * torch.rand(20, 16, 16)
    fusion = Trial(job, good, job.products["nut"], [], None, good.train, []).fusion((decoder, memory))
    assert fusion is not None
    assert (fusion.decoder.weight, fusion.memory.weight) == WEIGHTS
    assert fusion.memory.centre == pytest.approx(103.5, abs=0.5)
    assert fusion.memory.spread / fusion.decoder.spread == pytest.approx(7, rel=0.1)


def test_a_memory_alone_needs_no_training(goods: Path, weights: Path) -> None:
    settings = replace(tiny_settings(), detector="memory", options={})
    steps: list[int] = []
    recipe = tiny_recipe(evidence="memory", memory_size=60)
    model = fit(
        goods_of(images.find([goods])), settings, recipe, RunOptions(encoder_weights=weights),
        Told(lambda step, *_: steps.append(step)),
    )  # fmt: skip
    assert steps == []
    assert all(product.learnt.fusion is None for product in model.products.values())
    assert all(row.score is not None and row.score > 0 for row in judged(model, images.find([goods])))


@pytest.mark.parametrize("looks", [1, 2])
def test_products_of_different_shapes_have_sizes_of_their_own_in_one_model(
    tmp_path: Path, weights: Path, looks: int
) -> None:
    for i in range(6):
        images.write(tmp_path / "in" / "wide" / f"{i}.png", picture(i, 40, 160))
        images.write(tmp_path / "in" / "tall" / f"{i}.png", picture(50 + i, 160, 40))
    files = images.find([tmp_path / "in"])
    settings = replace(tiny_settings(), own_aspect=True, detail=1.5, looks=looks)
    model = fit(goods_of(files), settings, tiny_recipe(**BOTH), RunOptions(encoder_weights=weights))
    sizes = {name: product.size for name, product in model.products.items()}
    assert sizes == {"tall": (128, 64), "wide": (64, 128)}  # 64 is the least of a side
    assert TorchScorer(model).preparation.input_size("tall") == (192, 96)
    (tmp_path / "in" / "tall").rename(tmp_path / "in" / "a")
    (tmp_path / "in" / "wide").rename(tmp_path / "in" / "b")
    found = list(predict(TorchScorer(model), images.find([tmp_path / "in"]), PredictOptions(maps=True)))
    assert [row.class_name for row in found] == ["tall"] * 6 + ["wide"] * 6
    maps = {row.class_name: row.anomaly_map.shape for row in found if row.anomaly_map is not None}
    assert maps == {"tall": (128, 64), "wide": (64, 128)}
    (tmp_path / "in" / "a").rename(tmp_path / "in" / "tall")
    for i in range(6):
        images.write(tmp_path / "in" / "tall" / f"{i}.png", picture(150 + i, 150, 50))
    grown = add(model, goods_of(files[:6], ["tall"] * 6), replace(recipe_of(model).for_adding(), epochs=1))
    assert {name: product.size for name, product in grown.products.items()} == sizes


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
    goods = goods_of(files, ["part"] * 30)
    model = fit(goods, tiny_settings(), recipe, RunOptions(encoder_weights=weights), progress)
    ((names, dropped),) = told
    assert names[0] == "17.png"
    assert dropped == (len(names) if drop else 0)
    assert learnt_from(model) == {"part": 30 - dropped}
