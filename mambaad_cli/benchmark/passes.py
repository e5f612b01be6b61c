"""The calls without arguments that a benchmark measures: a scoring pass and a training step.

Letters: b batch, H × W pixels.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.inspection.fitted_model import FittedModel

TRAINING_BATCH = 8
OUT_OF_MEMORY = "out of memory"
FAILURES = (MambaADError, RuntimeError, MemoryError, ValueError, AssertionError)  # of a detector; others are measured

Size = tuple[int, int]  # H, W
Task = Callable[[], object]


def scoring_pass(
    model: FittedModel, size: Size, batch: int = 1, device: str = "cpu", precision: str = "fp32"
) -> Callable[[], Tensor]:
    """One pass over `batch` random images: what scoring does after reading them. It returns when the device is done."""
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> Tensor:
        with torch.inference_mode(), _rounding(device, precision):
            maps = model.anomaly_maps(images)
        _wait_for(device)
        return maps

    return run


def training_step(model: FittedModel, size: Size, device: str = "cpu", precision: str = "fp32") -> Task:
    """One training step on features of random numbers: loss, its gradients, the optimizer, as fit does them."""
    with torch.inference_mode():
        shapes = [tuple(stage.shape[1:]) for stage in model.encoder(torch.zeros(1, 3, *size, device=device))]
    features = [
        torch.randn(TRAINING_BATCH, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]
    optimizer = model.detector.train().optimizer()

    def run() -> None:
        with _rounding(device, precision):
            loss = model.detector.loss(features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.detector.parameters(), 5.0)
        optimizer.step()
        _wait_for(device)

    return run


def reason(error: BaseException) -> str:
    """Why a detector failed, on one line.

    >>> reason(MemoryError()), reason(ValueError("too small\\nsomewhere"))
    ('out of memory', 'too small')
    """
    text = str(error)
    scarce = re.search("out of|allocate|enough memory", text) and not isinstance(error, MambaADError)
    if scarce or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    return text.splitlines()[0] if text else type(error).__name__


def _rounding(device: str, precision: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
