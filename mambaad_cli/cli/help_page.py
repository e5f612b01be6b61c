"""The page that `--help` prints: what a command does, then its arguments, options and commands in groups.

Two columns, so that a terminal of 80 characters leaves most of each line to the text: how an option is typed, and what
it does. Typer's own page has up to six columns. Rich is imported when a page is printed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

Row = tuple["Text", "Text"]
MAX_SHOWN_LIMIT = 100  # ranges that reach further say nothing that a user would not expect


def show(command: Any, context: Any) -> None:
    """Print the page of a command or of the whole application. Colours are left out where NO_COLOR is set."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Padding(Text(command.get_usage(context), style="bold"), (1, 1, 1, 1)))
    for paragraph in (command.help or "").split("\n\n"):
        console.print(Padding(Text(" ".join(paragraph.split())), (0, 1, 1, 1)))
    for title, rows in sections(command, context).items():
        console.print(_panel(title, rows))
    for line in ["", *(command.epilog or "").split("\n\n")]:
        console.print(Text(line and f" {line}"), soft_wrap=True)  # one line to copy, however wide the terminal is


def sections(command: Any, context: Any) -> dict[str, list[Row]]:
    """The rows of the page by the titles of their groups: arguments first, then options, then commands."""
    from rich.text import Text

    found: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        rows = found.setdefault(getattr(parameter, "rich_help_panel", None) or usual, [])
        rows.append((Text(typed(parameter), style="bold cyan"), explained(parameter)))
    for name, one in getattr(command, "commands", {}).items():
        title = getattr(one, "rich_help_panel", None) or "Commands"
        text = (one.help or "").split("\n\n")[0]
        found.setdefault(title, []).append((Text(name, style="bold cyan"), Text(" ".join(text.split()))))
    return {title: rows for title, rows in found.items() if rows}


def typed(parameter: Any) -> str:
    """How an option or an argument is typed: `--model, -m FILE`, `--[no-]examples`, `GOOD`."""
    if parameter.param_type_name == "argument":
        return argument_name(parameter)
    names = list(parameter.opts)
    if parameter.secondary_opts:
        names = [f"--[no-]{name.removeprefix('--')}" for name in names]
    names.sort(key=lambda name: not name.startswith("--"))
    if parameter.is_flag:
        return ", ".join(names)
    return f"{', '.join(names)} {parameter.metavar or parameter.name.upper()}"


def argument_name(parameter: Any) -> str:
    """An argument as it stands in the line of usage: optional ones are in brackets, lists end in dots.

    A metavar that shows its own brackets is left as it is.
    """
    name = str(parameter.metavar or parameter.name.upper())
    if "[" in name:
        return name
    return (
        ("" if parameter.required else "[")
        + name
        + ("..." if parameter.nargs != 1 else "")
        + ("" if parameter.required else "]")
    )


def explained(parameter: Any) -> "Text":
    """What an option does, and behind it its default, its limits, and whether it must be given."""
    from rich.text import Text

    text = Text(" ".join((parameter.help or "").split()))
    for fact in _facts(parameter):
        text.append(f" [{fact}]", style="dim")
    return text


def _facts(parameter: Any) -> Iterable[str]:
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    default = parameter.default
    if high is not None and high <= MAX_SHOWN_LIMIT:
        yield f"{low:g}–{high:g}"
    if parameter.required and parameter.param_type_name == "option":
        yield "required"
    if getattr(parameter, "is_flag", False) and parameter.secondary_opts and default is not None:
        yield f"default: {'yes' if default else 'no'}"
    elif default is not None and not isinstance(default, bool | list | tuple) and str(default) not in ("", "0", "0.0"):
        yield f"default: {default}"


def _panel(title: str, rows: list[Row]) -> "Panel":
    from rich.panel import Panel
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*row)
    return Panel(table, title=title, title_align="left", border_style="dim")
