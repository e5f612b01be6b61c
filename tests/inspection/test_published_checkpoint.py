"""Published checkpoints: made up from their published lists of names and shapes, one of each layout."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from mambaad_cli import MambaADError
from mambaad_cli.cli import app
from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.inspection.published_checkpoint import import_published
from mambaad_cli.model.mambaad import LSSModule
from tests.conftest import GOLDEN, picture
from tests.model.test_mambaad import BLOCK_NAMES, MODULE_NAMES, load_published

LAYOUTS = ["mambaad_repo", "ader"]
State = dict[str, Tensor]


def made_up(layout: str) -> State:
    """A state dict as published: random weights of sensible size under the listed names."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for line in (GOLDEN / f"checkpoint_keys_{layout}.txt").read_text().splitlines():
        name, shape, dtype = line.split("\t")
        sides = [int(side) for side in shape.strip("()").split(",") if side.strip()]
        if dtype == "int64":
            state[name] = torch.zeros(sides, dtype=torch.int64)
            continue
        noise = torch.randn(sides, generator=generator)
        fan_in = max(1, noise[0].numel()) if len(sides) > 1 else 1
        state[name] = noise * fan_in**-0.5
        if re.search(r"running_var$|norm\.weight$|\.bn\w{0,2}\.weight$|downsample\.1\.weight$", name):
            state[name] = 0.5 + noise.abs()
        if name.endswith("A_logs"):
            state[name] = noise * 0.3
        if name.endswith("dt_projs_bias"):
            state[name] = noise - 4
    return state


@pytest.fixture(scope="module", params=LAYOUTS)
def state(request: pytest.FixtureRequest) -> State:
    return made_up(request.param)


