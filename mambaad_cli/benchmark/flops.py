"""FLOP counts: floating-point operations of a call, two a multiply-accumulate.

Once this module is imported, PyTorch's own FlopCounterMode counts the selective scan as well.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

from mambaad_cli.benchmark.passes import Task
from mambaad_cli.model.kernels import depthwise  # noqa: F401 - registers its operator
from mambaad_cli.model.kernels import selective_scan as scan

# Torch computes attention by one of several kernels, chosen by the device, the shapes and its own version. Each has
# the same two matrix products, and torch's counter knows some of the kernels only.
ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@register_flop_formula(torch.ops.mambaad.selective_scan)
def _forward_flops(u, x, dt_weight, dt_bias, A, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return sum(scan.scan_flops(u, x, A))


@register_flop_formula(torch.ops.mambaad.selective_scan_backward)
def _backward_flops(dy, border, *forward_inputs, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    u, x, _, _, A = forward_inputs[:5]
    return sum(scan.scan_flops(u, x, A, backward=True))


@register_flop_formula(torch.ops.mambaad.depthwise)
def _depthwise_flops(x, weight, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return int(2 * math.prod(x) * math.prod(weight[2:]))


@register_flop_formula(torch.ops.mambaad.depthwise_backward)
def _depthwise_backward_flops(dy, x, weight, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return 2 * _depthwise_flops(x, weight)


def count_flops(task: Task) -> tuple[int, int]:
    """FLOP of one call: of convolutions and matrix products, and of the selective scan beside them.

    The scan's operator projects dt as well, which is a matrix product. Whichever kernel computes attention, its
    products of query with key and of weights with value are counted, and nothing else of it.
    """
    task()  # the matrices that upsample and smooth are made once and kept: they are no part of a pass
    scan_operator = torch.ops.mambaad.selective_scan
    with (
        FlopCounterMode(display=False, custom_mapping=_attention_formulas()) as whole,
        FlopCounterMode(display=False, custom_mapping={scan_operator: _scan_alone}) as split,
    ):
        task()
    scanned = split.get_flop_counts().get("Global", {}).get(scan_operator, 0)
    return whole.get_total_flops() - scanned, scanned


def _attention_formulas() -> dict[Any, Any]:
    """The formula of attention for each fused kernel that this torch has; without one it is plain products."""
    kernels = [getattr(torch.ops.aten, name) for name in ATTENTION_KERNELS if hasattr(torch.ops.aten, name)]
    return dict.fromkeys(kernels, _attention_flops)


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return sdpa_flop_count(query, key, value)


def _scan_alone(u, x, dt_weight, dt_bias, A, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return scan.scan_flops(u, x, A)[1]
