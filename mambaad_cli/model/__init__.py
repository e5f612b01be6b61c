"""The shared model core: tensors in, tensors out; knows no files and no command line.

A detector is an nn.Module made from its encoder's channels (and numbers of its own), with
    strides                          of the encoder stages that it wants, finest first
    loss(features)                   a scalar to train on
    anomaly_map(features, size)      (b, *size), higher where the image is less like good ones
    optimizer(lr)                    the one it is trained with
where features are one (b, c, h, w) a stage. Its encoder is separate, so a frozen encoder's features can be cached.
"""

from typing import Any

from mambaad_cli.model.mambaad import MambaAD
from mambaad_cli.model.rd4ad import ReverseDistillation
from mambaad_cli.model.uniad import UniAD

DETECTORS: dict[str, Any] = {"mambaad": MambaAD, "rd4ad": ReverseDistillation, "uniad": UniAD}
