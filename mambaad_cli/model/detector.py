"""What every detector can do. No code outside this package asks which detector it holds.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels of the anomaly map.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mambaad_cli.model.anomaly_map import Residual


class Detector(Protocol):
    """An nn.Module made from its encoder's channels and numbers of its own.

    Features are one (b, c, h, w) a stage of a frozen encoder, finest first. The encoder is separate, so that its
    features can be cached.
    """

    strides: ClassVar[tuple[int, ...]]  # of the encoder's stages that it uses, finest first

    @property
    def scales(self) -> int:
        """How many residuals it gives."""
        ...

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        """A scalar to minimise, the mean over the images; it falls as good features are reconstructed better.

        The detector reconstructs them from themselves, or from corrupted features where these are given as `seen`.
        """
        ...

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The map as published: (b, H, W) of `size`, higher where the image is less like good ones."""
        ...

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """What it cannot reconstruct: one Residual per scale, finest first."""
        ...

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """The optimizer that it is trained with, at the published learning rate unless `lr` is given."""
        ...

    # of nn.Module

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def to(self, device: str) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...
