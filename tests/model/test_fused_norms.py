"""The fused normalisations with SiLU against PyTorch's operators."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.fused_norms import gated_norm, gated_norm_ref, normed_silu, normed_silu_ref

compiled = pytest.mark.skipif(cpu.kernels() is None, reason="the optional kernels were not built: no C compiler")


SHAPES = [(2, 5, 7, 24), (1, 64, 64, 40), (3, 9, 4, 112), (1, 3, 3, 5), (2, 4, 4, 131)]


def with_gradient(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    return [y, *torch.autograd.grad(y, inputs, dy)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_pytorch_in_value_and_gradient(shape: tuple[int, ...]) -> None:
    x, dy = 3 * torch.randn(shape) + 5, torch.randn(shape)
    for found, expected in zip(with_gradient(normed_silu, dy, x), with_gradient(normed_silu_ref, dy, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_kernel_equals_pytorch_in_value_and_gradients(shape: tuple[int, ...]) -> None:
    inputs = [3 * torch.randn(shape) + 5, 4 * torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])]
    dy = torch.randn(shape)
    pairs = zip(with_gradient(gated_norm, dy, *inputs), with_gradient(gated_norm_ref, dy, *inputs), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


@compiled
def test_gated_gradients_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [torch.randn(2, 9, 7, 40), torch.randn(2, 9, 7, 40), torch.randn(40), torch.randn(40)]
    dy = torch.randn(2, 9, 7, 40)
    many = with_gradient(gated_norm, dy, *inputs)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert all(torch.equal(a, b) for a, b in zip(many, with_gradient(gated_norm, dy, *inputs), strict=True))


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """E[x²] − E[x]² would lose them all."""
    x = torch.randn(1, 32, 32, 8)
    far = normed_silu(x + 1000)
    torch.testing.assert_close(far, normed_silu_ref((x + 1000).double()).float(), rtol=1e-3, atol=1e-3)


def test_constant_channels_give_zero_and_no_nan() -> None:
    y, dx = with_gradient(normed_silu, torch.ones(2, 3, 4, 20), torch.full((2, 3, 4, 20), 7.0))
    assert y.abs().max() == 0
    assert dx.isfinite().all()


@compiled
def test_operator_is_known_to_compilers() -> None:
    library.opcheck(
        torch.ops.mambaad.normed_silu.default,
        (torch.randn(2, 3, 4, 20),),
        test_utils=("test_schema", "test_faketensor"),
    )
    inputs = (torch.randn(2, 3, 4, 20), torch.randn(2, 3, 4, 20), torch.randn(20), torch.randn(20))
    library.opcheck(torch.ops.mambaad.gated_norm.default, inputs, test_utils=("test_schema", "test_faketensor"))
