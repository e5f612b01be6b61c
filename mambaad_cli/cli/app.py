"""The Typer application: its commands, its exit statuses, and the one place where an error becomes a line."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mambaad_cli import MambaADError, __version__, distributed
from mambaad_cli.cli import help_page, settings_file
from mambaad_cli.cli.output import speech, warn
from mambaad_cli.files import DISK_FULL

USER_CAN_MEND, ANOMALY_FOUND, INTERRUPTED = 1, 3, 130  # exit statuses; 2, wrong usage, is Typer's
SHARED = ("fit", "score")  # commands that can share their work between processes

# Groups of commands in `mambaad --help`.
INSPECT, LINE, PROVE, RESEARCH, MACHINE = "Inspect", "On the line", "Prove", "Research", "This machine"


class Command(TyperCommand):
    """A command whose help has two columns, and whose line of usage names its arguments as the help does."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        help_page.show(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            settings_file.blame_variable(error, ctx)
            raise
        settings_file.drop_overruled(ctx)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(help_page.argument_name, arguments)]


class Commands(TyperGroup):
    """Prints an error that a user can fix as one line, and takes settings from variables and from a file."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        settings_file.name_variables(self.commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        settings_file.drop_overruled(ctx)
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        if name is not None and not ctx.resilient_parsing and not {"-h", "--help"} & set(rest):
            settings_file.use_settings(ctx, name)
        return name, found, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        help_page.show(self, ctx)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MambaADError as error:
            if speech.verbose:
                traceback.print_exc()
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


def command(name: str | None = None, *, panel: str, epilog: str) -> Callable[[Any], Any]:
    """Registers a function as a command, in a group of `mambaad --help`."""
    return app.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy, one per line."""
    return "\n\n".join(["Examples:", *lines])


@app.callback(invoke_without_command=True, epilog=examples("mambaad fit ./good/", "mambaad score ./incoming/ --csv"))
def mambaad(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            envvar="MAMBAAD_QUIET",
            show_envvar=False,
            help="Show no progress and no notes; results, warnings and errors stay.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            envvar="MAMBAAD_VERBOSE",
            show_envvar=False,
            help="Tell how long a command took, and where an error comes from.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="MAMBAAD_CONFIG",
            show_envvar=False,
            metavar="FILE",
            help="File of settings, instead of mambaad.toml in the working folder; see `mambaad config --help`.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end; with --json also those of Python and torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print one JSON object.")] = False,
) -> None:
    if as_json and not version:
        raise typer.BadParameter(
            "goes with --version; a command's own --json comes behind its name", param_hint="--json"
        )
    if version:
        typer.echo(_versions() if as_json else f"mambaad {__version__}")
        raise typer.Exit
    if quiet and verbose:
        raise typer.BadParameter("choose one of --quiet and --verbose")
    speech.quiet, speech.verbose = quiet, verbose
    if verbose:
        began = time.perf_counter()
        context.call_on_close(lambda: warn(f"{context.invoked_subcommand} took {time.perf_counter() - began:.2f} s"))
    if distributed.world() > 1 and context.invoked_subcommand not in SHARED:
        raise MambaADError(f"{context.invoked_subcommand} runs in one process: only fit and score share their work")


def _versions() -> str:
    """What a report of a fault should say, as JSON. The kernels are loaded, which takes torch and its two seconds."""
    import json
    import platform

    import torch

    from mambaad_cli.model.kernels import cpu

    library = cpu.kernels()
    facts = {
        "mambaad": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "compiled_kernels": library is not None,
        "instruction_set": None if library is None else cpu.ISA[library.mambaad_isa],
    }
    return json.dumps(facts, ensure_ascii=False)
