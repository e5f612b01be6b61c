"""mambaad doctor."""

from typing import Annotated

import typer

from mambaad_cli.cli.app import MACHINE, command, examples


@command(panel=MACHINE, epilog=examples("mambaad doctor", "mambaad doctor --json"))
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what this machine has, what is missing and what that costs."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mambaad_cli.benchmark import machine

    facts = machine.facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))  # not markup: it may name an extra in brackets
    Console().print(table)
