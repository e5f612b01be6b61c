"""The lists that come with a dataset: CSV and JSON files that name each image and its label."""

import codecs
import csv
import json
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from mambaad_cli import MambaADError
from mambaad_cli.data.image_files import is_hidden, same_name
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import shown

T = TypeVar("T")


def listed(base: Path, path: str, class_name: str, split: str, defect: str, mask: str | None) -> Sample:
    """A sample as a list names it; its paths count from `base`."""
    mask_path = listed_path(base, mask) if mask and defect != "good" else None
    return Sample(listed_path(base, path), class_name, split, defect, mask_path)


def listed_path(base: Path, name: str) -> Path:
    """The file that a list names, also where the list was made on another system.

    Windows joins names by backslashes and takes `Photos` for `photos`; macOS writes accents in another Unicode form. A
    file that is named exactly comes first. Where there is none at all, the path is returned as it would be.
    """
    exact = base / name
    if os.path.exists(exact):  # noqa: PTH110 (Path.exists raises where a folder above is closed)
        return exact
    path = base
    for part in Path(name.replace("\\", "/")).parts:
        path = _entry_like(path, part)
    return path


def _entry_like(folder: Path, name: str) -> Path:
    """The entry of a folder that has this name; else the only one that has it in another Unicode form or case."""
    path = folder / name
    try:
        if os.path.exists(path):  # noqa: PTH110
            return path
        names = _names_in(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return path
    alike = names.get(same_name(name)) or names.get(same_name(name).casefold()) or ()
    return folder / alike[0] if len(alike) == 1 else path


@lru_cache(maxsize=64)
def _names_in(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in a folder by their one Unicode form, and by that in lower case. `changed` renews what is cached."""
    names: dict[str, list[str]] = {}
    for entry in folder.iterdir():
        for key in {same_name(entry.name), same_name(entry.name).casefold()}:
            names.setdefault(key, []).append(entry.name)
    return names


def existing(samples: list[Sample], source: Path) -> list[Sample]:
    """The samples, or MambaADError where a file that `source` names is missing."""
    named = (file for sample in samples for file in (sample.path, sample.mask) if file is not None)
    missing = [file for file in named if not os.path.isfile(file)]  # noqa: PTH113 (as above)
    if missing:
        first = shown(missing[0])
        of_windows = any(re.search(r"(^|[\\/])[A-Za-z]:([\\/]|$)", str(file)) for file in missing)
        hint = "write paths relative to the list, not to a Windows drive" if of_windows else "is all unpacked?"
        raise MambaADError(f"{shown(source)} names {len(missing)} missing file(s), the first {first}: {hint}")
    return samples


def split_named(name: str, where: str) -> str:
    """`train` or `test`, or MambaADError that says `where` another word stands."""
    if name not in ("train", "test"):
        raise MambaADError(f"{where}: split is {name!r}, expected train or test")
    return name


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files right in a folder that fit a pattern, without hidden ones such as `._list.csv` of macOS."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))


def only_file(root: Path, pattern: str) -> Path:
    """`root` itself, or the only file in it that fits `pattern`."""
    if root.is_file():
        return root
    files = visible_files(root, pattern)
    if not files:
        raise MambaADError(f"no {pattern} in {shown(root)}: expected one")
    if len(files) > 1:
        names = ", ".join(shown(file.name) for file in files)
        raise MambaADError(f"{shown(root)} holds {names}: give one of these files")
    return files[0]


def _encoding(file: Path) -> str:
    """The encoding of a text file by its byte order mark: Excel and PowerShell write one; without, it is UTF-8."""
    with file.open("rb") as content:
        mark = content.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _columns(row: Sequence[str]) -> list[str]:
    return [name.strip() for name in row]


def csv_rows(file: Path, needed: set[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) for each row of a CSV file with at least the columns `needed`."""
    try:
        with file.open(newline="", encoding=_encoding(file)) as lines:
            reader = csv.reader(lines)
            columns = _columns(next(reader, []))
            rows = [(reader.line_num, dict(zip_longest(columns, map(str.strip, row), fillvalue=""))) for row in reader]
    except UnicodeError as error:
        raise MambaADError(f"cannot read {shown(file)}: {error}; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise MambaADError(f"cannot read {shown(file)}: {error}") from error
    if missing := needed - set(columns):
        lacking, header = ", ".join(sorted(missing)), shown(",".join(columns))
        raise MambaADError(f"{shown(file)} has no column {lacking}: its header is {header}")
    return [(number, row) for number, row in rows if any(row.values())]


def json_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, or MambaADError."""
    try:
        data = json.loads(file.read_text(encoding=_encoding(file)))
    except (OSError, ValueError, RecursionError) as error:
        raise MambaADError(f"cannot read {shown(file)}: {error}") from error
    if not isinstance(data, dict):
        raise MambaADError(f"{shown(file)} is not a list of a dataset: expected a JSON object with train and test")
    return data


def value_in(entry: Any, key: str, kind: type[T], file: Path) -> T:
    """`entry[key]`, or MambaADError naming `file` where the entry is no object or its value is not of that kind."""
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        raise MambaADError(f"{shown(file)}: expected {key!r} ({kind.__name__}) in {str(entry)[:80]}")
    return entry[key]


def is_meta(file: Path) -> bool:
    """Whether it is a JSON file with the objects train and test."""
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        data = json_object(file)
    except MambaADError:
        return False
    return all(isinstance(data.get(split), dict) for split in ("train", "test"))


def is_csv_list(file: Path) -> bool:
    """Whether it is a CSV file with the columns path and label."""
    try:
        with file.open(newline="", encoding=_encoding(file)) as lines:
            return {"path", "label"} <= set(_columns(next(csv.reader(lines), [])))
    except (OSError, UnicodeError, csv.Error):
        return False
