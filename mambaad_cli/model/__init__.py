"""The shared model core: tensors in, tensors out; it knows no files and no command line."""

from collections.abc import Callable

from mambaad_cli.model.detector import Detector
from mambaad_cli.model.mambaad import MambaAD
from mambaad_cli.model.memory import PatchMemory
from mambaad_cli.model.rd4ad import ReverseDistillation
from mambaad_cli.model.uniad import UniAD

# each is called with its encoder's channels and its own options
DETECTORS: dict[str, Callable[..., Detector]] = {
    "mambaad": MambaAD,
    "memory": PatchMemory,
    "rd4ad": ReverseDistillation,
    "uniad": UniAD,
}
STRIDES = {
    "mambaad": MambaAD.strides,
    "memory": PatchMemory.strides,
    "rd4ad": ReverseDistillation.strides,
    "uniad": UniAD.strides,
}
