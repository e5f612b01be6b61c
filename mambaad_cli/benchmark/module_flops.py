"""FLOPs of any module with selective scans in it: ours, or those of mamba-ssm and of what is built like it.

A scan of ours is one operator, whose formula PyTorch's counter knows. Others are functions in CUDA that the counter
cannot see into: they are known by their names, wherever a module of Python or a layer holds them.

Letters: b batch, l positions, d channels (of all directions together), n states.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mambaad_cli.benchmark import flops
from mambaad_cli.model.kernels.selective_scan import FORWARD

SCAN_FUNCTION = "selective_scan_fn"  # of mamba_ssm.ops.selective_scan_interface, and of others after it
SCAN_LIBRARY, SCAN_CALL = "selective_scan_cuda", "fwd"  # the compiled module that it calls, and its function
SCAN_OPERATOR = "selective_scan"  # in the name of an operator that PyTorch dispatches
OUR_OPERATORS = "mambaad."


class Flops(NamedTuple):
    """Floating-point operations of one pass."""

    products: int  # of convolutions and matrix products, two a multiply-add
    scan: int  # of selective scans

    @property
    def total(self) -> int:
        return self.products + self.scan


def count_flops(module: nn.Module, shapes: Sequence[int] | Sequence[Sequence[int]]) -> Flops:
    """The FLOPs of one forward pass of a module, of random inputs.

    shapes: the shape of the input, (1, 3, 256, 256); or a list of shapes where the module takes several inputs.

    Counted are convolutions, matrix products and the products of attention, a multiply-add as 2; and of a selective
    scan

        9 · b · l · d · n

    for each position, channel and state: dt·A, its exponential, that times the state, dt·u·B, their sum, C times the
    state, the sum over the states, and two for what is done once a channel, such as D·u. These are the nine that the
    paper of MambaAD counts (He et al., arXiv 2404.06564), and Mamba's authors for the recurrence of `selective_scan_fn`
    (Gu & Dao, arXiv 2312.00752). A gate `z` adds its product, b · l · d. Not counted are normalisations, activations,
    sums and what moves data.

    The module runs on the device and in the type of its parameters, twice, in eval mode and without gradients; then it
    is as it was. Scans of mamba-ssm are found by name: functions `selective_scan_fn` in any module of Python and in any
    layer's attribute, `fwd` of compiled modules whose name begins with `selective_scan_cuda`, and operators with
    `selective_scan` in their name.

    >>> count_flops(nn.Linear(8, 4), (5, 8))
    Flops(products=320, scan=0)
    """
    several = [shapes] if isinstance(shapes[0], int) else list(shapes)
    like = next((one for one in module.parameters() if one.is_floating_point()), torch.empty(0))
    inputs = [torch.rand(*shape, device=like.device, dtype=like.dtype) for shape in several]  # type: ignore[misc]
    training = {one: one.training for one in module.modules()}
    scans = _Scans()

    def one_pass() -> None:
        scans.scan = scans.inside = 0
        with scans:
            module(*inputs)

    module.eval()
    try:
        with torch.no_grad(), _replaced(module, scans.counted):
            products, scanned = flops.count_flops(one_pass)
    finally:
        for one, was in training.items():
            one.training = was
    return Flops(products - scans.inside, scanned + scans.scan)


def scan_flops(u: Tensor, A: Tensor, gated: bool = False) -> int:
    """FLOPs of mamba-ssm's scan from its u: (b, d, l) and A: (d, n).

    >>> scan_flops(torch.empty(2, 32, 64), torch.empty(32, 16)) == 9 * 2 * 32 * 64 * 16
    True
    """
    return u.numel() * (FORWARD * A.shape[-1] + gated)


class _Scans(TorchDispatchMode):
    """Counts the scans that are not ours, by function or by operator; within one of either no other is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.scan = 0
        self.inside = 0  # FLOP of the operators within scans, which PyTorch's counter saw as well
        self.depth = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its FLOPs counted where it is called: f(u, delta, A, B, C, D, z, …)."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.depth:
                return function(*args, **kwargs)
            self.scan += _flops_of_call(args, kwargs)
            self.depth += 1
            try:
                with FlopCounterMode(display=False) as within:
                    result = function(*args, **kwargs)
            finally:
                self.depth -= 1
            self.inside += within.get_total_flops()
            return result

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if SCAN_OPERATOR not in name:
            return func(*args, **(kwargs or {}))
        if not self.depth and not name.startswith(OUR_OPERATORS):
            self.scan += _flops_of_call(args, kwargs or {})
        self.depth += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= 1


def _flops_of_call(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """FLOPs of f(u, delta, A, B, C, D=None, z=None, …)."""
    named = dict(zip(("u", "delta", "A", "B", "C", "D", "z"), args, strict=False)) | kwargs
    return scan_flops(named["u"], named["A"], gated=isinstance(named.get("z"), Tensor))


@contextmanager
def _replaced(module: nn.Module, counted: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A context in which every scan function that is known by its name is counted."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for name, loaded in list(sys.modules.items()):
        names = vars(loaded) if hasattr(loaded, "__dict__") else {}
        compiled = name.rpartition(".")[2].startswith(SCAN_LIBRARY)
        wanted = (SCAN_FUNCTION, SCAN_CALL) if compiled else (SCAN_FUNCTION,)
        before += [(names, one, names[one]) for one in wanted if callable(names.get(one))]
    for layer in module.modules():
        held = vars(layer)
        before += [(held, key, value) for key, value in held.items() if getattr(value, "__name__", "") == SCAN_FUNCTION]
    try:
        for names, key, function in before:
            names[key] = counted(function)
        yield
    finally:
        for names, key, function in before:
            names[key] = function
