"""The lists that come with a dataset: CSV and JSON files that name each image and its label."""

import csv
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from mambaad_cli import MambaADError
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import shown

T = TypeVar("T")


def listed(base: Path, path: str, class_name: str, split: str, defect: str, mask: str | None) -> Sample:
    """A sample as a list names it; its paths count from `base`."""
    return Sample(base / path, class_name, split, defect, base / mask if mask and defect != "good" else None)


def existing(samples: list[Sample], source: Path) -> list[Sample]:
    """The samples, or MambaADError where a file that `source` names is missing."""
    named = (file for sample in samples for file in (sample.path, sample.mask) if file is not None)
    missing = [file for file in named if not file.is_file()]
    if missing:
        first = shown(missing[0])
        raise MambaADError(f"{shown(source)} names {len(missing)} missing file(s), the first {first}: is all unpacked?")
    return samples


def split_named(name: str, where: str) -> str:
    """`train` or `test`, or MambaADError that says `where` another word stands."""
    if name not in ("train", "test"):
        raise MambaADError(f"{where}: split is {name!r}, expected train or test")
    return name


def only_file(root: Path, pattern: str) -> Path:
    """`root` itself, or the only file in it that fits `pattern`."""
    if root.is_file():
        return root
    files = sorted(root.glob(pattern))
    if not files:
        raise MambaADError(f"no {pattern} in {shown(root)}: expected one")
    if len(files) > 1:
        names = ", ".join(shown(file.name) for file in files)
        raise MambaADError(f"{shown(root)} holds {names}: give one of these files")
    return files[0]


def csv_rows(file: Path, needed: set[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) for each row of a CSV file with at least the columns `needed`."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            columns = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, dict(zip_longest(columns, map(str.strip, row), fillvalue=""))) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MambaADError(f"cannot read {shown(file)}: {error}") from error
    if missing := needed - set(columns):
        lacking, header = ", ".join(sorted(missing)), shown(",".join(columns))
        raise MambaADError(f"{shown(file)} has no column {lacking}: its header is {header}")
    return [(number, row) for number, row in rows if any(row.values())]


def json_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, or MambaADError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
        with file.open(newline="", encoding="utf-8-sig") as lines:
            return {"path", "label"} <= set(next(csv.reader(lines), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
