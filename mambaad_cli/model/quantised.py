"""Vectors as 8-bit integers: as a model file keeps the patches of a memory, and as they are compared.

Letters: m patches, c channels.
"""

import torch
from torch import Tensor

STEPS = 127  # of the integers, on either side of zero


def stored(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (m, c) as a file keeps them: 8-bit integers (m, c), and the step (m, 1) of each patch.

    What was stored once is stored again without loss, because a step has few binary digits.

    >>> restored(*stored(torch.tensor([[1.0, -0.5, 0.0]])))
    tensor([[ 0.9999, -0.5039,  0.0000]])
    """
    steps = (patches.abs().amax(1, keepdim=True) / STEPS).clamp(min=1e-6).half()
    return (patches / steps.float()).round().clamp(-STEPS, STEPS).to(torch.int8), steps


def restored(integers: Tensor, steps: Tensor) -> Tensor:
    """The patches (m, c) that were stored."""
    return integers.float() * steps.float()
