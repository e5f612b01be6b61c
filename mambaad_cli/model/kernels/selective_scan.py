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
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, library

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.kernels.operators import operator


def selective_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """h_t = exp(dt A) h_{t−1} + dt B u_t, y_t = C h_t + D u_t in each direction: (b, l, d), float32, differentiable."""
    tensors = [tensor.float().contiguous() for tensor in (u, x, dt_weight, dt_bias, A, D)]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    with torch.autocast(u.device.type, enabled=False):  # the recurrence stays float32, whichever backend runs it
        return torch.ops.mambaad.selective_scan(*tensors, order, keep)[0]


# The plain versions


def reference_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """The recurrence as it is written, one position at a time. The other backends are tested against it."""
    dt, dtu, B, C = _along_walks(u, x, dt_weight, dt_bias, A.shape[2], order)
    h = u.new_zeros(*dt.shape[:2], *A.shape[1:])  # (b, k, d, n)
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, :, t, :, None] * A) * h + dtu[:, :, t, :, None] * B[:, :, t, None]
        outputs.append((h * C[:, :, t, None]).sum(-1))
    return _back_on_grid(torch.stack(outputs, 2), u, D, order)


def chunked_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """The same with about 2·√l steps instead of l: chunks of √l positions advance side by side.

    A first pass finds what each chunk does to the state that enters it. A short loop over the chunks carries the state
    through. A second pass runs the recurrence in all chunks in parallel, from the states that really enter them.
    """
    l, n = u.shape[1], A.shape[2]
    chunk = max(1, math.isqrt(l))
    parts = _along_walks(u, x, dt_weight, dt_bias, n, order)
    padding = -l % chunk  # dt = 0 changes no state
    dt, dtu, B, C = (
        F.pad(part, (0, 0, 0, padding)).unflatten(2, (-1, chunk)).movedim(3, 0) for part in parts
    )  # (chunk, b, k, chunks, ·)
    A = A[:, None]  # (k, 1, d, n)

    h = u.new_zeros(*dt.shape[1:], n)  # (b, k, chunks, d, n)
    for t in range(chunk):
        h = torch.exp(dt[t, ..., None] * A) * h + dtu[t, ..., None] * B[t, ..., None, :]
    decay = torch.exp(dt.sum(0)[..., None] * A)
    entering = [torch.zeros_like(h[:, :, 0])]
    for i in range(h.shape[2] - 1):
        entering.append(decay[:, :, i] * entering[-1] + h[:, :, i])
    h = torch.stack(entering, 2)
    outputs = []
    for t in range(chunk):
        h = torch.exp(dt[t, ..., None] * A) * h + dtu[t, ..., None] * B[t, ..., None, :]
        outputs.append((h @ C[t, ..., None]).squeeze(-1))
    return _back_on_grid(torch.stack(outputs, 3).flatten(2, 3)[:, :, :l], u, D, order)


def _along_walks(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, n: int, order: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt and dt · u (b, k, l, d), B and C (b, k, l, n), each in the order of its direction."""
    walks = order.long()
    along = torch.stack([x[:, walk, k] for k, walk in enumerate(walks)], 1)
    low, B, C = along.split([x.shape[-1] - 2 * n, n, n], dim=-1)
    dt = F.softplus(torch.einsum("bklr,kdr->bkld", low, dt_weight) + dt_bias[:, None])
    return dt, dt * u[:, walks], B, C


def _back_on_grid(y: Tensor, u: Tensor, D: Tensor, order: Tensor) -> Tensor:
    """(b, k, l, d) outputs in the order of each direction, put back on the grid and summed with the skip: (b, l, d)."""
    inverse = torch.argsort(order.long(), dim=1)
    return sum((y[:, k, back] for k, back in enumerate(inverse)), D.sum(0) * u)


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


def chunked_backward(
    dy: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients through `chunked_scan`, one image at a time, so that memory holds the states of one image only."""
    grads = [torch.zeros_like(tensor) for tensor in (u, x, dt_weight, dt_bias, A, D)]
    for image in range(dy.shape[0]):
        with torch.enable_grad():
            inputs = (u[image : image + 1], x[image : image + 1], dt_weight, dt_bias, A, D)
            parts = [part.detach().requires_grad_() for part in inputs]
            y = chunked_scan(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], order)
        for grad, part in zip(grads, torch.autograd.grad(y, parts, dy[image : image + 1]), strict=True):
            (grad[image : image + 1] if grad.shape != part.shape else grad).add_(part)
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]


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
