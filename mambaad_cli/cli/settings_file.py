"""Options from elsewhere than the command line: variables MAMBAAD_…, and the file mambaad.toml.

The command line wins over a variable, a variable over the file, the file over a default. A key is the long name of an
option without its dashes. Modules that only a file needs are imported when there is one.
"""

import datetime
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mambaad_cli import MambaADError
from mambaad_cli.files import shown

USUAL_FILE = Path("mambaad.toml")  # in the working folder
SHARED_TABLE = "mambaad"  # for the application's own options, and for all commands that have an option of the name
OF_THE_APPLICATION = ("quiet", "verbose")
NOT_SHARED = {("bench", "model")}  # there it adds rows to a table
EXCLUSIVE = (  # the options of the one side do not go with those of the other
    (("csv",), ("json", "regions", "min-area")),
    (("epochs",), ("max-minutes",)),
    (("check",), ("no-check",)),
    (("ablation",), ("recipes",)),
    (("res", "letterbox"), ("pixels", "detail")),
    (("fast",), ("preset", "detector")),
    (("quiet",), ("verbose",)),
)
OVERRULING = (*EXCLUSIVE, *(sides[::-1] for sides in EXCLUSIVE), (("preset",), ("detector",)))
RANKS = {"DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}  # of the sources of values: a file, a variable, typed
REGIONS = ("roi", "ignore")  # text that may name a mask or a folder of masks
NO_SETTINGS = ("help", "version", "config", "install-completion", "show-completion")

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """An option that is set elsewhere than on the command line."""

    command: str
    key: str
    value: Any
    source: str  # "environment" or "file"
    where: str  # MAMBAAD_FIT_EPOCHS, or mambaad.toml [fit]


def options(command: Any) -> dict[str, Any]:
    """The options of a command by their keys."""
    keyed = {_key(one): one for one in command.params if one.param_type_name == "option"}
    return {key: one for key, one in keyed.items() if key not in NO_SETTINGS}


def _key(option: Any) -> str:
    longest = max(option.opts, key=len)
    return str(longest.lstrip("-"))


def variable(command: str, key: str) -> str:
    """
    >>> variable("fit", "max-minutes"), variable("", "quiet")
    ('MAMBAAD_FIT_MAX_MINUTES', 'MAMBAAD_QUIET')
    """
    return "_".join(part.upper().replace("-", "_") for part in ("mambaad", command, key) if part)


def name_variables(commands: Mapping[str, Any]) -> None:
    """Give each option its variable, before the one that it has already: MAMBAAD_SCORE_MODEL, then MAMBAAD_MODEL."""
    for name, command in commands.items():
        for key, option in options(command).items():
            older = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
            first = variable(name, key)
            option.envvar = [first, *(one for one in older if one != first)]
            option.show_envvar = False  # one sentence in the help of the application says it for all


def settings_path(chosen: str | Path | None) -> Path | None:
    """The file of settings: the chosen one, or mambaad.toml where it is in the working folder."""
    if chosen is None:
        return USUAL_FILE if USUAL_FILE.is_file() else None
    if not os.path.exists(path := Path(chosen)):  # noqa: PTH110 (Path.exists raises where the name is too long)
        raise MambaADError(f"no file {shown(path)}: name another with --config")
    return path


def read_settings(path: Path) -> Tables:
    """The tables of a file of settings. Raises MambaADError where it cannot be read."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    except ValueError as error:  # TOML, or no UTF-8
        raise MambaADError(f"{shown(path)}: not a TOML file: {error}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise MambaADError(f"{shown(path)}: {name}: expected it in a table, such as [fit] or [{SHARED_TABLE}]")
    return tables


def file_settings(tables: Tables, path: Path, context: Any) -> list[Setting]:
    """What a file sets, a command's own table before the shared one. Values are as options take them.

    Paths in it are relative to its folder. Raises MambaADError for a command, a key or a value that cannot be.
    """
    commands = context.command.commands
    for name in tables:
        if name != SHARED_TABLE and name not in commands:
            raise MambaADError(f"{shown(path)}: [{name}]: no such command{_nearest(name, [*commands, SHARED_TABLE])}")
    found: dict[tuple[str, str], Setting] = {}
    for name, table in tables.items():
        if name == SHARED_TABLE:
            continue
        known = options(commands[name])
        for key, value in _keys(table, list(known), f"{shown(path)}: [{name}]"):
            where = f"{shown(path)}: [{name}] {key}"
            taken = _taken(_Typed(commands[name], known[key], where), value, path.parent, context)
            found[name, key] = Setting(name, key, taken, "file", f"{shown(path)} [{name}]")
    for setting in _shared(tables.get(SHARED_TABLE, {}), path, context):
        found.setdefault((setting.command, setting.key), setting)
    return list(found.values())


def _shared(table: dict[str, Any], path: Path, context: Any) -> Iterator[Setting]:
    """What the table [mambaad] sets, for the application and for each command that has the option."""
    commands = context.command.commands
    own = {key: one for key, one in options(context.command).items() if key in OF_THE_APPLICATION}
    owners = {"": (context.command, own)} | {name: (one, options(one)) for name, one in commands.items()}
    known = sorted({key for name, (_, keyed) in owners.items() for key in keyed})
    source = f"{shown(path)} [{SHARED_TABLE}]"
    for key, value in _keys(table, known, f"{shown(path)}: [{SHARED_TABLE}]"):
        for name, (command, keyed) in owners.items():
            if key in keyed and (name, key) not in NOT_SHARED:
                typed = _Typed(command, keyed[key], f"{shown(path)}: [{SHARED_TABLE}] {key}")
                yield Setting(name, key, _taken(typed, value, path.parent, context), "file", source)


def _keys(table: dict[str, Any], known: list[str], where: str) -> Iterator[tuple[str, Any]]:
    """The keys of a table with dashes, and their values."""
    seen: set[str] = set()
    for written, value in table.items():
        key = written.replace("_", "-")
        if key not in known:
            raise MambaADError(f"{where} {shown(written)}: no such option{_nearest(key, known)}")
        if key in seen:
            raise MambaADError(f"{where} {shown(written)}: it is there twice")
        seen.add(key)
        yield key, value


def _nearest(name: str, known: list[str]) -> str:
    """
    >>> _nearest("epoch", ["epochs", "batch"]), _nearest("colour", ["epochs", "batch"])
    (': did you mean epochs?', ': expected batch, epochs')
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else f": expected {', '.join(sorted(known))}"


@dataclass(frozen=True)
class _Typed:
    """An option of a command, and how an error names the place where its value stands."""

    command: Any
    option: Any
    where: str

    @property
    def kind(self) -> tuple[type, bool, bool]:
        """The type of a value, whether it is a list of such, and whether a function parses it from text."""
        hint = get_type_hints(self.command.callback, include_extras=True)[self.option.name]
        parsed = False
        if get_origin(hint) is Annotated:
            parsed = any(getattr(one, "parser", None) is not None for one in get_args(hint)[1:])
            hint = get_args(hint)[0]
        if NoneType in get_args(hint):
            hint = next(one for one in get_args(hint) if one is not NoneType)
        many = get_origin(hint) is list
        kind = get_args(hint)[0] if many else hint
        return (str if get_origin(kind) is Literal else kind), many, parsed


def _taken(typed: _Typed, value: Any, folder: Path, context: Any) -> Any:
    """A value of the file as the option takes it; a list of one may be written without its brackets."""
    kind, many, parsed = typed.kind
    if isinstance(value, list) and not many:
        raise MambaADError(f"{typed.where}: expected one value, not a list")
    values = value if isinstance(value, list) else [value]
    taken: Any = [_one(one, kind, parsed, folder, typed.where) for one in values]
    if typed.option.name in REGIONS:
        taken = [_region(one, folder) for one in taken]
    if not many:
        taken = taken[0]
    from typer import BadParameter, Context

    try:
        typed.option.process_value(Context(typed.command, parent=context), taken)
    except BadParameter as error:
        reason = shown(error.message.removeprefix("Value error, "))
        raise MambaADError(
            f"{typed.where}: {repr(value) + ': ' if repr(value) not in reason else ''}{reason}"
        ) from None
    return taken


def _region(text: str, folder: Path) -> str:
    """A region of interest, where a mask in the file's folder is found from everywhere."""
    product, equals, path = text.rpartition("=")
    there = path and os.path.exists(folder / path)  # noqa: PTH110 (Path.exists raises where the name is too long)
    return f"{product}{equals}{folder / path}" if there else text


def _one(value: Any, kind: Any, parsed: bool, folder: Path, where: str) -> Any:
    """One value, checked by its type: TOML tells numbers, text and booleans apart, and so do we."""
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text in quotes")
    fits: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(kind, (str,))
    if parsed or kind is str:  # 256, 1% and 2026-03-01 are as good as "256", "1%" and "2026-03-01"
        fits = (str, int, float, datetime.date)
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        raise MambaADError(f"{where}: expected {expected}, not {value!r}")
    if kind is Path:
        return str(folder / str(value))
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value) if parsed or kind is str else value