def published_forward(state: State, features: list[Tensor]) -> list[Tensor]:
    """Bottleneck and decoder written down anew from the published names; the LSS module is tested elsewhere."""
    own = {k.removeprefix("mff_oce."): v for k, v in state.items() if k.startswith("mff_oce.")}

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = own[f"{conv}.weight"]
        x = F.conv2d(x, weight, own.get(f"{conv}.bias"), stride, weight.shape[-1] // 2)
        stored = [own[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *stored)

    fine, middle, coarse = features
    x = conv_bn(fine, "conv1", "bn1", 2).relu() + conv_bn(middle, "conv21", "bn21").relu()
    x = conv_bn(x, "conv2", "bn2", 2).relu() + conv_bn(coarse, "conv31", "bn31").relu()
    x = conv_bn(x, "convf", "bnf").relu()
    for i in range(3):
        block, stride = f"bn_layer.{i}", 2 if i == 0 else 1
        y = conv_bn(x, f"{block}.conv1", f"{block}.bn1").relu()
        y = conv_bn(y, f"{block}.conv2", f"{block}.bn2", stride).relu()
        y = conv_bn(y, f"{block}.conv3", f"{block}.bn3")
        x = (y + (conv_bn(x, f"{block}.downsample.0", f"{block}.downsample.1", 2) if i == 0 else x)).relu()

    x = x.permute(0, 2, 3, 1)
    outputs = []
    for stage, depths in enumerate([[3], [2, 2], [3, 3], [3]]):
        prefix = f"net_s.layers_up.{stage}"
        if stage:
            b, h, w, _ = x.shape
            x = F.linear(x, state[f"{prefix}.upsample.expand.weight"])
            x = x.view(b, h, w, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)
            norm = [state[f"{prefix}.upsample.norm.{name}"] for name in ("weight", "bias")]
            x = F.layer_norm(x, x.shape[-1:], *norm)
        for i, depth in enumerate(depths):
            module = LSSModule(x.shape[-1], "hilbert", 8, [0.0] * depth).eval()
            names = f"{prefix}.blocks.{i}."
            weights = {k.removeprefix(names): v.numpy() for k, v in state.items() if k.startswith(names)}
            weights = {k: v for k, v in weights.items() if "index_flat" not in k and "conv33" not in k}
            weights = {k.replace("1b3", "1b7").replace("1a3", "1a7"): v for k, v in weights.items()}
            load_published(module, weights, BLOCK_NAMES | MODULE_NAMES)
            x = module(x)
        outputs.append(x.permute(0, 3, 1, 2))
    return outputs[:0:-1]


@torch.no_grad()
def test_imported_network_rebuilds_features_as_the_published_one(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "published.pth")
    model = import_published(tmp_path / "published.pth")
    features = [torch.randn(1, c, s, s) for c, s in ((64, 32), (128, 16), (256, 8))]
    for found, expected in zip(model.network.detector(features), published_forward(state, features), strict=True):
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert torch.equal(model.network.encoder.net.layer3[5].conv2.weight, state["net_t.layer3.5.conv2.weight"])
    assert torch.equal(model.network.encoder.net.bn1.running_var, state["net_t.bn1.running_var"])


def test_each_wrapping_is_found(state: State, tmp_path: Path) -> None:
    """The state dict itself, under a key, with `module.` before each name."""
    wrapped = {"net": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 1000}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    model = import_published(tmp_path / "wrapped.pth")
    weight = state["mff_oce.convf.weight"]
    assert torch.equal(model.network.detector.bottleneck.fuse[0].weight, weight)


def test_import_then_score_at_two_sizes(tmp_path: Path) -> None:
    torch.save(made_up("ader"), tmp_path / "published.pth")
    images.write(tmp_path / "in" / "a.png", picture(1))
    run = CliRunner().invoke(app, ["import", str(tmp_path / "published.pth"), "-o", str(tmp_path / "m.safetensors")])
    assert run.exit_code == 0, run.output
    scored = ["score", str(tmp_path / "in"), "-m", str(tmp_path / "m.safetensors"), "--csv"]
    lines = [CliRunner().invoke(app, [*scored, *res]).stdout.splitlines()[1] for res in ([], ["--res", "320x192"])]
    assert all(line.endswith("uncalibrated,,,,") for line in lines)
    assert lines[0] != lines[1]


def broken(state: State, kind: str) -> State:
    state = dict(state)
    if kind == "missing":
        del state["mff_oce.conv1.weight"]
    if kind == "extra":
        state["net_s.head.weight"] = torch.zeros(3)
    if kind == "shape":
        state["net_s.layers_up.0.blocks.0.smm_blocks.0.self_attention.Ds"] = torch.zeros(4096)
    return state


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("missing", "nothing for detector.bottleneck.fine_down.0.weight"),
        ("extra", "unexpected net_s.head.weight"),
        ("shape", r"self_attention.Ds has shape \(4096,\), where \(8192,\) is expected"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path, kind: str, line: str) -> None:
    torch.save(broken(made_up("ader"), kind), tmp_path / "broken.pth")
    with pytest.raises(MambaADError, match=line):
        import_published(tmp_path / "broken.pth")


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "sprung")


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    torch.save({"net": Trap(tmp_path / "sprung")}, tmp_path / "trap_zip.pth")
    for name in ("trap.pth", "trap_zip.pth"):
        run = CliRunner().invoke(app, ["import", str(tmp_path / name), "-o", str(tmp_path / "m.safetensors")])
        assert run.exit_code == 1
        assert len(run.stderr.splitlines()) == 1
        assert not (tmp_path / "sprung").exists()
        assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_checkpoint_is_one_line_and_writes_nothing(tmp_path: Path, keep: int) -> None:
    torch.save({"a": torch.zeros(5000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
    run = CliRunner().invoke(app, ["import", str(tmp_path / "cut.pth"), "-o", str(tmp_path / "m.safetensors")])
    assert run.exit_code == 1
    assert len(run.stderr.splitlines()) == 1
    assert "cut.pth" in run.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_imported_model_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    torch.save(made_up("ader"), tmp_path / "published.pth")
    model = import_published(tmp_path / "published.pth")
    store.save(model, tmp_path / "m.safetensors")
    again = store.load(tmp_path / "m.safetensors")
    assert (again.products, again.calibrated) == ({}, False)
    detectors = (imported.network.detector.parameters() for imported in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(*detectors, strict=True))
