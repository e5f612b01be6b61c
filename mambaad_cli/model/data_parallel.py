"""Training on a share of each batch per process, with the same result as one process on the whole batch.

Letters: b images of the share, c channels, h × w positions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mambaad_cli.model.detector import Detector

Sum = Callable[[Tensor], Tensor]  # in place over all processes


class WholeBatchNorm(nn.BatchNorm2d):
    """Batch norm by the mean and variance over all processes' shares, (b, c, h, w) to the same.

    torch's SyncBatchNorm works on GPUs only.
    """

    all_sum: Sum

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        positions = x.new_tensor([x.numel() / x.shape[1]])
        total, count = _Summed.apply(torch.cat([x.sum((0, 2, 3)), positions]), self.all_sum).split([x.shape[1], 1])
        mean = total / count
        centred = x - mean[:, None, None]
        var = _Summed.apply(centred.square().sum((0, 2, 3)), self.all_sum) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.1)
            self.running_var.lerp_(var * count / (count - 1), self.momentum or 0.1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _Summed(torch.autograd.Function):
    """The sum over all processes. Each input counts in the output of every process, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, all_sum: Sum) -> Tensor:
        ctx.all_sum = all_sum
        return all_sum(x.clone())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.all_sum(dy.clone()), None


def share_batch_norms(detector: nn.Module | Detector, all_sum: Sum) -> None:
    """Turn each batch norm into one over all processes; its parameters and statistics stay as they are."""
    for module in detector.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = WholeBatchNorm
            module.all_sum = all_sum  # type: ignore[assignment]


class WholeBatchRandom(TorchDispatchMode):
    """Random numbers are drawn for all `n` images of the batch, and those of this process's share are used.

    So dropout, drop path and jitter are what one process would have drawn, if all processes start from one seed. The
    first axis of what is drawn must be that of the images, or a multiple of it.
    """

    def __init__(self, share: slice, n: int) -> None:
        super().__init__()
        self.share, self.n = share, n

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        aten = torch.ops.aten
        if func is aten.rand.default:
            size, *rest = args
            return self._ours(func([self._all(size[0]), *size[1:]], *rest, **kwargs))
        if func in (aten.rand_like.default, aten.randn_like.default, aten.native_dropout.default):
            x, *rest = args
            drawn = func(self._like_all(x), *rest, **kwargs)
            if func is not aten.native_dropout.default:
                return self._ours(drawn)
            kept = self._ours(drawn[1])
            return x * kept / (1 - rest[0]), kept
        if func is aten.bernoulli_.float:
            x, *rest = args
            return x.copy_(self._ours(func(self._like_all(x), *rest, **kwargs)))
        return func(*args, **kwargs)

    def _all(self, rows: int) -> int:
        return rows // (self.share.stop - self.share.start) * self.n

    def _like_all(self, x: Tensor) -> Tensor:
        """The rows of all processes, with the same order of axes in memory: numbers are drawn in that order."""
        size = (self._all(x.shape[0]), *x.shape[1:])
        order = sorted(range(x.ndim), key=lambda axis: (-x.stride()[axis], axis == 0))
        whole = torch.ones([size[axis] for axis in order], dtype=x.dtype, device=x.device)
        return whole.permute([order.index(axis) for axis in range(x.ndim)])

    def _ours(self, drawn: Tensor) -> Tensor:
        each = drawn.shape[0] // self.n
        return drawn[self.share.start * each : self.share.stop * each]
