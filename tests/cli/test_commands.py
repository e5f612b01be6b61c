import csv
import hashlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from mambaad_cli.cli.fit_progress import FitProgress
from mambaad_cli.data import images
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.recalibrate import product_name
from mambaad_cli.model.settings import PRESETS
from mambaad_cli.training import loop
from mambaad_cli.training.recipe import RECIPES
from tests.conftest import TINY, picture, with_scores
from tests.training.conftest import VIEWS

ROOT = Path(mambaad_cli.__file__).parent.parent


def run(*args: object, **env: str) -> Result:
    """The command in this process, on a terminal of 80 columns; a bug would show its traceback."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "80"} | env, prog_name="mambaad")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def complaint(result: Result) -> str:
    """The one line that the command says before it ends with exit status 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("mambaad: ")
    assert result.stderr.count("\n") == 1
    return result.stderr[len("mambaad: ") : -1]


def images_learnt(path: Path) -> dict[str, int]:
    """How many images each product of a model file was learnt from."""
    return {name: product.images for name, product in store.load(path).products.items()}


def scores_in(record: ModelRecord) -> dict[str, list[float]]:
    """The calibration scores of each product that has some."""
    return {name: list(product.scores) for name, product in record.products.items() if product.calibration}


def photos_in(record: ModelRecord, name: str) -> list[PhotoStatistics]:
    """How the good photos of a product were taken."""
    measured = record.products[name].calibration
    return [] if measured is None else list(measured.photos)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def model(tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model's file, the current folder's default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAMBAAD_MODEL", raising=False)
    tiny_model.save(tmp_path / "mambaad.safetensors")
    return tmp_path / "mambaad.safetensors"


@pytest.fixture
def fitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`mambaad fit FOLDER` of a tiny network for three steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    small = PRESETS["small"]
    monkeypatch.setitem(PRESETS, "small", replace(small, options=small.options | TINY))
    monkeypatch.setitem(RECIPES, "small", replace(RECIPES["small"], views=VIEWS, evidence="decoder"))
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")

    def fitted(folder: object, *options: object) -> Result:
        tiny = ["--encoder", "test_resnet", "--encoder-weights", "weights.safetensors", "--res", 64]
        steps: list[object] = ["--epochs", 2, "--batch", 8]
        if "memory" in options:
            steps = []  # nothing is trained
        elif "--max-minutes" in options:
            steps = ["--batch", 8]
        return run("fit", folder, *tiny, *steps, *options)

    return fitted


# ---- the command itself ----


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--help"], {}),
        (["fit", "--help"], {}),
        (["--version"], {}),
        ([], {"_MAMBAAD_COMPLETE": "complete_bash", "COMP_WORDS": "mambaad sc", "COMP_CWORD": "1"}),
        ([], {"_MAMBAAD_COMPLETE": "complete_bash", "COMP_WORDS": "mambaad fit --scan h", "COMP_CWORD": "3"}),
    ],
)
def test_help_and_tab_load_nothing_heavy(args: list[str], env: dict[str, str]) -> None:
    program = (
        "import sys; from mambaad_cli.__main__ import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'timm', 'cv2', 'numpy', 'sklearn', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout.splitlines()) > 1
    if env:
        assert done.stdout.split()[0] in ("score", "hilbert")


def test_no_arguments_show_the_help_and_a_version_can_be_asked_for() -> None:
    assert "score" in run().output
    assert run("--version").stdout == f"mambaad {mambaad_cli.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["polish"],
        ["score"],
        ["score", ".", "--colour"],
        ["score", ".", "--csv", "--json"],
        ["score", ".", "--batch", "0"],
        ["score", ".", "--workers", "0"],
        ["map", "."],
        ["map", ".", "-o", "out", "--raw", "gif"],
        ["map", ".", "-o", "out", "--min-area", "5"],
        ["score", ".", "--regions"],
        ["score", ".", "--csv", "--regions"],
        ["score", ".", "--json", "--min-area", "5"],
        *(
            ["score", ".", "--review", share]
            for share in ("", "%", "0", "0%", "1", "100%", "-5%", "nan", "inf%", "few")
        ),
        ["fit", ".", "--max-false-reject", "1"],
        ["calibrate", "m", ".", "--max-false-reject", "0%"],
        ["calibrate", "m"],
        ["calibrate", "m", "--max-false-reject", "5%", "--res", "64"],
        ["fit", ".", "--res", "big"],
        ["fit", ".", "--res", "31"],
        ["fit", ".", "--res", "64x64x64"],
        ["fit", ".", "--scan", "spiral"],
        ["fit", ".", "--preset", "huge"],
        ["fit", ".", "--epochs", "0"],
        ["fit", ".", "--max-minutes", "0"],
        ["fit", ".", "--lr", "0"],
    ],
)
def test_wrong_usage_ends_with_status_2(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_there_is_one_line(model: Path, goods: Path, device: str) -> None:
    assert f"no device {device!r}" in complaint(run("score", goods, "--device", device))


def test_whoever_stops_reading_ends_the_command_quietly(model: Path, goods: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    score = [sys.executable, "-m", "mambaad_cli", "score", str(goods), "--csv", "--batch", "1"]
    with subprocess.Popen(score, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() in (0, 1)


def test_ctrl_c_ends_with_status_130_and_keeps_what_was_done(
    model: Path, goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anomaly_maps, calls = Network.anomaly_maps, []

    def interrupted(self: Network, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return anomaly_maps(self, *arguments)

    monkeypatch.setattr(Network, "anomaly_maps", interrupted)
    result = run("score", goods, "--csv", "-o", "rows.csv", "--batch", 2)
    assert (result.exit_code, result.stdout) == (130, "")
    done = [row["path"] for row in rows(Path("rows.csv").read_text())]
    assert done
    assert done == [str(file) for file in sorted(goods.glob("*/*.png"))][: len(done)]


# ---- fit ----


def test_fit_takes_sub_folders_as_classes_and_writes_a_model(fitting: Callable[..., Result], goods: Path) -> None:
    result = fitting(goods)
    assert result.exit_code == 0
    for name in ("bolt", "nut"):
        assert f"{name}: learnt from 5 good images, 1 held out for the threshold" in result.stdout
    assert images_learnt(Path("mambaad.safetensors")) == {"bolt": 5, "nut": 5}
    assert not list(Path.cwd().glob(".*"))


def test_fit_takes_a_flat_folder_as_one_class_of_its_name(fitting: Callable[..., Result], goods: Path) -> None:
    assert fitting(goods / "nut").exit_code == 0
    assert images_learnt(Path("mambaad.safetensors")) == {"nut": 5}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("nut", "nut"), ("nut/good", "nut"), ("nut/train/good", "nut"), ("nut/images/OK/", "nut"), ("/good", "good")],
)
def test_a_class_is_named_by_the_folder_that_says_more_than_good(folder: str, name: str) -> None:
    assert product_name(Path(folder)) == name


def test_the_command_that_fit_recommends_works(fitting: Callable[..., Result], goods: Path) -> None:
    result = fitting(goods, "--model", "my models/a b.safetensors")
    recommended = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {result.stdout.splitlines()[-1].strip()}"], capture_output=True, check=True
    )
    words = [goods if word == b"FOLDER" else word.decode() for word in recommended.stdout.split(b"\0")[1:-1]]
    assert run(*words, "--csv").exit_code == 0


def test_fit_leaves_out_unreadable_images_says_so_and_ends_with_status_1(
    fitting: Callable[..., Result], goods: Path
) -> None:
    (goods / "nut" / "9\n.png").write_text("text")
    result = fitting(goods)
    assert result.exit_code == 1
    assert f"mambaad: left out {goods}/nut/9\\n.png: not an image" in result.stderr
    assert images_learnt(Path("mambaad.safetensors")) == {"bolt": 5, "nut": 5}


def test_fit_refuses_too_few_images_in_one_line(fitting: Callable[..., Result], goods: Path) -> None:
    for path in list((goods / "nut").iterdir())[2:]:
        path.unlink()
    assert "at least 3 good images" in complaint(fitting(goods / "nut"))
    assert not Path("mambaad.safetensors").exists()


@pytest.mark.parametrize("option", ["--res", "--tile-size"])
@pytest.mark.parametrize("size", ["large", "31", "1x2x3"])
def test_a_wrong_size_is_blamed_on_its_own_option(goods: Path, option: str, size: str) -> None:
    result = run("fit", goods, option, size)
    assert result.exit_code == 2
    assert f"Invalid value for {option}" in " ".join(result.stderr.split())


@pytest.mark.parametrize("folder", ["empty", "gone", "goods/nut/0.png"])
def test_fit_without_a_folder_of_images_is_one_line(fitting: Callable[..., Result], goods: Path, folder: str) -> None:
    Path("empty").mkdir()
    assert folder in complaint(fitting(folder))


def test_fit_names_any_folder_of_any_bytes(fitting: Callable[..., Result], goods: Path) -> None:
    evil = os.fsdecode(b"\xff[red]\n=1+1")
    (goods / "nut").rename(goods / evil)
    result = fitting(goods)
    assert result.exit_code == 0
    assert "\\udcff[red]\\n=1+1: learnt from 5" in result.stdout
    assert run("score", goods).exit_code == 0
    assert run("calibrate", "mambaad.safetensors", goods).exit_code == 0


def test_fit_says_where_a_class_has_too_few_images_for_a_threshold_of_its_own(
    fitting: Callable[..., Result], goods: Path
) -> None:
    for name in ("0", "1", "2"):
        (goods / "nut" / f"{name}.png").unlink()
    result = fitting(goods)
    assert images_learnt(Path("mambaad.safetensors")) == {"bolt": 5, "nut": 3}
    assert any(line.startswith("mambaad: nut: too few images") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    ("n", "average", "confident"),
    [(5, "50%", 0.95), (10, "33.3%", 0.776), (20, "20%", 0.527), (40, "11.1%", 0.312)],
)
def test_few_images_give_a_model_that_says_what_its_promise_is_worth(
    fitting: Callable[..., Result], tmp_path: Path, n: int, average: str, confident: float
) -> None:
    held_out = n // 5
    for i in range(n):
        images.write(tmp_path / "nut" / f"{i}.png", picture(i))
    result = fitting("nut")
    assert result.exit_code == 0
    stated, complained = result.stdout, result.stderr
    assert f"estimated from {held_out} training photo" in stated
    (chosen,) = [line.split() for line in stated.splitlines() if line.endswith("(chosen)")]
    assert chosen[0] == average
    (product,) = store.load(Path("mambaad.safetensors")).products.values()
    assert product.calibration is not None
    assert product.calibration.ceiling == pytest.approx(confident, abs=0.001)
    assert complained.startswith(f"mambaad: nut: {held_out} good image{'s' if held_out > 1 else ''} cannot")
    assert f"cannot promise 4%, only 1 in {held_out + 1}; 24 do: mambaad calibrate MODEL GOOD_DIR" in complained
    assert complained.count("\n") == 1
    found = rows(run("score", "nut", "--csv").stdout)
    assert {row["verdict"] for row in found} <= {"good", "anomalous"}
    assert min(float(row["p_value"]) for row in found) >= 1 / (held_out + 1) - 1e-6


def test_three_images_promise_nothing_and_say_so(fitting: Callable[..., Result], tmp_path: Path) -> None:
    for i in range(3):
        images.write(tmp_path / "nut" / f"{i}.png", picture(i))
    result = fitting("nut")
    assert result.exit_code == 0
    assert "promises" not in result.stdout
    assert "mambaad: nut: no image was held out: the threshold promises nothing" in result.stderr
    assert {(row["verdict"], row["p_value"]) for row in rows(run("score", "nut", "--csv").stdout)} == {("good", "")}


def test_fit_promises_what_it_is_asked_for(fitting: Callable[..., Result], goods: Path) -> None:
    result = fitting(goods / "nut", "--max-false-reject", "50 %")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "estimated from 1 training photo\n" in result.stdout
    assert "promises" not in result.stdout  # that is for photos that no part of the model has seen
    (chosen,) = [line.split() for line in result.stdout.splitlines() if line.endswith("(chosen)")]
    assert chosen[0] == "50%"
    shares = {
        product.calibration.max_false_reject
        for product in store.load(Path("mambaad.safetensors")).products.values()
        if product.calibration
    }
    assert shares == {0.5}


@pytest.mark.parametrize("path", ["goods", "weights.safetensors/a.safetensors"])
def test_a_model_that_cannot_be_written_is_one_line_before_any_training(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("trained for nothing")

    monkeypatch.setattr(loop.TrainingLoop, "advance", train)
    assert path in complaint(fitting(goods, "--model", path))


def test_a_disk_that_is_full_at_the_end_is_one_line_and_the_training_is_kept(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    with monkeypatch.context() as full:
        full.setattr(store, "save", disk_is_full)
        assert "disk full" in complaint(fitting(goods))
    done = fitting(goods, "--resume")
    assert done.exit_code == 0
    assert "starting anew" not in done.stderr
    once = load_file("mambaad.safetensors")
    fitting(goods)
    assert all(torch.equal(tensor, once[name]) for name, tensor in load_file("mambaad.safetensors").items())


def disk_is_full(record: ModelRecord, path: Path) -> None:
    raise MambaADError(f"cannot write {path}: disk full")


def test_a_really_full_disk_is_one_line(goods: Path, fitting: Callable[..., Result]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        line = complaint(fitting(goods))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert line.startswith("cannot write mambaad.safetensors: ")
    assert not list(Path.cwd().glob("*mambaad*"))


@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_fit_says_how_to_go_on_and_resumes_to_the_same_file(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Step 3 is the last."""
    told = FitProgress.step

    def interrupted(self: FitProgress, at: int, *facts: Any) -> None:
        told(self, at, *facts)
        if at == step:
            raise KeyboardInterrupt

    fitting(goods, "--model", "once.safetensors")
    with monkeypatch.context() as stopped:
        stopped.setattr(FitProgress, "step", interrupted)
        result = fitting(goods)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "--resume" in result.stderr
    assert not Path("mambaad.safetensors").exists()
    assert fitting(goods, "--resume").exit_code == 0
    assert Path("mambaad.safetensors").read_bytes() == Path("once.safetensors").read_bytes()
    assert not list(Path.cwd().glob(".*"))


def test_resume_says_what_it_takes_from_the_stopped_run_instead(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: FitProgress, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(FitProgress, "step", interrupted)
        fitting(goods)
    result = fitting(goods, "--resume", "--epochs", 40, "--lr", 0.1, "--batch", 2)
    assert all(option in result.stderr for option in ("--epochs", "--lr", "--batch"))


def test_add_teaches_the_model_a_product(fitting: Callable[..., Result], goods: Path) -> None:
    assert fitting(goods / "nut").exit_code == 0
    result = run("fit", goods / "bolt", "--add", "--epochs", 1, "--batch", 4)
    assert result.exit_code == 0
    assert "nut: learnt from 5 good images, 1 held out" in result.stdout
    assert "bolt: learnt from 5 good images, 1 held out" in result.stdout
    assert {row["class"] for row in rows(run("score", goods, "--csv").stdout)} == {"nut", "bolt"}


def test_add_takes_the_models_own_settings(model: Path, goods: Path) -> None:
    result = run("fit", goods, "--add", "--res", 64, "--scan", "sweep")
    assert result.exit_code == 2
    assert all(option in result.stderr for option in ("--res", "--scan"))


@pytest.mark.parametrize(("option", "why"), [(["--folds", 3], "one training"), (["--no-examples"], "forgotten")])
def test_add_refuses_what_it_cannot_do_by_its_true_reason(
    model: Path, goods: Path, option: list[object], why: str
) -> None:
    result = run("fit", goods, "--add", *option, TERMINAL_WIDTH="200", COLUMNS="200")
    assert result.exit_code == 2
    assert why in result.stderr
    assert str(option[0]) in result.stderr


def test_add_obeys_flips_and_the_share_of_false_rejects(fitting: Callable[..., Result], goods: Path) -> None:
    fitting(goods / "nut")
    result = run("fit", goods / "bolt", "--add", "--epochs", 1, "--batch", 4, "--flips", "--max-false-reject", "20%")
    assert result.exit_code == 0, result.output
    fitted = store.load(Path("mambaad.safetensors"))
    measured = fitted.products["bolt"].calibration
    assert measured is not None
    assert (measured.max_false_reject, fitted.recipe["flips"]) == (0.2, True)


def test_resume_without_the_folds_of_the_stopped_fit_is_refused(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: FitProgress, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(FitProgress, "step", interrupted)
        fitting(goods, "--folds", 3)
    refused = fitting(goods, "--resume")
    assert refused.exit_code == 1
    assert "checkpoint of other images or settings: fit without --resume" in refused.stderr
    assert fitting(goods, "--folds", 3, "--resume").exit_code == 0


def test_a_product_is_called_what_a_link_to_its_folder_is_called(
    fitting: Callable[..., Result], goods: Path, tmp_path: Path
) -> None:
    (tmp_path / "washer").symlink_to(goods / "nut")
    assert fitting("washer").exit_code == 0
    assert images_learnt(Path("mambaad.safetensors")) == {"washer": 5}


def test_resume_without_a_checkpoint_says_so_and_starts(fitting: Callable[..., Result], goods: Path) -> None:
    result = fitting(goods, "--resume")
    assert result.exit_code == 0
    assert "no checkpoint of a stopped run" in result.stderr


def test_max_minutes_train_at_least_one_step(fitting: Callable[..., Result], goods: Path) -> None:
    result = fitting(goods, "--max-minutes", "0.01")
    assert result.exit_code == 0
    assert Path("mambaad.safetensors").exists()


def test_fit_takes_any_size(fitting: Callable[..., Result], goods: Path) -> None:
    assert fitting(goods, "--res", "70x33", "--letterbox").exit_code == 0
    assert run("score", goods).exit_code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--directions", "3"], "cannot be walked in 3 directions"),
        (["--directions", "6", "--scan", "sweep"], "cannot be walked in 6 directions"),
        (["--encoder", "no_such_net"], "no encoder 'no_such_net'"),
        (["--encoder", "test_vit"], "not weights of test_vit"),
        (["--encoder", "hf-hub:no/such"], "no encoder 'hf-hub:no/such'"),
        (["--encoder-weights", "gone.pth"], "no file gone.pth"),
        (["--encoder-weights", "goods"], "goods"),
        (["--encoder", "test_efficientnet"], "test_efficientnet"),
        (["--seed", "9" * 30], "--seed"),
        (["--lr", "1e9"], "--lr"),
    ],
)
def test_what_fit_cannot_do_is_one_line(
    fitting: Callable[..., Result], goods: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = fitting(goods, *options)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    if result.exit_code == 1:
        complaint(result)
    assert not Path("mambaad.safetensors").exists()


# ---- score ----


def test_score_csv_has_a_header_and_a_row_an_image_in_the_order_given(model: Path, goods: Path) -> None:
    result = run("score", "goods/nut/3.png", "goods/bolt", "goods/nut", "--csv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "path,class,score,threshold,verdict,error,p_value,certainty,warning"
    found = rows(result.stdout)
    assert [row["path"] for row in found] == [
        "goods/nut/3.png",
        *(f"goods/bolt/{i}.png" for i in range(6)),
        *(f"goods/nut/{i}.png" for i in (0, 1, 2, 4, 5)),
    ]
    for row in found:
        assert row["class"] == row["path"].split("/")[1]
        assert 0 < float(row["p_value"]) <= 1
        assert float(row["threshold"]) == {"nut": 3.0, "bolt": 4.0}[row["class"]]
        assert row["verdict"] == ("anomalous" if float(row["score"]) > float(row["threshold"]) else "good")


def test_score_json_has_an_object_a_line_with_the_same_values(model: Path, goods: Path) -> None:
    found = [json.loads(line) for line in run("score", goods, "--json").stdout.splitlines()]
    expected = rows(run("score", goods, "--csv").stdout)
    columns = list(expected[0])
    assert all(list(one)[: len(columns)] == columns for one in found)
    assert [{key: "" if one[key] is None else str(one[key]) for key in columns} for one in found] == [
        {key: str(float(value)) if key in ("score", "threshold", "p_value") else value for key, value in one.items()}
        for one in expected
    ]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert all((one["schema"], one["model"]) == (1, digest[:12]) for one in found)
    grey = cv2.imread(str(goods / "bolt" / "0.png"), cv2.IMREAD_GRAYSCALE)
    assert found[0]["path"].endswith("bolt/0.png")
    assert found[0]["brightness"] == pytest.approx(grey.mean() / 255, abs=0.01)


def test_json_has_regions_where_an_image_is_anomalous(model: Path, goods: Path) -> None:
    (goods / "bad.png").write_text("text")
    found = [
        json.loads(line) for line in run("score", goods, "--json", "--regions", "--class", "nut").stdout.splitlines()
    ]
    assert {row["verdict"] for row in found} >= {"anomalous", "error"}
    for row in found:
        if row["verdict"] == "error":
            assert row["regions"] is None
        else:
            assert bool(row["regions"]) == (row["verdict"] == "anomalous")
            assert [region["peak"]["value"] for region in row["regions"][:1]] in ([], [row["score"]])
    large = run("score", goods, "--json", "--regions", "--class", "nut", "--min-area", 10**6).stdout.splitlines()
    assert {str(json.loads(line)["regions"]) for line in large} == {"[]", "None"}


def test_review_is_a_verdict_of_its_own_and_no_anomaly(tiny_model: FittedModel, model: Path, goods: Path) -> None:
    with_scores(tiny_model, {"nut": [0.001, 0.001, 1e6], "bolt": [0.001, 1e6, 1e6]}).save(model)
    result = run("score", goods, "--review", "50%", "--fail-on-anomaly")
    assert result.exit_code == 0
    assert "12 images: 6 review, 6 good" in result.stdout or "12 images: 6 good, 6 review" in result.stdout
    assert "mambaad: bolt: 3 good images are too few to tell 50% from 4%" in result.stderr
    found = rows(run("score", goods, "--review", "0.5", "--csv").stdout)
    assert {(row["class"], row["verdict"]) for row in found} == {("nut", "review"), ("bolt", "good")}
    assert {float(row["threshold"]) for row in found} == {1e6}
    assert run("map", goods, "-o", "out", "--review", "50%").exit_code == 0


@pytest.mark.parametrize("command", [["score"], ["map", "-o", "out"]])
def test_a_review_band_must_be_wider_than_the_threshold(model: Path, goods: Path, command: list[str]) -> None:
    assert complaint(run(*command, goods, "--review", "3%")) == "--review 3% must be more than the 4% of the threshold"


@pytest.mark.parametrize("kind", ["--csv", "--json"])
def test_output_writes_to_a_file_what_stdout_would_show(model: Path, goods: Path, kind: str) -> None:
    shown = run("score", goods, kind)
    written = run("score", goods, kind, "-o", "new/rows.txt")
    assert (written.exit_code, written.stdout) == (0, "")
    texts = [re.sub('"time": "[^"]*"', "", text) for text in (Path("new/rows.txt").read_text(), shown.stdout)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("path", ["goods/nut/0.png", "mambaad.safetensors"])
def test_rows_are_never_written_over_an_image_or_the_model(model: Path, goods: Path, path: str) -> None:
    before = Path(path).read_bytes()
    assert path in complaint(run("score", "goods", "--csv", "-o", path))
    assert Path(path).read_bytes() == before


def test_score_ends_with_3_on_an_anomaly_if_asked(model: Path, goods: Path) -> None:
    assert run("score", goods, "--class", "bolt", "--fail-on-anomaly").exit_code == 0
    assert run("score", goods, "--class", "nut", "--csv").exit_code == 0
    assert run("score", goods, "--class", "nut", "--csv", "--fail-on-anomaly").exit_code == 3
    (goods / "bad.png").write_text("text")
    assert run("score", goods, "--class", "nut", "--fail-on-anomaly").exit_code == 3
    assert run("score", goods, "--class", "bolt", "--fail-on-anomaly").exit_code == 1


def test_a_class_that_the_model_does_not_know_is_one_line(model: Path, goods: Path) -> None:
    line = complaint(run("score", goods, "--class", "nutt", "--csv"))
    assert "nutt" in line
    assert "nut, bolt" in line


def test_the_model_is_named_by_the_option_before_the_environment_before_the_default(model: Path, goods: Path) -> None:
    model.rename("other.safetensors")
    assert "mambaad.safetensors" in complaint(run("score", goods))
    assert run("score", goods, MAMBAAD_MODEL="other.safetensors").exit_code == 0
    assert "no model gone" in complaint(run("score", goods, "-m", "gone", MAMBAAD_MODEL="other.safetensors"))


def test_a_path_that_is_not_there_is_a_row_and_the_others_are_scored(model: Path, goods: Path) -> None:
    result = run("score", "gone.png", "goods/nut", "gone/too", "--csv")
    assert result.exit_code == 1
    found = rows(result.stdout)
    assert [row["verdict"] == "error" for row in found] == [True, *[False] * 6, True]
    assert (found[0]["error"], found[0]["score"], found[0]["threshold"]) == ("no such file", "", "")


@pytest.mark.parametrize("command", [["score"], ["map", "-o", "out"]])
def test_an_empty_folder_is_one_line(model: Path, goods: Path, command: list[str]) -> None:
    Path("empty\n").mkdir()
    assert "no images in empty\\n" in complaint(run(*command, "goods", "empty\n"))


def test_formula_cells_are_harmless_in_every_column(model: Path, goods: Path) -> None:
    names = ["=1+1.png", "+1.png", "@a.png", "\ta.png", "-1.png"]
    for name in names:
        shutil.copy(goods / "nut" / "0.png", name)
    found = rows(run("score", "--csv", "--", *names).stdout)
    assert [row["path"] for row in found] == [f"'{name}" for name in names]


def test_names_of_any_bytes_come_through_csv_and_json(model: Path, goods: Path) -> None:
    names = [b"two words.png", b"two\nlines.png", "größe 検査.png".encode(), b"\xff\xfe.png", b'a,"b".png', b"\r.png"]
    for name in names:
        shutil.copy(goods / "nut" / "0.png", os.fsdecode(b"goods/bolt/" + name))
    expected = {os.fsdecode(b"goods/bolt/" + name) for name in names}
    as_csv = run("score", "goods", "--csv")
    ascii_only = CliRunner(charset="ascii").invoke(app, ["score", "goods", "--csv"])
    for result in (as_csv, ascii_only):
        assert (result.exit_code, result.stderr) == (0, "")
        assert {row["path"] for row in rows(os.fsdecode(result.stdout_bytes))} >= expected
    as_json = run("score", "goods", "--json").stdout.splitlines()
    assert {json.loads(line)["path"] for line in as_json} >= expected
    assert run("score", "goods").exit_code == 0


def test_the_table_shows_the_worst_first_in_80_columns(model: Path, goods: Path) -> None:
    result = run("score", goods)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "12 images:" in result.stdout
    verdicts = [word for line in lines[:-1] for word in line.split() if word in ("good", "anomalous")]
    assert sorted(verdicts) == verdicts
    assert len(verdicts) == 12


def test_without_a_threshold_images_are_uncalibrated_and_maps_say_what_next(
    tiny_model: FittedModel, model: Path, goods: Path
) -> None:
    with_scores(tiny_model, {}).save(model)
    found = rows(run("score", goods, "--csv").stdout)
    assert {(row["threshold"], row["verdict"]) for row in found} == {("", "uncalibrated")}
    assert "uncalibrated" in run("score", goods).stdout
    assert "mambaad calibrate" in complaint(run("map", goods, "-o", "out"))
    assert run("calibrate", model, goods).exit_code == 0
    assert {row["verdict"] for row in rows(run("score", goods, "--csv").stdout)} == {"good"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_is_one_line(model: Path, goods: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mambaad_cli", "score", str(goods)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=False,
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"mambaad: cannot write stdout: No space left on device" in done.stderr


# ---- calibrate ----


def test_calibrate_sets_thresholds_by_class_without_training(model: Path, goods: Path) -> None:
    before = load_file(model)
    result = run("calibrate", model, goods)
    assert result.exit_code == 0
    after = store.load(model)
    assert {name: len(scores) for name, scores in scores_in(after).items()} == {"bolt": 6, "nut": 6}
    assert images_learnt(model) == {"nut": 9, "bolt": 8}
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(model).items())
    assert {row["verdict"] for row in rows(run("score", goods, "--csv").stdout)} == {"good"}


def test_calibrating_one_class_leaves_the_others_as_they_are(model: Path, goods: Path) -> None:
    assert run("calibrate", model, goods / "nut").exit_code == 0
    after = store.load(model)
    assert len(scores_in(after)["nut"]) == 6
    assert scores_in(after)["bolt"] == [2.0, 4.0]
    assert {name: len(photos_in(after, name)) for name in ("nut", "bolt")} == {"nut": 6, "bolt": 0}


def test_calibrate_names_unreadable_images_and_keeps_the_model_if_there_are_no_others(model: Path, goods: Path) -> None:
    (goods / "nut" / "9.png").write_text("text")
    result = run("calibrate", model, goods)
    assert result.exit_code == 1
    assert f"mambaad: {goods}/nut/9.png: not an image" in result.stderr
    before = model.read_bytes()
    for path in goods.rglob("*.png"):
        path.write_text("text")
    assert run("calibrate", model, goods).exit_code == 1
    assert model.read_bytes() == before


def test_calibrate_recognises_the_product_of_each_image_in_a_flat_folder(
    fitting: Callable[..., Result], goods: Path, tmp_path: Path
) -> None:
    fitting(goods)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(goods.rglob("*.png"))):
        shutil.copy(path, flat / f"{i}.png")
    before = images_learnt(Path("mambaad.safetensors"))
    result = run("calibrate", "mambaad.safetensors", flat)
    assert result.exit_code == 0, result.output
    after = store.load(Path("mambaad.safetensors"))
    assert {name: len(scores) for name, scores in scores_in(after).items()} == {"bolt": 6, "nut": 6}
    assert images_learnt(Path("mambaad.safetensors")) == before


def test_calibrate_asks_for_the_product_where_nothing_tells_it(model: Path, goods: Path, tmp_path: Path) -> None:
    """The tiny model has no recogniser."""
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(goods / "nut" / "0.png", flat / "0.png")
    line = complaint(run("calibrate", model, flat))
    assert "--class" in line
    assert "nut, bolt" in line
    assert images_learnt(model) == {"nut": 9, "bolt": 8}
    assert run("calibrate", model, flat, "--class", "nut").exit_code == 0
    assert len(scores_in(store.load(model))["nut"]) == 1
    assert "no class 'gear'" in complaint(run("calibrate", model, flat, "--class", "gear"))


def test_calibrating_at_another_size_sets_the_limit_of_what_is_recognised_and_products_can_still_be_added(
    fitting: Callable[..., Result], goods: Path, tmp_path: Path
) -> None:
    fitting(goods)
    before = store.load(Path("mambaad.safetensors"))
    assert run("calibrate", "mambaad.safetensors", goods, "--res", 96).exit_code == 0
    after = store.load(Path("mambaad.safetensors"))
    assert before.recogniser is not None
    assert after.recogniser is not None
    assert 0 < after.unknown_limit < math.inf
    assert after.unknown_limit != before.unknown_limit
    taken = [one.photo for one in mambaad_cli.load("mambaad.safetensors").predict_many([goods / "nut"])]
    np.testing.assert_allclose(photos_in(after, "nut"), [one for one in taken if one], rtol=1e-6)
    assert photos_in(after, "nut") != photos_in(before, "nut")
    for i in range(6):
        images.write(tmp_path / "new" / "washer" / f"{i}.png", picture(200 + i))
    result = run("fit", tmp_path / "new", "--add", "--epochs", 1, "--batch", 4)
    assert result.exit_code == 0, result.output
    assert store.load(Path("mambaad.safetensors")).network.settings.size == (96, 96)


def test_calibrate_keeps_the_share_or_takes_another(model: Path, goods: Path) -> None:
    result = run("calibrate", model, goods, "--max-false-reject", "20%")
    assert "new photos" in result.stdout
    assert "promises: of new good images at most 20% are rejected" in result.stdout
    assert "cannot promise" not in result.stderr
    assert run("calibrate", model, goods / "nut").exit_code == 0
    after = store.load(model)
    nut = after.products["nut"].calibration
    assert nut is not None
    assert nut.max_false_reject == 0.2
    assert nut.threshold == sorted(nut.scores)[-1]
    assert nut.threshold_for(0.3) == sorted(nut.scores)[-2]


def test_another_share_needs_no_images(model: Path) -> None:
    assert run("calibrate", model, "--max-false-reject", "0.5").exit_code == 0
    after = store.load(model)
    assert {name: product.threshold for name, product in after.products.items()} == {"nut": 2.0, "bolt": 4.0}
    assert scores_in(after) == {"nut": [1.0, 2.0, 3.0], "bolt": [2.0, 4.0]}


def test_another_share_of_no_scores_is_one_line(tiny_model: FittedModel, model: Path) -> None:
    with_scores(tiny_model, {}).save(model)
    assert "keeps no scores of good images" in complaint(run("calibrate", model, "--max-false-reject", "5%"))


# ---- map ----


def test_map_lists_regions_if_asked(model: Path, goods: Path) -> None:
    result = run("map", goods, "-o", "out", "--regions", "--class", "nut")
    assert result.exit_code == 0
    assert "12 overlays, contact_sheet.png and regions.jsonl in out" in result.stdout
    listed = Path("out/regions.jsonl").read_text().splitlines()
    scored = run("score", goods, "--json", "--regions", "--class", "nut").stdout.splitlines()
    untimed = [[json.loads(line) | {"time": ""} for line in lines] for lines in (listed, scored)]
    assert untimed[0] == untimed[1]


def test_map_names_unreadable_images_and_ends_with_status_1(model: Path, goods: Path) -> None:
    (goods / "nut" / "9\n.png").write_text("text")
    result = run("map", goods, "gone.png", "-o", "out")
    assert result.exit_code == 1
    assert f"mambaad: {goods}/nut/9\\n.png: not an image" in result.stderr
    assert "mambaad: gone.png: no such file" in result.stderr
    assert "12 overlays" in result.stdout
    assert len(list(Path("out").rglob("*.png"))) == 13


def test_map_says_what_it_wrote_even_into_a_folder_of_any_bytes(model: Path, goods: Path) -> None:
    result = run("map", goods, "-o", os.fsdecode(b"\xff"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "12 overlays and contact_sheet.png in \\udcff" in result.stdout


def test_an_output_folder_that_is_a_file_is_one_line(model: Path, goods: Path) -> None:
    Path("file").touch()
    assert "file" in complaint(run("map", goods, "-o", "file"))


# ---- a folder of evil files, as a line would leave them ----

GOOD = ("1x1.png", "16bit.png", "grey.png", "palette.png", "alpha.png", "cmyk.jpg", "turned.jpg", "float.tif")
BROKEN = {
    "zero.png": "empty: the file has zero bytes",
    "text.png": "not an image",
    "cut.jpg": "truncated",
    "bomb.png": "claims 40000×40000 pixels",
    "self.png": "too many levels of symbolic links",
    "nowhere.png": "no such file",
}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    folder, photo = tmp_path / "evil", picture()
    folder.mkdir()
    image = Image.fromarray(photo)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo[:1, :1]).save(folder / "1x1.png")
    cv2.imwrite(str(folder / "16bit.png"), photo[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "float.tif"), photo.astype(np.float32) / 255)
    image.convert("L").save(folder / "grey.png")
    image.quantize().save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "turned.jpg", exif=turned)
    image.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "zero.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "loop").symlink_to(".")
    (folder / "self.png").symlink_to("self.png")
    (folder / "nowhere.png").symlink_to("nothing.png")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("no image, and not listed")
    return folder


def bomb() -> bytes:
    """A PNG of some bytes that claims 40,000 × 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_evil_files_are_rows_with_their_reasons_and_the_others_are_scored(model: Path, evil: Path) -> None:
    result = run("score", evil, "--csv")
    assert (result.exit_code, result.stderr) == (1, "")
    found = {Path(row["path"]).name: row for row in rows(result.stdout)}
    assert set(found) == {*GOOD, *BROKEN}
    for name, reason in BROKEN.items():
        assert found[name]["error"].startswith(reason), name
        assert (found[name]["verdict"], found[name]["score"]) == ("error", "")
    for name in GOOD:
        assert (found[name]["verdict"], found[name]["error"]) == ("good", ""), name
        assert 0 < float(found[name]["score"]) < 4
    assert float(found["alpha.png"]["score"]) == pytest.approx(
        float(rows(run("score", evil / "alpha.png", "--csv").stdout)[0]["score"]), rel=1e-5
    )


def test_evil_files_are_all_named_in_the_table(model: Path, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evil.parent)
    result = run("score", "evil")
    assert result.exit_code == 1
    for name in (*GOOD, *BROKEN):
        assert f"evil/{name}" in result.stdout
    assert "14 images: 8 good, 6 error" in result.stdout


def test_evil_files_have_overlays_of_their_own_size_or_a_line(model: Path, evil: Path) -> None:
    result = run("map", evil, "-o", "out", "--raw", "npy")
    assert result.exit_code == 1
    assert "8 overlays" in result.stdout
    for name in GOOD:
        overlay = images.read((Path("out") / name).with_suffix(".png"))
        assert overlay.shape == images.read(evil / name).shape, name
    assert images.read(Path("out/turned.png")).shape == (96, 80, 3)
    assert len(list(Path("out").iterdir())) == 2 * len(GOOD) + 1
    for name, reason in BROKEN.items():
        assert f"mambaad: {evil}/{name}: {reason}" in result.stderr


def test_fit_takes_the_readable_of_evil_files(fitting: Callable[..., Result], evil: Path) -> None:
    result = fitting(evil)
    assert result.exit_code == 1
    assert images_learnt(Path("mambaad.safetensors")) == {"evil": 7}
    for name in BROKEN:
        assert f"mambaad: left out {evil}/{name}: " in result.stderr
