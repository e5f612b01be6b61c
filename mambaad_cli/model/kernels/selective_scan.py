"""The selective scan of Mamba over a grid, in k directions at once (Gu & Dao, arXiv 2312.00752, section 3.2).

All tensors are in raster order, channels last. A backend visits the positions in the order `order[k]` and adds its
results in place, so no permuted copy is needed. Four backends give the same numbers: the plain reference here, the
chunked PyTorch path (any device), the fused CPU kernel (cpu_scan.h) and the GPU's (selective_scan_cuda.py).

Letters: b batch, l positions, k directions, d channels, n states, r rank of dt.
    u          (b, l, d)            input
    x          (b, l, k, r + 2n)    what depends on the input: dt at low rank, B, C
    dt_weight  (k, d, r)            dt = softplus(dt_weight · low rank + dt_bias)
    dt_bias    (k, d)
    A          (k, d, n)            negative
    D          (k, d)               skip
    order      (k, l) int32         the order of the l positions in each direction, see scan_orders.py
    y          (b, l, d)            output, summed over the directions
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, library

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.operators import operator
from mambaad_cli.model.kernels.plain_scan import chunked_backward, chunked_scan


def selective_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """h_t = exp(dt A) h_{t−1} + dt B u_t, y_t = C h_t + D u_t in each direction: (b, l, d), float32, differentiable."""
    tensors = [tensor.float().contiguous() for tensor in (u, x, dt_weight, dt_bias, A, D)]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    with torch.autocast(u.device.type, enabled=False):  # the recurrence stays float32, whichever backend runs it
        return torch.ops.mambaad.selective_scan(*tensors, order, keep)[0]


# The plain versions


# One operator that autograd, fake tensors and the FLOP counter know


def _scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """y, and with `keep`, where gradients are wanted, the states at the borders of tiles, where backward starts."""
    if u.is_cuda:
        from mambaad_cli.model.kernels import selective_scan_cuda as scan_cuda

        return scan_cuda.selective_scan(u, x, dt_weight, dt_bias, A, D, order, keep), u.new_empty(0)
    if cpu.kernels() is None:
        return chunked_scan(u, x, dt_weight, dt_bias, A, D, order), u.new_empty(0)
    return _kernel_forward(u, x, dt_weight, dt_bias, A, D, order, keep)


def _fake_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    borders = _border_shape(u, A) if keep and u.device.type != "cuda" and cpu.kernels() is not None else (0,)
    return torch.empty_like(u), u.new_empty(borders)


def _scan_backward(
    dy: Tensor, border: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, x, dt_weight, dt_bias, A, D by the fused kernel."""
    return _kernel_backward(dy, border, u, x, dt_weight, dt_bias, A, D, order)


def _fake_scan_backward(
    dy: Tensor, border: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    u, x, dt_weight, dt_bias, A, D = (torch.empty_like(tensor) for tensor in (u, x, dt_weight, dt_bias, A, D))
    return u, x, dt_weight, dt_bias, A, D


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[1], *inputs[:7])


def _backward(ctx, dy: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    border, *inputs = ctx.saved_tensors
    dy = dy.contiguous()
    if dy.is_cuda:
        from mambaad_cli.model.kernels import selective_scan_cuda as scan_cuda

        grads = scan_cuda.selective_scan_backward(dy, *inputs)
    elif cpu.kernels() is None:  # not inside an operator, where autograd does not record
        grads = chunked_backward(dy, *inputs)
    else:
        grads = torch.ops.mambaad.selective_scan_backward(dy, border, *inputs)
    return *grads, None, None


operator("selective_scan_backward", _scan_backward, _fake_scan_backward)
library.register_autograd(operator("selective_scan", _scan, _fake_scan), _backward, setup_context=_save)


# Counted per state: dt·A, exp2, decay·h, dtu·B, +, C·h, +, and two for what is done once per channel. The paper
# counts the same nine. Backward computes the states again (5) and then their gradients (14).
FORWARD, BACKWARD = 9, 5 + 14


def scan_flops(u: Sequence[int], x: Sequence[int], A: Sequence[int], backward: bool = False) -> tuple[int, int]:
    """FLOP of one call from the shapes of u, x and A: those of the projection of dt, a matrix product, and of the scan.

    >>> scan_flops((1, 64, 32), (1, 64, 8, 2 + 2 * 16), (8, 32, 16))
    (65536, 2359296)
    """
    (b, l, _), (k, d, n) = u, A
    positions = b * l * k * d
    projection, recurrence = 2 * positions * (x[3] - 2 * n), positions * n
    return (3 * projection, BACKWARD * recurrence) if backward else (projection, FORWARD * recurrence)


# The fused CPU kernel


class _Scan(ctypes.Structure):
    """struct Scan of cpu.c."""

    _fields_ = [
        *cpu.fields("b l k d n r", "u x dt_weight dt_bias A D order y border"),
        *cpu.fields("", "dy du dx d_dt_weight d_dt_bias dA dD"),
        *cpu.fields("groups", ""),
    ]


def _border_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    (b, l, d), (k, _, n) = u.shape, A.shape
    library = cpu.kernels()
    assert library is not None
    return b, k, -(-l // library.mambaad_tile()), n, d


def _kernel_forward(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(u)
    border = u.new_empty(_border_shape(u, A) if keep else 0)
    inputs = {"u": u, "x": x, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D, "order": order, "y": y}
    _call("mambaad_scan_forward", inputs | ({"border": border} if keep else {}))
    return y, border


def _kernel_backward(
    dy: Tensor, border: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    b, d = u.shape[0], u.shape[2]
    groups = 1 if b >= torch.get_num_threads() else min(-(-torch.get_num_threads() // b), -(-d // 64))
    grads = {
        "du": torch.empty_like(u),
        "dx": u.new_empty(groups, *x.shape),
        "d_dt_weight": u.new_empty(b, *dt_weight.shape),
        "d_dt_bias": u.new_empty(b, *dt_bias.shape),
        "dA": u.new_empty(b, *A.shape),
        "dD": u.new_empty(b, d),
    }
    inputs = {"u": u, "x": x, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D, "order": order}
    _call("mambaad_scan_backward", inputs | {"border": border, "dy": dy} | grads, groups)
    du, dx, d_dt_weight, d_dt_bias, dA, dD = grads.values()
    dx = dx.sum(0) if groups > 1 else dx[0]
    return du, dx, d_dt_weight.sum(0), d_dt_bias.sum(0), dA.sum(0), dD.sum(0).expand_as(D).contiguous()


def _call(function: str, tensors: dict[str, Tensor], groups: int = 1) -> None:
    u, A, x = tensors["u"], tensors["A"], tensors["x"]
    (b, l, d), (k, _, n) = u.shape, A.shape
    cpu.call(function, _Scan, tensors, b=b, l=l, k=k, d=d, n=n, r=x.shape[3] - 2 * n, groups=groups)
