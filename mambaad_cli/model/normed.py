"""InstanceNorm and SiLU of (b, h, w, c) in one: on the CPU one kernel (scan_cpu.c) in place of a dozen passes."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, library

from mambaad_cli import MambaADError
from mambaad_cli.model import scan

EPS = 1e-5


def normed_silu(x: Tensor) -> Tensor:
    """InstanceNorm (no affine) and SiLU: (b, h, w, c) to the same, differentiable."""
    if x.is_cuda or x.dtype != torch.float32 or scan.kernel() is None:
        return normed_silu_ref(x)
    return torch.ops.mambaad.normed_silu(x.contiguous())[0]


def normed_silu_ref(x: Tensor) -> Tensor:
    """The same in PyTorch's own operators: what the kernel is tested against."""
    var, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
    return F.silu((x - mean) * torch.rsqrt(var + EPS))


@library.custom_op("mambaad::normed_silu", mutates_args=())
def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and mean and 1 / deviation (b, 2, c) for backward."""
    y, moments = torch.empty_like(x), x.new_empty(x.shape[0], 2, x.shape[3])
    _call(x, moments, y=y)
    return y, moments


@_forward.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], 2, x.shape[3])


@library.custom_op("mambaad::normed_silu_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    _call(x, moments, dy=dy, dx=dx)
    return dx


@_backward.register_fake
def _(dy: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(ctx, dy: Tensor, _: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ops.mambaad.normed_silu_backward(dy.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)


class _Norm(ctypes.Structure):
    """struct Norm of scan_cpu.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("b", "l", "c")] + [
        (name, ctypes.c_void_p) for name in ("x", "y", "moments", "dy", "dx")
    ]


def _call(x: Tensor, moments: Tensor, **others: Tensor) -> None:
    library, (b, h, w, c) = scan.kernel(), x.shape
    addresses = {name: tensor.data_ptr() for name, tensor in {"x": x, "moments": moments, **others}.items()}
    norm = _Norm(b=b, l=h * w, c=c, **addresses)
    threads = ctypes.c_int64(torch.get_num_threads())
    if library.mambaad_normed_silu(ctypes.byref(norm), library.mambaad_isa, threads, library.mambaad_parallel):
        raise MambaADError("out of memory in a normalisation: try a smaller --batch or --res")
