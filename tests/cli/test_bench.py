"""`mambaad eval` and `mambaad bench --data` as they are typed."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mambaad_cli.benchmark import comparison as study
from mambaad_cli.model.settings import PRESETS
from mambaad_cli.training import fit
from mambaad_cli.training.recipe import RECIPES
from tests.benchmark.test_comparison import write_tree
from tests.cli.test_commands import complaint, model, run  # noqa: F401 (model is a fixture)
from tests.conftest import TINY
from tests.training.conftest import VIEWS

TINY_FIT = ("--encoder", "test_resnet", "--encoder-weights", "weights.safetensors", "--res", 64, "--epochs", 1)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset in a folder of its own, weights of a tiny encoder beside it, and detectors as tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "MAX_PASS_SECONDS", 0.0)
    small = PRESETS["small"]
    monkeypatch.setitem(PRESETS, "small", replace(small, options=small.options | TINY))
    monkeypatch.setitem(RECIPES, "small", replace(RECIPES["small"], views=VIEWS, evidence="decoder"))
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    return write_tree(tmp_path / "parts")


# eval


def test_eval_takes_the_model_before_the_dataset_or_by_option(model: Path, parts: Path) -> None:  # noqa: F811
    model.rename("other.safetensors")
    before = run("eval", "other.safetensors", "parts", "--format", "json")
    assert before.exit_code == 0, before.output
    assert json.loads(before.stdout)["classes"][0]["class"] == "bolt"
    assert run("eval", "parts", "--model", "other.safetensors", "--format", "json").stdout == before.stdout
    assert run("eval", "parts", "--format", "json", MAMBAAD_MODEL="other.safetensors").stdout == before.stdout
    assert run("eval", "other.safetensors", "parts", "--format", "json", MAMBAAD_MODEL="gone").stdout == before.stdout
    assert "no model mambaad.safetensors" in complaint(run("eval", "parts"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "b", "c"), "expected [MODEL] DATASET"),
        (("a", "b", "--model", "c"), "two models"),
        ((), "Missing argument"),
    ],
)
def test_eval_of_other_than_one_model_and_one_dataset_is_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    result = run("eval", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


# bench --data


def test_bench_with_data_prints_a_row_a_detector_and_goes_on_from_its_results(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bench", "--data", "parts", "--detectors", "mambaad-small,uniad", *TINY_FIT, "--format", "csv")
    first = run(*command)
    assert first.exit_code == 0, first.output
    mambaad, uniad = csv.DictReader(io.StringIO(first.stdout))
    assert (mambaad["detector"], uniad["detector"]) == ("MambaAD small", "UniAD")
    assert 0 <= float(mambaad["image_auroc"]) <= 100
    assert (float(mambaad["image_auroc[bolt]"]) + float(mambaad["image_auroc[nut]"])) / 2 == pytest.approx(
        float(mambaad["image_auroc"]), abs=1e-3
    )
    assert len(Path("mambaad-bench.jsonl").read_text().splitlines()) == 2

    monkeypatch.delattr(fit, "fit")
    assert run(*command).stdout == first.stdout
    written = run(*command, "-o", "new/table.csv")
    assert (written.exit_code, written.stdout) == (0, "")
    assert Path("new/table.csv").read_text() == first.stdout


def test_bench_of_a_detector_that_cannot_be_fitted_has_its_row_and_exit_status_1(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "rd4ad", replace(RECIPES["rd4ad"], lr=1e30))  # diverges
    result = run("bench", "--data", "parts", "--detectors", "mambaad-small,rd4ad", *TINY_FIT, "--epochs", 9)
    assert result.exit_code == 1
    assert "MambaAD small" in result.stdout
    assert "diverged" in result.stdout


@pytest.mark.parametrize("gone", ["train", "test"])
def test_bench_of_data_without_images_to_learn_or_test_on_is_one_line(
    parts: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fit, "fit")
    for name in ("nut", "bolt"):
        (parts / name / gone).rename(parts / name / "hidden")
    what = {"train": "no good training images", "test": "no test images"}[gone]
    assert f"parts has {what}" in complaint(run("bench", "--data", "parts"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", 1, "--ablation"), "--ablation, --epochs: only with --data"),
        (("--data", "x", "--plot", "x.png"), "--plot: only without --data"),
        (("--data", "x", "--epochs", 1, "--max-minutes", 1), "choose one of"),
        (("--data", "x", "--ablation", "--recipes"), "choose one of --ablation, --recipes and --presets"),
        (("--data", "x", "--encoder", "own", "--encoder-weights", "x"), "name it with --encoder"),
    ],
)
def test_bench_options_that_do_not_go_together_are_wrong_usage(options: tuple[object, ...], said: str) -> None:
    result = run("bench", *options, COLUMNS="200")
    assert result.exit_code == 2
    assert said in result.stderr


def test_bench_of_an_unknown_detector_or_dataset_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no detector 'patchcore'" in complaint(run("bench", "--data", "x", "--detectors", "patchcore"))
    assert "x does not exist" in complaint(run("bench", "--data", "x"))
    assert "of one MambaAD" in complaint(run("bench", "--data", "x", "--ablation", "--detectors", "uniad"))
