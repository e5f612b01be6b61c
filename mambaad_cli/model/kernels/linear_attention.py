"""Gated linear attention along walks over a grid: a selective scan whose decay is one number for each head (the form of
Mamba-2; Dao & Gu, ICML 2024, arXiv 2405.21060, section 6), as products of matrices.

Letters: b batch, k directions, l positions, d channels in g heads of p channels, n states, s positions of each of m
chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # positions; the fastest of 16, 32 and 64 on two cores


def gated_linear_attention(
    u: Tensor, x: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor, chunk: int = CHUNK
) -> Tensor:
    """For each direction and head h ← exp(dt · A) · h + dt · B uᵀ with h ∈ ℝⁿˣᵖ, and y = Cᵀ h + D · u, along the walk;
    the sum over the directions, (b, l, d), in float32 whatever autocast says.

    u: (b, l, d) inputs. x: (b, l, k, g + 2n), for each position and direction dt before softplus, B and C.
    dt_bias, A, D: (k, g); A < 0. order: (k, l), the position of each step of a walk.

    A chunk attends to itself with one product of (s, s) matrices a head; what came before reaches it by its state.
    """
    with torch.autocast(u.device.type, enabled=False):
        return _in_chunks(u.float(), x.float(), dt_bias.float(), A, D.float(), order, chunk)


def _in_chunks(u: Tensor, x: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor, chunk: int) -> Tensor:
    l, d = u.shape[1:]
    g = A.shape[1]
    n, s = (x.shape[3] - g) // 2, min(chunk, l)
    walks = order.long()
    along = torch.stack([x[:, walk, i] for i, walk in enumerate(walks)], 1)  # (b, k, l, g + 2n)
    along = F.pad(along, (0, 0, 0, -l % s))
    low, B, C = along.unflatten(2, (-1, s)).split([g, n, n], dim=-1)  # (b, k, m, s, ·)
    dt = F.softplus(low + dt_bias[:, None, None])
    if l % s:
        dt = dt * (torch.arange(dt.shape[2] * s, device=u.device) < l).view(-1, s, 1).to(dt)  # padding changes no state
    dtu = F.pad(u[:, walks], (0, 0, 0, -l % s)).unflatten(2, (-1, s)).unflatten(4, (g, -1)) * dt[..., None]
    dtu = dtu.transpose(3, 4)  # (b, k, m, g, s, p)

    kept = (dt * A[:, None, None]).cumsum(3).transpose(3, 4)  # (b, k, m, g, s): log of what is left since its start
    between = kept[..., :, None] - kept[..., None, :]
    causal = torch.ones(s, s, dtype=torch.bool, device=u.device).tril()
    decay = between.masked_fill(~causal, -torch.inf).exp()
    scores = (C @ B.transpose(-1, -2)).unsqueeze(3)  # (b, k, m, 1, s, s)
    y = (scores * decay) @ dtu

    to_end = (kept[..., -1:] - kept).exp()  # (b, k, m, g, s)
    ends = B.transpose(-1, -2).unsqueeze(3) @ (dtu * to_end[..., None])  # (b, k, m, g, n, p)
    through = kept[..., -1].exp()[..., None, None]  # (b, k, m, g, 1, 1)
    state, entering = torch.zeros_like(ends[:, :, 0]), []
    for i in range(ends.shape[2]):
        entering.append(state)
        state = through[:, :, i] * state + ends[:, :, i]
    y = y + (C.unsqueeze(3) @ torch.stack(entering, 2)) * kept.exp()[..., None]

    y = y.transpose(3, 4).flatten(4).flatten(2, 3)[:, :, :l]  # (b, k, l, d)
    inverse = torch.argsort(walks, dim=1)
    skip = D.sum(0).repeat_interleave(d // g) * u
    return sum((y[:, i, back] for i, back in enumerate(inverse)), skip)


def reference_attention(u: Tensor, x: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor) -> Tensor:
    """The recurrence as it is written, one position at a time."""
    k, g = A.shape
    n = (x.shape[3] - g) // 2
    y = D.sum(0).repeat_interleave(u.shape[2] // g) * u
    for i in range(k):
        h = u.new_zeros(len(u), g, n, u.shape[2] // g)
        found = torch.zeros_like(y)
        for t in order[i].tolist():
            low, B, C = x[:, t, i].split([g, n, n], dim=-1)
            dt = F.softplus(low + dt_bias[i])[..., None, None]
            h = torch.exp(dt * A[i, :, None, None]) * h + dt * B[:, None, :, None] * u[:, t].unflatten(1, (g, 1, -1))
            found = found.index_add(1, order[i].new_tensor([t]).long(), (C[:, None, None] @ h).flatten(1)[:, None])
        y = y + found
    return y
