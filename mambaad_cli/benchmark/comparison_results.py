"""The results of finished fits, kept in a file, and the digest of the code that they are results of."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.files import shown

# the code that changes the result of a fit, in the folder of the package
SOURCES = (
    "model",
    "data",
    "inspection",
    "training",
    "benchmark/evaluation.py",
    "benchmark/metrics.py",
    "benchmark/peers.py",
)


@functools.cache
def source_digest() -> str:
    """A digest of the package's code that fits and measures: it changes with any of these files, renamed ones too."""
    package = Path(mambaad_cli.__file__).parent
    return digest_of(package, [package / name for name in SOURCES])


def digest_of(root: Path, sources: list[Path]) -> str:
    """A digest of the Python and C files among `sources` and in folders among them: contents and paths below `root`."""
    files = {file for source in sources for file in (source.rglob("*") if source.is_dir() else [source])}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in (".py", ".c", ".h")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


class ResultsFile:
    """The file of finished cells by their keys, a JSON object on each line. Several runs may share it."""

    def __init__(self, path: Path) -> None:
        """Raises MambaADError for a file that cannot be read or holds other data."""
        self.path = path
        self.cells = {cell["key"]: cell for cell in _read(path)}

    def add(self, cell: dict[str, Any]) -> None:
        line = json.dumps(cell) + "\n"
        self.cells[cell["key"]] = json.loads(line)  # as the next run will read it
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read() == b"\n" else f"\n{line}"  # the last line was cut off
                file.write(line.encode())
        except OSError as error:
            raise MambaADError(f"cannot write {shown(self.path)}: {error.strerror or error}") from error


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise MambaADError(f"cannot read results from {shown(path)}: {error}") from error
    cells = [_parsed(line) for line in lines]
    if cells and not any(cells):
        raise MambaADError(f"{shown(path)} holds no results of mambaad bench --data: name another file with --results")
    yield from filter(None, cells)


def _parsed(line: str) -> dict[str, Any] | None:
    """A cell; None for a line that was cut off by a full disk or a killed process."""
    try:
        cell = json.loads(line)
    except ValueError:
        return None
    return cell if isinstance(cell, dict) and {"key", "mean", "classes"} <= cell.keys() else None
