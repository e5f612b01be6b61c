"""The Typer application: its commands, its exit statuses, and the one place where an error becomes a line."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mambaad_cli import MambaADError, __version__, distributed
from mambaad_cli.cli.output import warn
from mambaad_cli.files import DISK_FULL

USER_CAN_MEND, ANOMALY_FOUND, INTERRUPTED = 1, 3, 130  # exit statuses; 2, wrong usage, is Typer's
SHARED = ("fit", "score")  # commands that can share their work between processes


class Commands(TyperGroup):
    """Prints an error that a user can fix as one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MambaADError as error:
            warn(str(error), everyone=distributed.met)
            raise typer.Exit(USER_CAN_MEND) from None
        except KeyboardInterrupt:
            how = "; go on with the same command and --resume" if ctx.invoked_subcommand == "fit" else ""
            warn(f"interrupted{how}")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            warn(f"cannot write {error.filename or 'stdout'}: {error.strerror}")
            if error.filename is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of its buffer
            raise typer.Exit(USER_CAN_MEND) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn what good product images look like, then score, map and explain new ones.",
)


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy, one per line."""
    return "\n\n".join(["Examples:", *lines])


@app.callback(invoke_without_command=True, epilog=examples("mambaad fit ./good/", "mambaad score ./incoming/ --csv"))
def mambaad(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mambaad {__version__}")
        raise typer.Exit
    if distributed.world() > 1 and context.invoked_subcommand not in SHARED:
        raise MambaADError(f"{context.invoked_subcommand} runs in one process: only fit and score share their work")
