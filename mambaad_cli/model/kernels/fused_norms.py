"""Normalisations of (b, h, w, c) fused with their SiLU: on the CPU one kernel (cpu_norms.h) replaces a dozen passes."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, library

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.operators import operator

EPS = 1e-5
PARTS = 32  # rows are always divided into so many parts, so that sums do not depend on the number of threads


def normed_silu(x: Tensor) -> Tensor:
    """InstanceNorm (no affine) and SiLU: (b, h, w, c) to the same, differentiable."""
    if not cpu.suit(x):
        return normed_silu_ref(x)
    return torch.ops.mambaad.normed_silu(x.contiguous())[0]


def normed_silu_ref(x: Tensor) -> Tensor:
    """The same in PyTorch's own operators: what the kernel is tested against."""
    var, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
    return F.silu((x - mean) * torch.rsqrt(var + EPS))


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of x (b, h, w, c) over c, with weight and bias (c,), times SiLU of the gate: (b, h, w, c)."""
    if not cpu.suit(x, gate, weight, bias):
        return gated_norm_ref(x, gate, weight, bias)
    return torch.ops.mambaad.gated_norm(x.contiguous(), gate.contiguous(), weight, bias)[0]


def gated_norm_ref(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch's own operators: what the kernel is tested against."""
    return F.layer_norm(x, weight.shape, weight, bias, EPS) * F.silu(gate)


def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and mean and 1 / deviation (b, 2, c) for backward."""
    y, moments = torch.empty_like(x), x.new_empty(x.shape[0], 2, x.shape[3])
    _call(x, moments, y=y)
    return y, moments


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], 2, x.shape[3])


def _backward(dy: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    _call(x, moments, dy=dy, dx=dx)
    return dx


def _fake_backward(dy: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(ctx, dy: Tensor, _: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ops.mambaad.normed_silu_backward(dy.contiguous(), *ctx.saved_tensors)


operator("normed_silu_backward", _backward, _fake_backward)
library.register_autograd(operator("normed_silu", _forward, _fake), _differentiate, setup_context=_save)


def _gated(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and mean and 1 / deviation of each row (b, h, w, 2) for backward."""
    y, moments = torch.empty_like(x), x.new_empty(*x.shape[:-1], 2)
    _call_gated(x, gate, weight, bias, moments, y=y)
    return y, moments


def _fake_gated(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(*x.shape[:-1], 2)


def _gated_backward(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the gate, and of weight and bias, (2, c)."""
    dx, d_gate, d_affine = torch.empty_like(x), torch.empty_like(x), x.new_empty(PARTS, 2, x.shape[-1])
    _call_gated(x, gate, weight, bias, moments, dy=dy, dx=dx, d_gate=d_gate, d_affine=d_affine)
    return dx, d_gate, d_affine.sum(0)


def _fake_gated_backward(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(2, x.shape[-1])


def _save_gated(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, output[1])


def _differentiate_gated(ctx, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    dx, d_gate, d_affine = torch.ops.mambaad.gated_norm_backward(dy.contiguous(), *ctx.saved_tensors)
    return dx, d_gate, d_affine[0], d_affine[1]


operator("gated_norm_backward", _gated_backward, _fake_gated_backward)
library.register_autograd(operator("gated_norm", _gated, _fake_gated), _differentiate_gated, setup_context=_save_gated)


class _Norm(ctypes.Structure):
    """struct Norm of cpu.c."""

    _fields_ = cpu.fields("b l c", "x y moments dy dx")


class _Gated(ctypes.Structure):
    """struct Gated of cpu.c."""

    _fields_ = cpu.fields("rows c parts", "x gate weight bias y moments dy dx d_gate d_affine")


def _call(x: Tensor, moments: Tensor, **others: Tensor) -> None:
    b, h, w, c = x.shape
    cpu.call("mambaad_normed_silu", _Norm, {"x": x, "moments": moments, **others}, b=b, l=h * w, c=c)


def _call_gated(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, **others: Tensor) -> None:
    tensors = {"x": x, "gate": gate, "weight": weight, "bias": bias, "moments": moments, **others}
    c = x.shape[-1]
    cpu.call("mambaad_gated_norm", _Gated, tensors, rows=x.numel() // c, c=c, parts=PARTS)
