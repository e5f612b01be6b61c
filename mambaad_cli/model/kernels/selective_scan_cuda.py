"""The selective scan on a GPU. This module is imported when a CUDA tensor arrives, never before.

There are three backends, and the first one that works is used: the CUDA scan of mamba-ssm, Triton kernels of our own
(triton_scan.py), and the chunked PyTorch path of plain_scan.py. The Triton kernels are what a GPU usually gets: torch
for Linux brings Triton, while mamba-ssm has had no CUDA scan since July 2026 unless it is built with
MAMBA_KEEP_CUDA_BUILD=TRUE. Before its first use on a GPU a backend runs a small scan, and where gradients are wanted
backward as well. A backend that raises an error or gives other numbers than the CPU is not used.

None of this has been run on a GPU yet. The tests without one cover the conversion to mamba-ssm's layout and back, the
numbers of the Triton kernels in Triton's interpreter, and that the kernels compile for NVIDIA GPUs.

Letters, shapes and the recurrence are those of selective_scan.py. All tensors are float32 and contiguous; `order` is
int32.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mambaad_cli.model.kernels.plain_scan import Grads, chunked_backward, chunked_scan
from mambaad_cli.model.kernels.triton_scan import triton_backward, triton_scan


def selective_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor,
    gradients: bool = True,
) -> Tensor:  # fmt: skip
    """y: (b, l, d), as `reference_scan`. `gradients`: whether `selective_scan_backward` may follow."""
    with torch.autocast(u.device.type, enabled=False), torch.cuda.device_of(u):
        _, forward, _ = BACKENDS[chosen(u.device, gradients)]
        return forward(u, x, dt_weight, dt_bias, A, D, order)


def selective_scan_backward(
    dy: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Grads:
    """Gradients of u, x, dt_weight, dt_bias, A, D from dy: (b, l, d). The states of forward are computed again."""
    with torch.autocast(u.device.type, enabled=False), torch.cuda.device_of(u):
        _, _, backward = BACKENDS[chosen(u.device, True)]
        return backward(dy, u, x, dt_weight, dt_bias, A, D, order)


# Which backend


def backends() -> dict[str, str]:
    """Each backend, the fastest first: "available", or one line that says why it is not. Never raises.

    With a GPU, "available" means that it gave the right numbers there; without one, only that it can be imported.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    return {name: _fault(name, device, gradients=True) or "available" for name in BACKENDS}


@cache
def chosen(device: torch.device, gradients: bool = True) -> str:
    """The name of the first backend that works on a device. Warns once where only the slow one is left.

    Without `gradients` only its forward pass has to work: scoring an image need not wait until the kernel of the
    backward pass is compiled.
    """
    *fast, plain = BACKENDS
    faults = {}
    for name in fast:
        faults[name] = _fault(name, device, gradients)
        if not faults[name]:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in faults.items())
    warnings.warn(f"the scan runs in plain PyTorch, slower than it could ({reasons})", stacklevel=2)
    return plain


def _fault(name: str, device: torch.device | None, gradients: bool) -> str:
    """Why a backend cannot be used, in one line, or "". Without a device it is only imported, not tried."""
    modules, _, _ = BACKENDS[name]
    try:
        for module in modules:
            importlib.import_module(module)
        if device is not None:
            _try_out(name, device, gradients)
    except ModuleNotFoundError as error:
        return str(error) + MISSING.get(error.name or "", "")
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _try_out(name: str, device: torch.device, gradients: bool) -> None:
    """Run a small scan on a device. Raises RuntimeError where its numbers differ from the CPU's.

    Positions and channels are no multiples of a block or a chunk. Channels are a multiple of 16 and states are 16 as in
    the networks, because Triton compiles such sizes separately: the networks then use what is compiled here.
    """
    b, l, k, d, n, r = 2, 37, 2, 48, 16, 2
    random = torch.Generator().manual_seed(0)
    shapes = ((b, l, d), (b, l, d), (b, l, k, r + 2 * n), (k, d, r), (k, d), (k, d, n), (k, d))
    with torch.inference_mode(False):
        dy, u, x, dt_weight, dt_bias, A, D = (torch.randn(shape, generator=random) for shape in shapes)
        order = torch.stack([torch.randperm(l, generator=random) for _ in range(k)]).int()
        inputs = (u, x, dt_weight, dt_bias, -A.exp(), D, order)
        expected, actual = (
            _run(backend, gradients, dy.to(place), *(tensor.to(place) for tensor in inputs))
            for backend, place in (("chunked PyTorch", torch.device("cpu")), (name, device))
        )
    for right, number in zip(expected, actual, strict=True):
        error = float((number.cpu() - right).abs().max() / right.abs().max())
        if not error < 1e-3:
            raise RuntimeError(f"wrong numbers on {device}: off by {error:.1e} of the largest")


