"""mambaad import."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli.cli.app import RESEARCH, command, examples
from mambaad_cli.cli.options import DEFAULT_MODEL


@command("import", panel=RESEARCH, epilog=examples("mambaad import published.pth -o mvtec.safetensors"))
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A published MambaAD checkpoint (.pth).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Model file to write.")
    ] = DEFAULT_MODEL,
) -> None:
    """Convert a published MambaAD checkpoint to a model file, which has no threshold yet."""
    from mambaad_cli.inspection import published_checkpoint, store

    store.save(published_checkpoint.import_published(checkpoint), output)
    typer.echo(f"wrote {output}; set its threshold with\n    mambaad calibrate {output} GOOD_DIR")
