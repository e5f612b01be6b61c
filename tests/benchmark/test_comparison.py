"""Studies: what is fitted, what is kept, what fails alone. One runs for real; the others' fits are made up."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambaad_cli import MambaADError, __version__
from mambaad_cli.api import FittedModel
from mambaad_cli.benchmark import comparison as study
from mambaad_cli.benchmark import comparison_results
from mambaad_cli.benchmark import evaluation as evaluate
from mambaad_cli.benchmark.comparison import Budget, Comparison, ComparisonOptions, Dataset
from mambaad_cli.benchmark.comparison_variants import Variant, ablation, choose, recipes
from mambaad_cli.data import images
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.training import fit
from mambaad_cli.training.recipe import RECIPES, Recipe
from tests.conftest import TINY, picture, record_of

SIZE = (64, 64)
VARIANTS = [
    Variant("first", "mambaad", "test_resnet", TINY, RECIPES["small"], "small"),
    Variant("second", "mambaad", "test_resnet", TINY | {"order": "sweep"}, RECIPES["small"], "small"),
]


def write_tree(root: Path) -> Path:
    """Two classes in MVTec-AD's layout, six images to learn from and four to test each; only nuts have masks."""
    for name, first in (("bolt", 0), ("nut", 100)):
        for i in range(6):
            images.write(root / name / "train/good" / f"{i}.png", picture(first + i, *SIZE))
        for i in range(2):
            images.write(root / name / "test/good" / f"{i}.png", picture(first + 10 + i, *SIZE))
            dented, mask = picture(first + 20 + i, *SIZE), np.zeros((*SIZE, 3), np.uint8)
            dented[16:40, 16:40], mask[16:40, 16:40] = 0, 255
            images.write(root / name / "test/dent" / f"{i}.png", dented)
            if name == "nut":
                images.write(root / name / "ground_truth/dent" / f"{i}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(root: Path) -> Dataset:
    return study.read_dataset(root)


@pytest.fixture(autouse=True)
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MAX_PASS_SECONDS", 0.0)


@pytest.fixture
def fitted(tiny_model: FittedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of fitting, an untrained model; returns what was asked for: (scan order, seed) each."""
    calls = []

    def pretend(goods: Any, settings: Any, recipe: Recipe, *_: Any) -> ModelRecord:
        calls.append((settings.options.get("order", "hilbert"), recipe.seed))
        return record_of(tiny_model)

    monkeypatch.setattr(fit, "fit", pretend)
    return calls


@pytest.fixture
def run(data: Dataset, tmp_path: Path) -> Callable[..., Comparison]:
    def compared(
        variants: list[Variant] = VARIANTS, results: Path = tmp_path / "kept.jsonl", **choices: Any
    ) -> Comparison:
        conditions = {"size": SIZE, "budget": Budget(epochs=1)} | choices
        return study.run(variants, data, ComparisonOptions(**conditions), results)

    return compared


def failing(which: str, error: BaseException, fit_: Callable[..., ModelRecord]) -> Callable[..., ModelRecord]:
    """The same fit, but for one scan order."""

    def fails(goods: Any, settings: Any, *how: Any) -> ModelRecord:
        if settings.options.get("order", "hilbert") == which:
            raise error
        return fit_(goods, settings, *how)

    return fails


# For real


def test_the_usual_detectors_learn_and_are_measured_on_the_same_images(data: Dataset, tmp_path: Path) -> None:
    found = study.run(choose(), data, ComparisonOptions(Budget(epochs=1), SIZE), tmp_path / "kept.jsonl")
    assert [outcome.variant.detector for outcome in found.outcomes] == ["mambaad", "memory", "rd4ad", "uniad"]
    for outcome in found.outcomes:
        (cell,) = outcome.cells
        assert cell["settings"]["encoder"] == "efficientnet_lite0"
        assert list(cell["classes"]) == ["bolt", "nut"]
        assert 0 <= cell["mean"]["image_auroc"] <= 1
        assert cell["mean"]["image_auroc"] == np.mean([own["image_auroc"] for own in cell["classes"].values()])
        assert cell["classes"]["bolt"]["pixel_auroc"] is None
        assert cell["mean"]["pixel_auroc"] == cell["classes"]["nut"]["pixel_auroc"] is not None
        assert min(cell["fit_seconds"], cell["score_seconds"], cell["images_a_second"]) > 0
        assert cell["score_seconds"] <= cell["score_seconds_p99"]
        assert cell["file_bytes"] > 1e6
        batch = min(outcome.variant.recipe.batch, 10)  # ten of the twelve images are trained on
        assert cell["steps"] == (0 if outcome.variant.detector == "memory" else math.ceil(10 / batch))


def test_minutes_take_the_place_of_a_recipes_steps_and_epochs_of_both() -> None:
    small, paper = RECIPES["small"], RECIPES["paper"]
    assert Budget(minutes=2.0).limited(small) == replace(small, max_minutes=2.0)
    assert Budget(epochs=3).limited(paper) == replace(paper, epochs=3)
    assert Budget(minutes=2.0, own=True).limited(small) == small
    assert Budget(minutes=2.0, own=True).limited(RECIPES["uniad"]).max_minutes == 2.0


# What is kept


def test_a_finished_cell_is_never_fitted_again(run: Callable[..., Comparison], fitted: list[Any]) -> None:
    first = run(seeds=2)
    assert fitted == [("hilbert", 42), ("sweep", 42), ("hilbert", 43), ("sweep", 43)]
    again = run(seeds=2)
    assert len(fitted) == 4
    assert again == first
    run(seeds=3)
    assert fitted[4:] == [("hilbert", 44), ("sweep", 44)]


@pytest.mark.parametrize(
    "changed",
    [
        {"size": (64, 96)},
        {"budget": Budget(epochs=2)},
        {"budget": Budget(minutes=1.0)},
        {"variants": [VARIANTS[0]._replace(options=TINY | {"local_branches": False})]},
        {"variants": [VARIANTS[0]._replace(encoder="test_resnet2")]},
        {"variants": [VARIANTS[0]._replace(recipe=RECIPES["paper"])]},
        {"encoder_weights": Path(__file__)},
    ],
)
def test_what_changes_a_result_is_fitted_anew(
    run: Callable[..., Comparison], fitted: list[Any], changed: dict[str, Any]
) -> None:
    run(VARIANTS[:1])
    run(**({"variants": VARIANTS[:1]} | changed))
    assert len(fitted) == 2


def test_cells_of_other_code_are_fitted_anew(
    run: Callable[..., Comparison], fitted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(VARIANTS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(comparison_results, "source_digest", lambda: "another")
        assert len(run(VARIANTS[:1]).outcomes[0].cells) == 1
    assert len(fitted) == 2
    run(VARIANTS[:1])  # the first one's cell is still there
    assert len(fitted) == 2


def test_another_name_of_the_same_is_not_fitted_anew(run: Callable[..., Comparison], fitted: list[Any]) -> None:
    found = run([VARIANTS[0], VARIANTS[0]._replace(name="the same")])
    assert len(fitted) == 1
    assert found.outcomes[0].cells == found.outcomes[1].cells


def test_an_interrupted_study_goes_on_where_it_stopped(
    run: Callable[..., Comparison], fitted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fit, "fit", failing("sweep", KeyboardInterrupt(), fit.fit))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert fitted == [("hilbert", 42)]
    assert [len(outcome.cells) for outcome in run().outcomes] == [1, 1]
    assert fitted == [("hilbert", 42), ("sweep", 42)]


def test_half_an_evaluation_is_not_kept(
    run: Callable[..., Comparison], fitted: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: evaluate.Evaluation([], ["nut"]))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "kept.jsonl").exists()


def test_a_line_that_was_cut_short_costs_its_cell_alone(
    run: Callable[..., Comparison], fitted: list[Any], tmp_path: Path
) -> None:
    run()
    file = tmp_path / "kept.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    run()
    assert fitted[2:] == [("sweep", 42)]
    run()
    assert len(fitted) == 3


@pytest.mark.parametrize("text", ["path,label\n", "{}\n", "[1]\n", '"key"\n'])
def test_a_file_of_something_else_is_not_added_to(run: Callable[..., Comparison], tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.jsonl").write_text(text)
    with pytest.raises(MambaADError, match=r"kept\.jsonl holds no results"):
        run()
    assert (tmp_path / "kept.jsonl").read_text() == text


def test_results_that_cannot_be_written_are_one_error(
    run: Callable[..., Comparison], fitted: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MambaADError, match="cannot (read|write).*kept"):
        run(results=tmp_path / "file" / "kept.jsonl")
    assert not fitted


# What fails


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MambaADError("no weights for encoder 'x'"), "no weights for encoder 'x'"),
        (MambaADError("3 of 4 images are left out of it"), "3 of 4 images are left out of it"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), "out of memory"),
    ],
)
def test_a_variant_that_fails_says_so_and_the_rest_goes_on(
    run: Callable[..., Comparison], fitted: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fit, "fit", failing("hilbert", error, fit.fit))
        first, second = run(seeds=2).outcomes
    assert (first.error, second.error) == (said, "")
    assert (len(first.cells), len(second.cells)) == (0, 2)
    first, second = run(seeds=2).outcomes  # what failed was not kept
    assert (first.error, len(first.cells)) == ("", 2)
    assert len(fitted) == 4


def test_a_bug_keeps_its_traceback(
    run: Callable[..., Comparison], fitted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit", failing("hilbert", RuntimeError("shapes cannot be multiplied"), fit.fit))
    with pytest.raises(RuntimeError, match="multiplied"):
        run()


def test_where_nothing_can_be_fitted_the_first_reason_is_the_error(
    run: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> ModelRecord:
        raise MambaADError("2 readable images")

    monkeypatch.setattr(fit, "fit", fails)
    with pytest.raises(MambaADError, match="no detector could be fitted; first: 2 readable images"):
        run()


# The dataset


def test_the_fingerprint_is_the_contents_and_not_the_place(root: Path, data: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert study.read_dataset(copy).fingerprint == data.fingerprint
    shutil.copy(copy / "nut/train/good/0.png", copy / "nut/train/good/1.png")
    changed = study.read_dataset(copy).fingerprint
    assert changed != data.fingerprint
    (copy / "nut/ground_truth/dent/0_mask.png").unlink()
    assert study.read_dataset(copy).fingerprint not in (changed, data.fingerprint)


@pytest.mark.parametrize(("gone", "said"), [("train", "no good training images"), ("test", "no test images")])
def test_a_dataset_without_either_side_is_refused_before_anything_is_fitted(
    root: Path, tmp_path: Path, gone: str, said: str
) -> None:
    shutil.copytree(root / "nut", tmp_path / "nut")
    shutil.rmtree(tmp_path / "nut" / gone)
    with pytest.raises(MambaADError, match=said):
        study.read_dataset(tmp_path)


def test_steps_that_the_grid_has_too_are_fitted_once(run: Callable[..., Comparison], fitted: list[Any]) -> None:
    run([one._replace(encoder="test_resnet", options=TINY | one.options) for one in ablation()[:4]])
    assert len(fitted) == 3  # "with LSS modules" is the grid's "sweep, 2"


def test_cells_say_what_they_are_of(run: Callable[..., Comparison], fitted: list[Any], tmp_path: Path) -> None:
    run(VARIANTS[1:])
    cell = json.loads((tmp_path / "kept.jsonl").read_text())
    assert (cell["variant"], cell["seed"], cell["budget"]["epochs"]) == ("second", 42, 1)
    assert cell["settings"]["options"]["order"] == "sweep"
    assert (cell["recipe"]["lr"], cell["recipe"]["epochs"]) == (RECIPES["small"].lr, 1)
    assert cell["mambaad"] == __version__
    assert cell["code"] == comparison_results.source_digest()


def test_a_recipe_is_fitted_with_what_it_changes(
    run: Callable[..., Comparison], tiny_model: FittedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(fit, "fit", lambda goods, settings, recipe, *_: asked.append(recipe) or record_of(tiny_model))
    run([one._replace(encoder="test_resnet") for one in recipes()[:3]])
    same = replace(RECIPES["small"], epochs=1)
    alone = same.showing("decoder")
    assert asked == [same, alone, replace(alone, evidence="memory")]