def variable_settings(commands: Mapping[str, Any]) -> Iterator[Setting]:
    """What the environment sets."""
    for name, command in commands.items():
        for key, option in options(command).items():
            names = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
            for one in names:
                if os.environ.get(one):
                    yield Setting(name, key, os.environ[one], "environment", one)
                    break


def blame_variable(error: Any, context: Any) -> None:
    """Name in the message of a wrong value the variable that it comes from."""
    option = error.param
    source = None if option is None else context.get_parameter_source(option.name)
    if source is not None and source.name == "ENVIRONMENT":
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        error.message += f" (from the variable {next(name for name in names if os.environ.get(name))})"


def drop_overruled(context: Any) -> None:
    """Of options that exclude each other, give those their defaults again that come from a weaker source.

    What is typed wins over a variable, and a variable over the file.
    """
    keyed = options(context.command)
    ranks = {key: _rank(context, option) for key, option in keyed.items()}
    for winners, losers in OVERRULING:
        if max(ranks.get(key, 0) for key in losers) < max(ranks.get(key, 0) for key in winners):
            for option in (keyed[key] for key in losers if ranks.get(key)):
                context.params[option.name] = option.process_value(context, option.default)


def _rank(context: Any, option: Any) -> int:
    """How strong the source of a value is; 0 for a default, and for a flag that is not set."""
    source = context.get_parameter_source(option.name)
    if source is None or context.params.get(option.name) in (None, False):
        return 0
    return RANKS.get(source.name, 0)


def use_settings(context: Any, command: str) -> None:
    """Make what a file sets the defaults of a command, and of the application's own options."""
    path = settings_path(context.params.get("config"))
    if path is None:
        return
    settings = file_settings(read_settings(path), path, context)
    keyed = options(context.command.commands[command])
    own = [one for one in settings if one.command == command]
    context.default_map = {command: {keyed[one.key].name: one.value for one in own}}
    for one in settings:
        source = context.get_parameter_source(one.key) if not one.command else None
        if source is not None and source.name == "DEFAULT":
            context.params[one.key] = one.value
            context.set_parameter_source(one.key, type(source).DEFAULT_MAP)
    drop_overruled(context)
