"""Writes docs/reference/commands.md from the commands themselves: python docs/commands.py

A test fails when the page is not what this program would write.
"""

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

from mambaad_cli.cli import app

PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """\
<!-- Written by `python docs/commands.py`: change the commands, not this page. -->

# Commands

`mambaad COMMAND --help` prints the same in a terminal. `mambaad --version` prints the version.
"""
TYPES = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}
USUAL_PANEL = "Options"


class Parameter(NamedTuple):
    """One argument or option of a command."""

    name: str  # of the function's argument
    type: Any  # what it takes, without None
    info: ArgumentInfo | OptionInfo

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, ArgumentInfo)

    @property
    def required(self) -> bool:
        return self.info.default is ...

    @property
    def names(self) -> tuple[str, ...]:
        """All names of an option: --output and -o, or --flips and --no-flips."""
        if self.info.param_decls:
            return tuple(name for declared in self.info.param_decls for name in declared.split("/"))
        word = self.name.replace("_", "-")
        return (f"--{word}", f"--no-{word}") if self.type is bool else (f"--{word}",)

    @property
    def spelling(self) -> str:
        """As it is typed: `--output`, `-o` FILE."""
        value = cell(self.info.metavar or "") or spelt_type(self.type)
        if self.is_argument:
            return f"`{self.info.metavar or self.name.upper()}`"
        names = ", ".join(f"`{name}`" for name in self.names)
        return names if self.type is bool else f"{names} {value}"

    @property
    def remark(self) -> str:
        """The help, and what else decides its value."""
        remarks = [self.info.help or ""]
        if self.required and not self.is_argument:
            remarks.append("Required.")
        elif self.info.default not in (..., None, False, True):
            remarks.append(f"Default: `{self.info.default}`.")
        if self.info.envvar:
            remarks.append(f"Environment variable: `{self.info.envvar}`.")
        return cell(" ".join(remarks))


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """All that a command takes, in its own order."""
    for name, parameter in get_params_from_function(function).items():
        info = parameter.default
        if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:  # else it is the context of Typer
            yield Parameter(name, without_none(parameter.annotation), info)


def without_none(kind: Any) -> Any:
    """`Path` of `Path | None`."""
    kinds = [one for one in typing.get_args(kind) if one is not type(None)]
    return kinds[0] if type(None) in typing.get_args(kind) else kind


def spelt_type(kind: Any) -> str:
    """What a value looks like: PATH, or a choice such as small \\| paper."""
    if typing.get_origin(kind) is typing.Literal:
        return r" \| ".join(str(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return spelt_type(typing.get_args(kind)[0])
    return TYPES.get(kind, "")


def cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def usage(name: str, taken: list[Parameter]) -> str:
    """The line that shows how the command is typed."""
    words = [f"mambaad {name}"]
    for one in taken:
        if one.is_argument:
            word = one.info.metavar or one.name.upper() + ("..." if typing.get_origin(one.type) is list else "")
            words.append(word if one.required else f"[{word}]")
        elif one.required:
            words.append(f"{one.names[0]} {one.info.metavar or spelt_type(one.type)}")
    return " ".join([*words, "[OPTIONS]"])


def panels(taken: list[Parameter]) -> dict[str, list[Parameter]]:
    """Options by the headings that `--help` shows them under."""
    found: dict[str, list[Parameter]] = {}
    for one in taken:
        if not one.is_argument:
            found.setdefault(one.info.rich_help_panel or USUAL_PANEL, []).append(one)
    return found


def section(name: str, function: Callable[..., Any], epilog: str | None) -> str:
    """All of one command."""
    taken = list(parameters(function))
    text = inspect.getdoc(function) or ""
    parts = [f"## {name}", text, f"```text\n{usage(name, taken)}\n```"]
    if arguments := [one for one in taken if one.is_argument]:
        parts.append(table("Argument", arguments))
    for panel, options in panels(taken).items():
        parts.append(table("Option" if panel == USUAL_PANEL else panel, options))
    if epilog:
        lines = [line for line in epilog.split("\n") if line.startswith("mambaad")]
        parts.append("\n".join(["Examples:\n", "<!-- not run: the files are yours -->", "```bash", *lines, "```"]))
    return "\n\n".join(parts)


def table(heading: str, listed: list[Parameter]) -> str:
    rows = [f"| {one.spelling} | {one.remark} |" for one in listed]
    return "\n".join([f"| {heading} | |", "|---|---|", *rows])


def page() -> str:
    """The whole page."""
    sections = []
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        sections.append(section(name, command.callback, command.epilog))
    return "\n\n".join([HEAD.rstrip(), *sections]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(app.registered_commands)} commands")
