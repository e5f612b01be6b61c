"""The calls without arguments that a benchmark measures: a scoring pass and a training step.

Letters: b batch, H × W pixels.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.inspection.network import Network
from mambaad_cli.model.precision import reproducible, rounding

TRAINING_BATCH = 8
OUT_OF_MEMORY = "out of memory"
FAILURES = (MambaADError, RuntimeError, MemoryError, ValueError, AssertionError)  # of a detector; others are measured

Size = tuple[int, int]  # H, W
Task = Callable[[], object]
Maps = Callable[[Tensor], Tensor]  # images (b, 3, H, W) in 0 … 1 to anomaly maps (b, H, W)


def scoring_pass(
    maps: Maps, size: Size, batch: int = 1, device: str = "cpu", precision: str = "fp32"
) -> Callable[[], Tensor]:
    """One pass over `batch` random images: what scoring does after reading them. It returns when the device is done."""
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> Tensor:
        with torch.inference_mode(), rounding(precision, device):
            found = maps(images)
        _wait_for(device)
        return found

    return run


def training_step(network: Network | None, size: Size, device: str = "cpu", precision: str = "fp32") -> Task:
    """One training step on features of random numbers: loss, its gradients, the optimizer, as fit does them.

    Raises MambaADError without a network: an exported detector is not trained.
    """
    if network is None:
        raise MambaADError("an exported model is not trained")
    with torch.inference_mode():
        shapes = [tuple(stage.shape[1:]) for stage in network.encoder(torch.zeros(1, 3, *size, device=device))]
    features = [
        torch.randn(TRAINING_BATCH, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]
    optimizer = network.detector.train().optimizer()

    def run() -> None:
        with reproducible(device):
            with rounding(precision, device):
                loss = network.detector.loss(features)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(network.detector.parameters(), 5.0)
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


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
