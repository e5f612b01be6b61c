"""mambaad monitor."""

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli.app import ANOMALY_FOUND, LINE, command, examples
from mambaad_cli.cli.options import DEFAULT_MODEL, ModelFile, parse_share
from mambaad_cli.cli.output import check_writable, warn
from mambaad_cli.files import check_plot, shown

if TYPE_CHECKING:
    from mambaad_cli.line.monitoring import Monitor

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str) -> datetime:
    """A time that is as long ago as `text` tells, or a date.

    >>> str(parse_since("2026-03-01")), parse_since("7d") < datetime.now(timezone.utc) - timedelta(days=6)
    ('2026-03-01 00:00:00+00:00', True)
    """
    if ago := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([mhdw])", text.strip()):
        try:
            return datetime.now(timezone.utc) - timedelta(**{UNITS[ago[2]]: float(ago[1])})
        except OverflowError:
            pass
    try:
        time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected 30m, 12h, 7d or 2w, or a date such as 2026-03-01") from None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


@command(
    panel=LINE,
    epilog=examples("mambaad monitor rows.jsonl", "mambaad monitor rows.jsonl --since 7d --plot drift.png"),
)
def monitor(
    rows: Annotated[
        list[Path], typer.Argument(metavar="ROWS", help="Files of rows, of watch or score, the oldest first.")
    ],
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_since, metavar="TIME", help="Only rows of the last 30m, 12h, 7d or 2w, or since a date (UTC)."
        ),
    ] = None,
    model: ModelFile = DEFAULT_MODEL,
    false_alarm: Annotated[
        float,
        typer.Option(parser=parse_share, metavar="SHARE", help="Chance of a false alarm, ever, while nothing changes."),
    ] = 0.01,
    defects: Annotated[
        float | None,
        typer.Option(parser=parse_share, metavar="SHARE", help="Share of parts with defects that is usual here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw scores, photos and evidence: a .png or .svg file.")
    ] = None,
) -> None:
    """Tell whether scores, rejects or photos have changed since the model was calibrated. Exit status 3 on an alarm."""
    from mambaad_cli.inspection import runtimes, store
    from mambaad_cli.line import monitor_output
    from mambaad_cli.line.monitoring import Monitor

    if plot is not None:
        check_plot(plot)
        check_writable(plot)
    if model.suffix.lower() in runtimes.SUFFIXES:
        raise MambaADError(f"{shown(model)} is an exported model: take the model file that it was made from")
    monitor = Monitor(store.load(model), false_alarm, defects or 0.0, history=plot is not None)
    _follow(monitor, rows, since)
    if as_json:
        from mambaad_cli.inspection.rows import json_line

        typer.echo(json_line(monitor.as_json()), nl=False)
    else:
        from rich.console import Console

        monitor_output.print_table(monitor, Console())
    if plot is not None:
        monitor_output.plot(monitor, plot)
    raise typer.Exit(ANOMALY_FOUND if monitor.alarm else 0)


def _follow(monitor: "Monitor", paths: list[Path], since: datetime | None) -> None:
    """Read the rows; report in one line each what was left out."""
    from mambaad_cli.inspection.row_files import Row, read_rows

    for path in paths:
        for row in read_rows(path):
            if since is not None and isinstance(row, Row):
                if row.time is None:
                    raise MambaADError(f"the rows of {shown(path)} have no time: --since needs JSON rows")
                if row.time < since:
                    continue
            monitor.add(row)
    if monitor.damaged:
        warn(f"{monitor.damaged} damaged rows were left out")
    if monitor.of_other_models:
        warn(f"{monitor.of_other_models} rows of other models than {monitor.model} were left out")
    if not monitor.rows:
        when = "" if since is None else f" since {since.isoformat(timespec='minutes')}"
        raise MambaADError(f"no rows{when} in {', '.join(map(shown, paths))}")
