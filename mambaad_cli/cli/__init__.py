"""Every command, a file each: options in, one call, lines out. Heavy imports sit inside the commands, so that help is
instant."""

from mambaad_cli.cli import fit, score, map_images, calibrate, import_checkpoint, evaluate, bench, doctor  # isort: skip
from mambaad_cli.cli.app import app

__all__ = ["app", "bench", "calibrate", "doctor", "evaluate", "fit", "import_checkpoint", "map_images", "score"]
