"""FLOPs of modules with scans of mamba-ssm's form, and of ours, beside their formulas worked by hand."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn

import mambaad_cli
from mambaad_cli.benchmark import flops
from mambaad_cli.benchmark.module_flops import Flops, count_flops
from mambaad_cli.model.kernels.selective_scan import selective_scan
from tests.conftest import tiny_network

B, L, D, N = 2, 24, 6, 4


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> Tensor:  # fmt: skip
    """The recurrence of mamba-ssm's function, in plain PyTorch and with its signature: u, delta (b, d, l), A (d, n), B,
    C (b, n, l)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    delta = nn.functional.softplus(delta) if delta_softplus else delta
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))  # matrix products, which must not be counted twice
    y = torch.stack(ys, -1) + (0 if D is None else D[:, None] * u)
    return y if z is None else y * nn.functional.silu(z)


class Block(nn.Module):
    """A small Mamba block: x (b, l, d) to the same."""

    def __init__(self, gated: bool, function: Any = None) -> None:
        super().__init__()
        self.gated, self.function = gated, function
        self.x_proj = nn.Linear(D, 2 * N, bias=False)
        self.dt_proj = nn.Linear(D, D)
        self.A = nn.Parameter(-torch.rand(D, N))

    def forward(self, x: Tensor) -> Tensor:
        b, c = self.x_proj(x).mT.split(N, dim=1)
        u, delta = x.mT.contiguous(), self.dt_proj(x).mT
        z = u if self.gated else None
        scan = self.function or sys.modules[__name__].__dict__["selective_scan_fn"]
        return scan(u, delta, self.A, b, c, None, z=z, delta_softplus=True).mT


LINEAR = 2 * B * L * (D * 2 * N + D * D)
SCAN = 9 * B * L * D * N


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_scan_is_counted_by_its_function_whether_a_module_or_a_layer_holds_it(gated: bool, held: bool) -> None:
    block = Block(gated, selective_scan_fn if held else None)
    assert count_flops(block, (B, L, D)) == Flops(LINEAR, SCAN + gated * B * L * D)
    assert count_flops(nn.Sequential(block, block), (B, L, D)).total == 2 * (LINEAR + SCAN + gated * B * L * D)


def test_what_was_replaced_is_put_back_even_after_an_error() -> None:
    block = Block(gated=False, function=selective_scan_fn).train()
    here = sys.modules[__name__].__dict__
    before = here["selective_scan_fn"]
    count_flops(block, (B, L, D))
    with pytest.raises(RuntimeError):
        count_flops(block, (B, L, D + 1))
    assert here["selective_scan_fn"] is before
    assert block.function is before
    assert block.training
    assert block.x_proj.training


def test_the_compiled_function_is_counted_once_though_another_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in mamba-ssm: selective_scan_fn calls selective_scan_cuda.fwd, and a fused block calls fwd alone."""
    compiled = types.ModuleType("selective_scan_cuda")
    compiled.fwd = selective_scan_fn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", compiled)
    interface = types.ModuleType("interface")
    interface.selective_scan_fn = lambda *args, **more: compiled.fwd(*args, **more)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "interface", interface)

    def fused(*args: Any, **more: Any) -> Tensor:
        return compiled.fwd(*args, **more)

    def unfused(*args: Any, **more: Any) -> Tensor:
        return interface.selective_scan_fn(*args, **more)

    for function in (fused, unfused):
        assert count_flops(Block(False, function), (B, L, D)) == Flops(LINEAR, SCAN)


def test_an_operator_with_the_name_is_counted() -> None:
    @library.custom_op("mambaad_test::selective_scan_fwd", mutates_args=())
    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C)

    def called(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: None, **_: Any) -> Tensor:
        return scan(u, delta, A, B, C)

    assert count_flops(Block(False, called), (B, L, D)) == Flops(LINEAR, SCAN)


def test_a_scan_of_ours_has_the_same_formula() -> None:
    """d channels in k directions: as k · d channels of mamba-ssm's; and the projection of dt is a matrix product."""
    k, r = 2, 3

    class Ours(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            x, order = torch.rand(B, L, k, r + 2 * N), torch.arange(L, dtype=torch.int32).repeat(k, 1)
            ones = torch.ones(k, D)
            return selective_scan(u, x, torch.rand(k, D, r), ones, -torch.rand(k, D, N), ones, order)

    assert count_flops(Ours(), (B, L, D)) == Flops(2 * B * L * k * D * r, 9 * B * L * k * D * N)


def test_a_whole_detector_has_the_flops_of_the_benchmark() -> None:
    network = tiny_network()
    images = torch.rand(1, 3, 64, 64)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.detector = network.encoder, network.detector

        def forward(self, images: Tensor) -> Tensor:
            return self.detector.anomaly_map(self.encoder(images), (64, 64))

    maps = Maps()
    found = mambaad_cli.count_flops(maps, (1, 3, 64, 64))
    with torch.no_grad():
        assert tuple(found) == flops.count_flops(lambda: maps(images))
    assert found.scan > 0


def test_several_inputs_and_no_scan() -> None:
    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    assert count_flops(Product(), [(3, 5), (5, 7)]) == Flops(2 * 3 * 5 * 7, 0)
