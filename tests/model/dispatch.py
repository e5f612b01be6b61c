"""What PyTorch's operators do while a function runs: a stand-in for a GPU, where some of them are slow or inexact."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Names of the operators that run inside, and whether float32 was float32 for those that multiply matrices."""

    products = (
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "convolution",
        "_cdist_forward",
        "_euclidean_dist",
    )

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.inexact: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.operators.append(name)
        single = any(isinstance(x, torch.Tensor) and x.dtype == torch.float32 for x in args)
        if name in self.products and single and (torch.backends.cudnn.allow_tf32 or tf32_in_products()):
            self.inexact.append(name)
        return func(*args, **kwargs or {})


def tf32_in_products() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)
