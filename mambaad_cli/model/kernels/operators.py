"""Python functions as operators of PyTorch, in the library `mambaad`: autograd, fake tensors and exporters know them.

PyTorch's own `custom_op` does the same, but imports all of `torch._dynamo` at its first call, which takes longer than
scoring an image, and checks each result for aliases.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import library


def operator(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Register `function`, which changes none of its arguments and returns new tensors, for all devices.

    fake: the same with tensors that have a shape and no values. Returns the operator's full name.
    """
    full = f"mambaad::{name}"
    library.define(full, library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    library.impl(full, "default", function)
    library.register_fake(full, fake)
    return full
