"""The selective scan in plain PyTorch: step by step, which is easy to check, and in chunks, which is faster.

Letters, as in `selective_scan`: b batch, k directions, d channels, l positions, n states, r rank of dt.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of u, x, dt_weight, dt_bias, A, D


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


def chunked_backward(
    dy: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Grads:
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
