"""The scan's backends against the recurrence as it is written, and that against published numbers."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, library

from mambaad_cli.benchmark.flops import FlopCounterMode  # which counts the scan
from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.plain_scan import chunked_scan, reference_scan
from mambaad_cli.model.kernels.selective_scan import selective_scan
from mambaad_cli.model.scan_orders import directions

compiled = pytest.mark.skipif(cpu.kernels() is None, reason="the optional kernels were not built: no C compiler")
Scan = Callable[..., Tensor]


@pytest.fixture(params=["portable", "AVX2", "AVX-512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine has."""
    library, level = cpu.kernels(), cpu.ISA.index(request.param)
    if library is None or level > library.mambaad_best_isa():
        pytest.skip(f"no {request.param} here")
    library.mambaad_isa = level
    yield request.param
    library.mambaad_isa = library.mambaad_best_isa()


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C compiler."""
    monkeypatch.setattr(cpu, "kernels", lambda: None)


def inputs(b: int, h: int, w: int, k: int, d: int, n: int, r: int, order: str = "hilbert") -> list[Tensor]:
    """Random u, x, dt_weight, dt_bias, A, D with Mamba's own scales, and the order."""
    step = torch.exp(torch.rand(k, d) * math.log(100) + math.log(0.001))
    tensors = [
        torch.randn(b, h * w, d),
        torch.randn(b, h * w, k, r + 2 * n),
        torch.randn(k, d, r) * r**-0.5,
        torch.log(torch.expm1(step)),
        -torch.exp(torch.randn(k, d, n) * 0.3 + torch.log(torch.arange(1.0, n + 1))),
        torch.randn(k, d),
    ]
    return [t.requires_grad_() for t in tensors] + [torch.from_numpy(directions(order, h, w, k).copy())]


