"""mambaad config."""

from typing import Annotated, Any

import typer

from mambaad_cli.cli import settings_file
from mambaad_cli.cli.app import MACHINE, command, examples
from mambaad_cli.files import shown


@command(panel=MACHINE, epilog=examples("mambaad config", "mambaad --config line3.toml config --json"))
def config(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which options are set by variables and by mambaad.toml, and where each value comes from.

    Any option of any command can be set in the file mambaad.toml of the working folder, or in another that --config
    names before the command. A table is named like a command, a key like an option without its dashes: in [fit],
    max-minutes = 2. The table [mambaad] holds for all commands that have the option. Paths in the file are relative to
    its folder.

    A variable such as MAMBAAD_FIT_MAX_MINUTES does the same; 1 sets a flag and 0 unsets it. Spaces in it separate the
    values of an option that may be repeated; write a polygon as 0,0;50,0;50,50. The command line wins over a variable,
    a variable over the file, and a command's table over [mambaad].
    """
    import json

    root = ctx.find_root()
    path = settings_file.settings_path(root.params.get("config"))
    found = settings_in_force(root, path)
    if as_json:
        commands: dict[str, Any] = {}
        for one in found:
            facts = {"value": one.value, "source": one.source, "where": one.where}
            commands.setdefault(one.command or settings_file.SHARED_TABLE, {})[one.key] = facts
        typer.echo(json.dumps({"file": None if path is None else str(path), "commands": commands}, ensure_ascii=False))
        return
    if not found:
        typer.echo("nothing is set: there is no mambaad.toml here, and no variable MAMBAAD_… for an option")
    for name in dict.fromkeys(one.command for one in found):
        typer.echo(f"[{name or settings_file.SHARED_TABLE}]")
        for one in found:
            if one.command == name:
                typer.echo(f"    {one.key} = {shown(json.dumps(one.value, ensure_ascii=False))}    ({one.where})")


def settings_in_force(root: Any, path: Any) -> list[settings_file.Setting]:
    """What holds where the command line says nothing: a variable's value, or else that of the file."""
    commands = {"": root.command} | root.command.commands
    of_file = [] if path is None else settings_file.file_settings(settings_file.read_settings(path), path, root)
    of_variables = list(settings_file.variable_settings(commands))
    winning = {(one.command, one.key): one for one in [*of_file, *of_variables]}
    order = list(commands)
    return sorted(winning.values(), key=lambda one: order.index(one.command))
