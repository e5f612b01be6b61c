"""Our own PyTorch operators as standard ONNX operators; the traced network calls them by name.

Letters: b batch, l positions, k directions, d channels, n states, r rank of dt, s steps of each of m chunks.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from mambaad_cli.model.kernels.fused_norms import EPS

OPSET = 18


@script(default_opset=op)
def _ends(h: FLOAT, A: FLOAT, dt: FLOAT, dtu: FLOAT, B: FLOAT) -> FLOAT:
    """The state that each chunk ends in when it is entered with h = 0."""

    @graph()
    def step(h: FLOAT[...], A: FLOAT[...], dt: FLOAT[...], dtu: FLOAT[...], B: FLOAT[...]):  # type: ignore[no-untyped-def]
        later = op.Add(op.Mul(op.Exp(op.Mul(op.Unsqueeze(dt, [-2]), A)), h), op.Mul(op.Unsqueeze(dtu, [-2]), B))
        same = op.Identity(A)
        return later, same

    last, _ = op.Scan(h, A, dt, dtu, B, body=step, num_scan_inputs=3)
    return last


@script(default_opset=op)
def _entered(h: FLOAT, decay: FLOAT, ends: FLOAT) -> FLOAT:
    """The state that really enters each chunk: what came in before, decayed, and what its chunk added."""

    @graph()
    def step(h: FLOAT[...], decay: FLOAT[...], end: FLOAT[...]):  # type: ignore[no-untyped-def]
        later = op.Add(op.Mul(decay, h), end)
        before = op.Identity(h)
        return later, before

    _, entered = op.Scan(h, decay, ends, body=step, num_scan_inputs=2)
    return entered


@script(default_opset=op)
def _outputs(h: FLOAT, A: FLOAT, dt: FLOAT, dtu: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """y of each step of all chunks."""

    @graph()
    def step(h: FLOAT[...], A: FLOAT[...], dt: FLOAT[...], dtu: FLOAT[...], B: FLOAT[...], C: FLOAT[...]):  # type: ignore[no-untyped-def]
        later = op.Add(op.Mul(op.Exp(op.Mul(op.Unsqueeze(dt, [-2]), A)), h), op.Mul(op.Unsqueeze(dtu, [-2]), B))
        same = op.Identity(A)
        y = op.ReduceSum(op.Mul(later, C), [-2], keepdims=0)
        return later, same, y

    _, _, y = op.Scan(h, A, dt, dtu, B, C, body=step, num_scan_inputs=4)
    return y


def selective_scan(u: Any, x: Any, dt_weight: Any, dt_bias: Any, A: Any, D: Any, order: Any, keep: bool) -> Any:
    """`kernels.selective_scan` in chunks that advance side by side, as in `chunked_scan`: s + m + s steps."""
    (k, l), (n, d, r) = order.shape, (A.shape[2], A.shape[1], dt_weight.shape[2])
    steps = chunk(l)
    order = op.Cast(order, to=7)  # int64
    along = op.Transpose(op.Reshape(order, [k, l // steps, steps]), perm=[2, 0, 1])  # (s, k, m)
    rows = op.Add(op.Mul(along, k), _column(k, 1))  # in x as (b, l · k, r + 2n)

    selected = op.Gather(op.Reshape(x, [0, l * k, -1]), rows, axis=1)  # (b, s, k, m, r + 2n)
    selected = op.Transpose(selected, perm=[1, 0, 2, 3, 4])
    low, B, C = (op.Slice(selected, [i], [j], [-1]) for i, j in ((0, r), (r, r + n), (r + n, r + 2 * n)))
    to_d = op.Transpose(dt_weight, perm=[0, 2, 1])
    dt = op.Softplus(op.Add(op.MatMul(low, to_d), op.Unsqueeze(dt_bias, [1])))  # (s, b, k, m, d)
    dtu = op.Mul(dt, op.Transpose(op.Gather(u, along, axis=1), perm=[1, 0, 2, 3, 4]))
    B, C = op.Unsqueeze(B, [-1]), op.Unsqueeze(C, [-1])
    by_state = op.Unsqueeze(op.Transpose(A, perm=[0, 2, 1]), [1])  # (k, 1, n, d)

    decay = op.Exp(op.Mul(op.Unsqueeze(op.ReduceSum(dt, [0], keepdims=0), [-2]), by_state))  # (b, k, m, n, d)
    nothing = op.Mul(decay, 0.0)
    ends = _ends(nothing, by_state, dt, dtu, B)
    chunks_first = [2, 0, 1, 3, 4]
    first = op.Squeeze(op.Slice(nothing, [0], [1], [2]), [2])
    entered = _entered(first, op.Transpose(decay, perm=chunks_first), op.Transpose(ends, perm=chunks_first))
    y = _outputs(op.Transpose(entered, perm=[1, 2, 0, 3, 4]), by_state, dt, dtu, B, C)  # (s, b, k, m, d)

    _, back = op.TopK(order, [l], axis=1, largest=0)  # where each position of the grid lies along its direction
    y = op.Reshape(op.Transpose(y, perm=[1, 2, 3, 0, 4]), [0, k * l, d])
    y = op.ReduceSum(op.Gather(y, op.Add(back, _column(k, l)), axis=1), [1], keepdims=0)
    y = op.Add(y, op.Mul(op.ReduceSum(D, [0], keepdims=0), u))
    return y, op.Constant(value=ir.tensor([], dtype=ir.DataType.FLOAT))  # no states are kept for backward


def _column(k: int, step: int) -> Any:
    """0, step, … as int64 (k, 1)."""
    return op.Constant(value=ir.tensor([[i * step] for i in range(k)], dtype=ir.DataType.INT64))


def chunk(l: int) -> int:
    """Steps of a chunk: the divisor of l that is nearest to √l.

    >>> chunk(4096), chunk(4000), chunk(91)
    (64, 50, 7)
    """
    return min((i for i in range(1, l + 1) if l % i == 0), key=lambda i: abs(math.log(i / math.sqrt(l))))


def normed_silu(x: Any) -> Any:
    """`fused_norms.normed_silu`: each channel is normalised over the positions of (b, h, w, c), then SiLU."""
    centred, mean, scale = _standardised(x, [1, 2])
    y = op.Mul(centred, scale)
    return op.Mul(y, op.Sigmoid(y)), op.Concat(op.Squeeze(mean, [2]), op.Squeeze(scale, [2]), axis=1)


def gated_norm(x: Any, gate: Any, weight: Any, bias: Any) -> Any:
    """`fused_norms.gated_norm`: LayerNorm over c, times SiLU of the gate."""
    centred, mean, scale = _standardised(x, [3])
    y = op.Add(op.Mul(op.Mul(centred, scale), weight), bias)
    return op.Mul(y, op.Mul(gate, op.Sigmoid(gate))), op.Concat(mean, scale, axis=3)


def depthwise(x: Any, weight: Any, bias: Any) -> Any:
    """`depthwise.depthwise`: a convolution of (b, h, w, c) with one filter for each channel."""
    c, _, side, _ = weight.shape
    rest = [] if bias is None else [bias]
    y = op.Conv(op.Transpose(x, perm=[0, 3, 1, 2]), weight, *rest, group=c, pads=[side // 2] * 4)
    return op.Transpose(y, perm=[0, 2, 3, 1])


def _standardised(x: Any, axes: list[int]) -> tuple[Any, Any, Any]:
    """x less its mean, the mean, and 1 / deviation."""
    mean = op.ReduceMean(x, axes)
    centred = op.Sub(x, mean)
    return centred, mean, op.Reciprocal(op.Sqrt(op.Add(op.ReduceMean(op.Mul(centred, centred), axes), EPS)))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.mambaad.selective_scan.default: selective_scan,
    torch.ops.mambaad.normed_silu.default: normed_silu,
    torch.ops.mambaad.gated_norm.default: gated_norm,
    torch.ops.mambaad.depthwise.default: depthwise,
}
