"""The commands, one file each: options in, one call, lines out. Heavy imports are inside the functions, so that
`--help` appears at once."""

from mambaad_cli.cli import fit, score, merge, map_images, calibrate, learn, watch, monitor, report, msa  # isort: skip
from mambaad_cli.cli import import_checkpoint, export, evaluate, bench, doctor, config  # isort: skip
from mambaad_cli.cli.app import app

__all__ = [
    "app",
    "bench",
    "calibrate",
    "config",
    "doctor",
    "evaluate",
    "export",
    "fit",
    "import_checkpoint",
    "learn",
    "map_images",
    "merge",
    "monitor",
    "msa",
    "report",
    "score",
    "watch",
]
