"""Ledgers of mambaad 0.2, lines of JSON: taken over once, while their lock is held against a watch of that version."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.line.disk import sync_folder


class Entry(NamedTuple):
    """A line: a photo that has a row, or the beginning of a run."""

    end: int  # bytes of the file of rows that count
    about: tuple[str, str] | None  # folder and model of a run
    name: str = ""
    size: int = 0
    mtime_ns: int = 0
    verdict: str = ""


def take_over(path: Path, write_new: Callable[[Path, Iterator[Entry]], None]) -> None:
    """Replace an old ledger by what `write_new` makes of it, at once or not at all.

    Raises MambaADError where a watch has it open, and where it is damaged.
    """
    beside = path.with_name(f".{path.name}.new")
    with path.open("rb") as file:
        _lock(file, path)
        for left in (beside, beside.with_name(f"{beside.name}-journal")):
            left.unlink(missing_ok=True)  # of a run that was interrupted right here
        try:
            write_new(beside, _entries(file, path))
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if sys.platform == "win32":
            file.close()  # there an open file cannot be replaced
        beside.replace(path)
        sync_folder(path.parent)


def _lock(file: IO[bytes], path: Path) -> None:
    if sys.platform == "win32":
        return  # mambaad 0.2 did not run there
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = True
    else:
        held = not os.path.samestat(path.stat(), os.fstat(file.fileno()))  # another one took it over just now
    if held:
        raise MambaADError(f"another mambaad watch writes {shown(path.with_suffix(''))}: choose another --output")


def _entries(file: IO[bytes], path: Path) -> Iterator[Entry]:
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return  # half-written: its row does not count
        try:
            values = json.loads(line)
            end = int(values["end"])
            if "ledger" in values:
                newer, about = values["ledger"] > 1, (str(values["folder"]), str(values["model"]))
                entry = Entry(end, about)
            else:
                newer, numbers = False, (int(values["size"]), int(values["mtime_ns"]))
                entry = Entry(end, None, str(values["path"]), *numbers, str(values["verdict"]))
        except (KeyError, TypeError, ValueError):
            raise MambaADError(f"{shown(path)} is damaged in line {number}: choose another --output") from None
        if newer:
            raise MambaADError(f"{shown(path)} is of a newer mambaad: upgrade this one")
        yield entry
