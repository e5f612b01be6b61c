"""Depthwise convolution of (b, h, w, c), stride 1, zeros around the image: a kernel (cpu_depthwise.h) on the CPU."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, library

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.operators import operator

SIDES = (3, 5, 7)  # of the filters that the kernel knows


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel of x (b, h, w, c) with its own filter of weight (c, 1, side, side): (b, h, w, c)."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if weight.shape[2] not in SIDES or not cpu.suit(*tensors):
        return depthwise_ref(x, weight, bias)
    y: Tensor = torch.ops.mambaad.depthwise(x.contiguous(), weight, bias)
    return y


def depthwise_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in PyTorch's own operator: what the kernel is tested against."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[2] // 2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolved(x, weight, {} if bias is None else {"bias": bias})


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the weight and of the bias."""
    b, side = x.shape[0], weight.shape[2]
    dx = _convolved(dy, weight, {}, flipped=1)
    d_taps = x.new_empty(b, side * side + 1, x.shape[3])
    _call(x, side, {"x": x, "dy": dy, "d_weight": d_taps})
    taps, d_bias = d_taps.sum(0).split([side * side, 1])
    return dx, taps.T.reshape(weight.shape), d_bias[0].clone()


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(x.shape[3])


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:2])
    ctx.biased = inputs[2] is not None


def _differentiate(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    dx, d_weight, d_bias = torch.ops.mambaad.depthwise_backward(dy.contiguous(), *ctx.saved_tensors)
    return dx, d_weight, d_bias if ctx.biased else None


operator("depthwise_backward", _backward, _fake_backward)
library.register_autograd(operator("depthwise", _forward, _fake), _differentiate, setup_context=_save)


class _Depthwise(ctypes.Structure):
    """struct Depthwise of cpu.c."""

    _fields_ = cpu.fields("b h w c size flipped", "x weight bias y dy d_weight")


def _convolved(x: Tensor, weight: Tensor, more: dict[str, Tensor], flipped: int = 0) -> Tensor:
    taps = weight.flatten(1).T.contiguous()  # the same tap of all channels lies together
    y = torch.empty_like(x)
    _call(x, weight.shape[2], {"x": x, "weight": taps, "y": y} | more, flipped)
    return y


def _call(x: Tensor, side: int, tensors: dict[str, Tensor], flipped: int = 0) -> None:
    b, h, w, c = x.shape
    cpu.call("mambaad_depthwise", _Depthwise, tensors, b=b, h=h, w=w, c=c, size=side, flipped=flipped)
