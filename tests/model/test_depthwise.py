"""The depthwise convolution against PyTorch's operator."""

import pytest
import torch
from torch import library

from mambaad_cli.benchmark.flops import count_flops
from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.depthwise import depthwise, depthwise_ref

compiled = pytest.mark.skipif(cpu.kernels() is None, reason="the optional kernels were not built: no C compiler")
SHAPES = [(2, 5, 7, 24), (1, 64, 64, 40), (3, 9, 4, 112), (1, 1, 3, 5), (2, 40, 17, 131)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_pytorch_in_value_and_gradients(shape: tuple[int, ...], side: int, biased: bool) -> None:
    c = shape[-1]
    inputs = [torch.randn(shape), torch.randn(c, 1, side, side), *([torch.randn(c)] if biased else [])]
    inputs = [given.requires_grad_() for given in inputs]
    found, expected, dy = depthwise(*inputs), depthwise_ref(*inputs), torch.randn(shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    pairs = zip(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True)
    for own, pytorch in pairs:
        torch.testing.assert_close(own, pytorch, rtol=1e-4, atol=1e-5 * float(pytorch.abs().max()))


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, weight = torch.randn(4, 20, 30, 24), torch.randn(24, 1, 5, 5)
    assert torch.equal(depthwise(x, weight)[2:3], depthwise(x[2:3], weight))


@pytest.mark.parametrize("side", [1, 9])
def test_other_sides_are_left_to_pytorch(side: int) -> None:
    x, weight = torch.randn(1, 6, 6, 4), torch.randn(4, 1, side, side)
    torch.testing.assert_close(depthwise(x, weight), depthwise_ref(x, weight))


def test_its_flops_are_counted_as_those_of_a_convolution() -> None:
    x, weight = torch.randn(2, 8, 9, 16), torch.randn(16, 1, 5, 5)
    assert count_flops(lambda: depthwise(x, weight)) == (2 * x.numel() * 25, 0)
    assert count_flops(lambda: depthwise_ref(x, weight)) == (2 * x.numel() * 25, 0)


@compiled
@pytest.mark.parametrize("bias", [None, torch.randn(20)])
def test_operator_is_known_to_compilers(bias: torch.Tensor | None) -> None:
    inputs = (torch.randn(2, 3, 4, 20), torch.randn(20, 1, 3, 3), bias)
    library.opcheck(torch.ops.mambaad.depthwise.default, inputs, test_utils=("test_schema", "test_faketensor"))
