"""The commands, one file each: options in, one call, lines out. Heavy imports are inside the functions, so that
`--help` appears at once."""

from mambaad_cli.cli import fit, score, map_images, calibrate, import_checkpoint, evaluate, bench, doctor  # isort: skip
from mambaad_cli.cli import watch, monitor  # isort: skip
from mambaad_cli.cli.app import app

__all__ = [
    "app",
    "bench",
    "calibrate",
    "doctor",
    "evaluate",
    "fit",
    "import_checkpoint",
    "map_images",
    "monitor",
    "score",
    "watch",
]
