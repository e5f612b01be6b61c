"""The commands, one file each: options in, one call, lines out. Heavy imports are inside the functions, so that
`--help` appears at once."""

from mambaad_cli.cli import fit, score, map_images, report, msa, calibrate, import_checkpoint, evaluate, bench, doctor  # isort: skip
from mambaad_cli.cli import export, monitor, watch  # isort: skip
from mambaad_cli.cli.app import app

__all__ = [
    "app",
    "bench",
    "calibrate",
    "doctor",
    "evaluate",
    "export",
    "fit",
    "import_checkpoint",
    "map_images",
    "monitor",
    "msa",
    "report",
    "score",
    "watch",
]