def with_gradients(function: Scan, tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The output, then the gradients of sum(y · dy)."""
    y = function(*tensors)
    return [y, *torch.autograd.grad(y, tensors[:-1], dy)]


def assert_same(found: list[Tensor], expected: list[Tensor], relative: float = 1e-4) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= relative * b.abs().max()


def published(golden: Path, direction: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """One direction of the stored scan in our layout: inputs, dy, and output with gradients.

    It stores dt itself; a dt_weight of ones on the diagonal passes it through.
    """
    stored = {key: torch.from_numpy(value) for key, value in np.load(golden / "selective_scan.npz").items()}
    d, l = stored["D"].shape[0] // 4, stored["u"].shape[2]
    own = slice(direction * d, (direction + 1) * d)

    def rows(name: str) -> Tensor:  # (b, d, l) -> (b, l, d)
        return stored[name][:, own].transpose(1, 2).contiguous()

    def selected(dt: str, B: str, C: str) -> Tensor:
        parts = [rows(dt), stored[B][:, direction].transpose(1, 2), stored[C][:, direction].transpose(1, 2)]
        return torch.cat(parts, -1)[:, :, None].contiguous()

    tensors = [
        rows("u"),
        selected("dt", "B", "C"),
        torch.eye(d)[None],
        stored["dt_bias"][own][None],
        stored["A"][own][None],
        stored["D"][own][None],
    ]
    order = torch.arange(l, dtype=torch.int32)[None]
    expected = [
        rows("y"),
        rows("d_u"),
        selected("d_dt", "d_B", "d_C"),
        stored["d_dt_bias"][own][None],
        stored["d_A"][own][None],
        stored["d_D"][own][None],
    ]
    return [t.clone().requires_grad_() for t in tensors] + [order], rows("dy"), expected


@pytest.mark.parametrize("function", [reference_scan, chunked_scan, selective_scan])
@pytest.mark.parametrize("direction", range(4))
def test_published_numbers_and_gradients_are_matched(golden: Path, function: Scan, direction: int) -> None:
    tensors, dy, expected = published(golden, direction)
    found = with_gradients(function, tensors, dy)
    del found[3]  # the gradient of dt_weight, which the published scan has not
    assert_same(found, expected)


SHAPES = [(1, 5, 7, 8, 20, 16, 2), (2, 9, 8, 4, 70, 5, 3), (3, 1, 1, 2, 16, 16, 1), (2, 16, 17, 6, 130, 17, 8)]


@compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_the_recurrence_with_each_instruction_set_and_any_threads(
    isa: str, threads: int, shape: tuple[int, ...]
) -> None:
    tensors = inputs(*shape)
    dy = torch.randn_like(tensors[0])
    assert_same(with_gradients(selective_scan, tensors, dy), with_gradients(reference_scan, tensors, dy), 1e-4)


@compiled
def test_kernel_equals_the_recurrence_without_libgomp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own threads do the work where torch's team cannot be borrowed."""
    tensors = inputs(2, 6, 6, 2, 96, 16, 3)
    dy = torch.randn_like(tensors[0])
    expected = with_gradients(selective_scan, tensors, dy)
    monkeypatch.setattr(cpu.kernels(), "mambaad_parallel", None)
    assert_same(with_gradients(selective_scan, tensors, dy), expected, 0)


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_kernel_the_same_numbers_come_from_pytorch(shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    dy = torch.randn_like(tensors[0])
    assert_same(with_gradients(selective_scan, tensors, dy), with_gradients(reference_scan, tensors, dy), 2e-5)


def test_slow_decays_keep_their_memory_over_thousands_of_positions() -> None:
    """exp(dt A) just under 1 must not drift: an impulse is still there, by its exact share, at the end.

    A float just under 1 is known to 2⁻²⁵ at best, and 4096 of them multiply that: 1.2e-4 is what float32 can give.
    """
    l, d = 4096, 16
    step, A = 1e-3, -0.5
    u = torch.zeros(1, l, d)
    u[:, 0] = 1
    x = torch.cat([torch.zeros(1, l, 1, 1), torch.ones(1, l, 1, 2)], -1)  # rank 1, one state, B = C = 1
    bias = torch.full((1, d), math.log(math.expm1(step)))
    y = selective_scan(
        u, x, torch.zeros(1, d, 1), bias, torch.full((1, d, 1), A), torch.zeros(1, d), torch.arange(l)[None].int()
    )
    assert y[0, -1] == pytest.approx(torch.full((d,), step * math.exp(step * A * (l - 1))), rel=1.5e-4)


@pytest.mark.parametrize("bias", [-100.0, 60.0])
def test_extreme_steps_neither_overflow_nor_become_nan(bias: float) -> None:
    """dt of nothing leaves the skip; a huge dt forgets everything at once: y = C B dt u + D u."""
    u, x, weight, _, A, D, order = (t.detach() for t in inputs(1, 4, 4, 2, 16, 16, 1))
    y = selective_scan(u, x, weight * 0, torch.full_like(D, bias), A, D, order)
    dt = max(bias, 0.0)
    BC = (x[..., 1:17] * x[..., 17:]).sum(-1)  # (b, l, k)
    assert_same([y], [u * (dt * BC.sum(-1, keepdim=True) + D.sum(0))])


@compiled
def test_an_image_does_not_depend_on_its_batch() -> None:
    u, x, *rest = (t.detach() for t in inputs(5, 8, 8, 4, 48, 16, 3))
    together = selective_scan(u, x, *rest)
    assert torch.equal(together[3:4], selective_scan(u[3:4], x[3:4], *rest))


def test_flops_are_nine_for_each_state_and_two_for_each_step_of_the_projection() -> None:
    tensors = [t.detach() for t in inputs(2, 4, 8, 4, 24, 16, 3)]
    with FlopCounterMode(display=False) as counter:
        selective_scan(*tensors)
    assert counter.get_total_flops() == 2 * 32 * 4 * 24 * (9 * 16 + 2 * 3)


def test_operator_is_known_to_compilers_and_to_autograd() -> None:
    tensors = inputs(1, 3, 4, 2, 16, 4, 1)
    library.opcheck(
        torch.ops.mambaad.selective_scan.default, (*tensors, True), test_utils=("test_schema", "test_faketensor")
    )