def _run(name: str, gradients: bool, dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    """y, and with `gradients` the six of them."""
    _, forward, backward = BACKENDS[name]
    return [forward(*inputs), *(backward(dy, *inputs) if gradients else ())]


@contextmanager
def _recording() -> Iterator[None]:
    """Switches autograd on, also in the body of a custom operator, where torch excludes autograd's dispatch key.

    The functions for that key are torch's own, and a later version may lack them. Then all but such bodies record.
    """
    internals: Any = torch._C
    names = ("DispatchKey", "_dispatch_tls_is_dispatch_key_excluded", "_dispatch_tls_set_dispatch_key_excluded")
    if not all(hasattr(internals, name) for name in names):
        with torch.enable_grad():
            yield
        return
    key = internals.DispatchKey.AutogradFunctionality
    excluded = internals._dispatch_tls_is_dispatch_key_excluded(key)
    internals._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        internals._dispatch_tls_set_dispatch_key_excluded(key, excluded)


# mamba-ssm


def to_mamba(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> dict[str, Tensor]:
    """Arguments of mamba-ssm's `selective_scan_fn`: k groups of d channels, positions last, in the order of each
    direction.

    u, delta: (b, k·d, l); A: (k·d, n); B, C: (b, k, n, l); D, delta_bias: (k·d). delta is before bias and softplus.
    """
    n = A.shape[2]
    inputs = torch.stack([u.index_select(1, walk) for walk in order], 1)  # (b, k, l, d)
    selected = torch.stack([x[:, :, k].index_select(1, walk) for k, walk in enumerate(order)], 1)
    low, B, C = selected.transpose(2, 3).split([x.shape[3] - 2 * n, n, n], dim=2)
    return {
        "u": inputs.transpose(2, 3).flatten(1, 2).contiguous(),
        "delta": (dt_weight @ low).flatten(1, 2),
        "A": A.flatten(0, 1),
        "B": B.contiguous(),
        "C": C.contiguous(),
        "D": D.flatten(),
        "delta_bias": dt_bias.flatten(),
    }


def from_mamba(y: Tensor, order: Tensor) -> Tensor:
    """(b, k·d, l) in the order of each direction, put back on the grid and summed over directions: (b, l, d).

    >>> y = torch.tensor([[[1, 2, 3], [10, 20, 30]]])  # one channel in two directions
    >>> from_mamba(y, torch.tensor([[0, 1, 2], [2, 1, 0]])).flatten().tolist()
    [31, 22, 13]
    """
    directions = y.unflatten(1, (order.shape[0], -1)).unbind(1)
    inverse = torch.argsort(order, dim=1)
    on_grid = [part.index_select(2, back) for part, back in zip(directions, inverse, strict=True)]
    return torch.stack(on_grid).sum(0).transpose(1, 2).contiguous()


def mamba_scan(u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor) -> Tensor:
    """As `reference_scan`, by mamba-ssm's CUDA scan."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    along_walks = to_mamba(u, x, dt_weight, dt_bias, A, D, order)
    return from_mamba(selective_scan_fn(**along_walks, delta_softplus=True), order)


def mamba_backward(dy: Tensor, *inputs: Tensor) -> Grads:
    """As `selective_scan_backward`: it runs forward again, recorded by autograd."""
    *tensors, order = inputs
    with _recording():
        u, x, dt_weight, dt_bias, A, D = (tensor.detach().requires_grad_() for tensor in tensors)
        y = mamba_scan(u, x, dt_weight, dt_bias, A, D, order)
        grads = torch.autograd.grad(y, (u, x, dt_weight, dt_bias, A, D), dy)
    du, dx, d_dt_weight, d_dt_bias, dA, dD = (grad.contiguous() for grad in grads)
    return du, dx, d_dt_weight, d_dt_bias, dA, dD


# Plain PyTorch


def plain_backward(
    dy: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Grads:
    """As `selective_scan_backward`, through `chunked_scan`."""
    with _recording():
        return chunked_backward(dy, u, x, dt_weight, dt_bias, A, D, order)


# What is to be known of a module that is missing.
MISSING = {
    "selective_scan_cuda": ": mamba-ssm builds it with MAMBA_KEEP_CUDA_BUILD=TRUE alone. It is not needed where triton "
    "is available",
    "triton": ": torch brings it on Linux",
}

# By name, in the order in which they are tried: modules to import, forward, backward.
BACKENDS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor], Callable[..., Grads]]] = {
    "mamba-ssm": (("selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface"), mamba_scan, mamba_backward),
    "triton": (("triton",), triton_scan, triton_backward),
    "chunked PyTorch": ((), chunked_scan, plain_backward),
}
