"""mambaad merge."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli.cli import running
from mambaad_cli.cli.app import INSPECT, command, examples
from mambaad_cli.cli.output import check_apart, note
from mambaad_cli.files import shown, written_whole


@command(
    panel=INSPECT,
    epilog=examples(
        "mambaad merge shards/*.csv -o scores.csv", "mambaad merge shards/*.jsonl --against ./incoming/ > scores.jsonl"
    ),
)
def merge(
    rows: Annotated[
        list[Path], typer.Argument(metavar="ROWS", help="Files of rows, of each shard of mambaad score --shard.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File for the rows, instead of stdout.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Folder or image that was scored, to name the files that are missing. May be repeated, in the order "
            "in which score had them.",
        ),
    ] = None,
) -> None:
    """Put the rows of all shards together, in the order and with the content of a single run.

    A row that is missing or double is an error, and nothing is written. The exit status is that of a single run: 1 if
    some images could not be read.
    """
    from mambaad_cli.inspection import shards
    from mambaad_cli.inspection.rows import Lines

    check_apart(output, rows)
    merged = shards.merge(rows, None if against is None or not against else running.find(against))
    if output is None:
        with Lines(None) as lines:
            for line in merged.lines():
                lines.write(line)
    else:
        with (
            written_whole(output) as half,
            half.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            file.writelines(merged.lines())
        note(f"{len(merged.rows)} rows in {shown(output)}")
    running.leave(merged.verdicts)
