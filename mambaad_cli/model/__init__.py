"""The shared model core: tensors in, tensors out; knows no files and no command line."""

from mambaad_cli.model.mambaad import MambaAD
from mambaad_cli.model.rd4ad import ReverseDistillation
from mambaad_cli.model.uniad import UniAD

DETECTORS = {"mambaad": MambaAD, "rd4ad": ReverseDistillation, "uniad": UniAD}
