"""Two processes by torchrun on this machine's CPU, beside one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import mambaad_cli
from mambaad_cli import MambaADError, distributed
from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.model.data_parallel import WholeBatchRandom, share_batch_norms
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.recipe import RECIPES, RunOptions
from tests.conftest import TINY
from tests.training.conftest import Told, goods_of

ROOT = Path(mambaad_cli.__file__).parent.parent
PROGRAM = """
import json, os, sys
from pathlib import Path
from tests.test_distributed import losses
name, *paths = sys.argv[1:]
weights, goods, out = map(Path, paths)
found = losses(name, weights, goods, out.with_name(name))
if os.environ["RANK"] == "0":
    out.write_text(json.dumps(found))
"""
RUNS: dict[str, dict[str, Any]] = {
    "mambaad": {"options": TINY | {"drop_path": 0.5, "loss": "mse"}, "lr": 0.005},
    "tiles": {"options": TINY, "lr": 0.005, "tiles": (128, 128)},
    "minutes": {"options": TINY, "lr": 0.005, "max_minutes": 60},
    "uniad": {"options": {"grid": (4, 4), "width": 16, "layers": 1, "heads": 2, "hidden": 16}, "lr": 1e-3},
}


def losses(name: str, weights: Path, goods: Path, model: Path) -> list[float]:
    """The loss curve of four steps on batches of five; the fitted model is saved where it is calibrated."""
    files = images.find([goods])
    own = RUNS[name]
    detector = "uniad" if name == "uniad" else "mambaad"
    settings = Settings(detector, "test_resnet", (64, 64), False, own["options"], tiles=own.get("tiles"))
    recipe = replace(
        RECIPES["uniad" if name == "uniad" else "small"],
        epochs=None if "max_minutes" in own else 2,
        max_minutes=own.get("max_minutes"),
        batch=5,
        lr=own["lr"],
        views=0,
        memory_size=100,
    )
    told: list[float] = []
    progress = Told(lambda step, steps, loss, images: told.append(loss))
    record = fit(goods_of(files), settings, recipe, RunOptions(encoder_weights=weights), progress)
    if record.calibrated:
        store.save(record, model)
    return told


def torchrun(*args: object, timeout: float | None = None) -> "subprocess.CompletedProcess[str]":
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launch, *map(str, args)], capture_output=True, text=True, env=environment(), timeout=timeout
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.mark.parametrize(
    "name", ["mambaad", pytest.param("tiles", marks=pytest.mark.slow), pytest.param("uniad", marks=pytest.mark.slow)]
)
def test_two_processes_learn_as_one_does(name: str, goods: Path, weights: Path, tmp_path: Path) -> None:
    """Parts of three and two images; batch norm, dropout, drop path and jitter are those of the whole batch."""
    (tmp_path / "two").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    done = torchrun(tmp_path / "program.py", name, weights, goods, tmp_path / "two" / "losses.json")
    assert done.returncode == 0, done.stderr
    expected = losses(name, weights, goods, tmp_path / name)
    assert len(expected) == 4
    assert json.loads((tmp_path / "two" / "losses.json").read_text()) == pytest.approx(expected, rel=1e-5)
    assert list(load_file(tmp_path / "two" / name)) == list(load_file(tmp_path / name))
    two, one = (store.read_facts(path).products for path in (tmp_path / "two" / name, tmp_path / name))
    assert [product.tiles is None for product in two] == [product.tiles is None for product in one]
    counts = [[len(facts.calibration.scores) for facts in products if facts.calibration] for products in (two, one)]
    assert counts[0] == counts[1] == [6, 6] if name != "uniad" else [1, 1]


CLOCKS = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from mambaad_cli.training import fit, loop
from tests.test_distributed import losses
weights, goods, out = map(Path, sys.argv[1:])
began = time.monotonic()
apart = 1e6 if os.environ["RANK"] == "1" else 0.0
fit.time = SimpleNamespace(monotonic=lambda: began + (time.monotonic() - began) * apart)
loop.TrainingLoop.steps_within = lambda loop, seconds: 3
losses("minutes", weights, goods, out)
"""


