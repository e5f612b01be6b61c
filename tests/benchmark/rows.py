"""Rows of tiny detectors, which several tests measure."""

from mambaad_cli.benchmark.detectors import DetectorSpec

MAMBAAD = DetectorSpec("MambaAD tiny", "mambaad", "test_resnet", {"depths": (1, 1, 1, 1), "directions": 2})
RD4AD = DetectorSpec("RD4AD tiny", "rd4ad", "test_resnet", {})
UNIAD = DetectorSpec(
    "UniAD tiny", "uniad", "resnet18", {"grid": (4, 4), "width": 32, "layers": 1, "heads": 2, "hidden": 64}
)
SIZE = (64, 64)