@pytest.mark.slow
def test_processes_whose_clocks_differ_train_together(goods: Path, weights: Path, tmp_path: Path) -> None:
    """By the clock of the second one no time is left to train the decoder; the first one's, which stands still, decides
    for both."""
    (tmp_path / "program.py").write_text(CLOCKS)
    done = torchrun(tmp_path / "program.py", weights, goods, tmp_path / "model.safetensors", timeout=120)
    assert done.returncode == 0, done.stderr
    assert store.read_facts(tmp_path / "model.safetensors").recipe["evidence"] == "both"


def test_two_processes_score_as_one_does(tiny_model: FittedModel, goods: Path, tmp_path: Path) -> None:
    """Rows of unreadable images and of a last round that is not full among them."""
    tiny_model.save(tmp_path / "model.safetensors")
    (goods / "nut" / "3.png").write_text("text")
    command = ["-m", "mambaad_cli", "score", goods, "--csv", "--batch", 3, "--model", tmp_path / "model.safetensors"]
    one = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment())
    two = torchrun(*command)
    assert one.stdout.count("\n") == 13
    assert two.stdout == one.stdout
    assert (one.returncode, two.returncode) == (1, 1)  # for the unreadable one


@pytest.mark.parametrize(
    ("n", "world", "parts"), [(5, 2, [(0, 3), (3, 5)]), (8, 3, [(0, 3), (3, 6), (6, 8)]), (4, 1, [(0, 4)])]
)
def test_shares_follow_each_other_and_differ_by_one_image_at_most(
    monkeypatch: pytest.MonkeyPatch, n: int, world: int, parts: list[tuple[int, int]]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank, (start, stop) in enumerate(parts):
        monkeypatch.setenv("RANK", str(rank))
        assert distributed.share(n) == slice(start, stop)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def as_process(monkeypatch: pytest.MonkeyPatch, local_rank: int, world: int = 2) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "WORLD_SIZE": world, "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """torch.cuda.set_device refuses a device without a number, and NCCL two processes on one GPU."""
    devices = []
    for local_rank in range(2):
        as_process(monkeypatch, local_rank)
        devices.append(distributed.pick_device(device))
    assert devices == ["cuda:0", "cuda:1"]
    assert distributed.pick_device("cpu") == "cpu"
    assert distributed.pick_device("cuda:0") == "cuda:0"  # what is asked for by number is taken


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, local_rank=2, world=3)
    for device in ("auto", "cuda"):
        with pytest.raises(MambaADError, match="this machine has 2 GPUs .* --nproc-per-node 2"):
            distributed.pick_device(device)


@pytest.mark.usefixtures("two_gpus")
def test_one_process_names_its_gpu_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert [distributed.pick_device(device) for device in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(MambaADError, match="no device 'cuda:2'"):
        distributed.pick_device("cuda:2")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_share_draws_what_one_process_draws_for_these_images(layout: torch.memory_format) -> None:
    x = torch.ones(5, 4, 3, 3).contiguous(memory_format=layout)

    def draw(x: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(3)
        rows = torch.rand(2 * len(x), 7)  # such as heads beside images
        turned = F.dropout(x.transpose(0, 2).contiguous().transpose(0, 2), 0.4)
        return [F.dropout(x, 0.4), turned, torch.randn_like(x), torch.rand(len(x), 1), rows.view(len(x), 2, 7)]

    whole = draw(x)
    for own in (slice(0, 3), slice(3, 5)):
        with WholeBatchRandom(own, 5):
            shares = draw(x[own])
        assert all(torch.equal(share, drawn[own]) for share, drawn in zip(shares, whole, strict=True))


def test_batch_norm_over_one_process_is_batch_norm() -> None:
    plain, shared = nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4))
    share_batch_norms(shared, lambda x: x)
    x, dy = 3 + 2 * torch.randn(5, 4, 6, 7), torch.randn(5, 4, 6, 7)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        plain(one).backward(dy)
        shared(other).backward(dy)
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(other.grad, one.grad, atol=1e-5)
    for (name, a), (_, b) in zip(plain.state_dict().items(), shared.state_dict().items(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5), name
    assert torch.allclose(shared.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("command", [["map", ".", "-o", "out"], ["doctor"]])
def test_commands_that_do_not_share_their_work_say_so(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.stderr == f"mambaad: {command[0]} runs in one process: only fit and score share their work\n"
