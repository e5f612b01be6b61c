"""Predictions as rows for programs and as a table for people."""

import csv
import heapq
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.files import is_closed_pipe, shown
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.regions import json_object

if TYPE_CHECKING:
    from mambaad_cli.inspection.shards import Share

COLUMNS = ("path", "class", "score", "threshold", "verdict", "error", "p_value", "certainty", "warning")
SCHEMA = 1  # of JSON rows; it grows where a field changes its meaning or goes, not where one is added
STYLES = {"anomalous": "red", "review": "yellow", "unknown": "magenta", "good": "green", "error": "magenta"}
WORST = 50  # rows of the table; all of them are in --csv
BAR, FULL = 24, 4.0  # characters of a bar; it is full this many spans above the threshold


def row(prediction: Prediction) -> dict[str, Any]:
    """The row of one image, for CSV; unknown values are None."""
    values = (
        prediction.file.name,
        prediction.class_name,
        prediction.score,
        prediction.threshold,
        prediction.verdict,
        prediction.error,
        prediction.p_value,
        prediction.certainty,
        prediction.warning,
    )
    return dict(zip(COLUMNS, values, strict=True))


def json_row(prediction: Prediction, model: str, regions: bool = False) -> dict[str, Any]:
    """The row of one image that was scored just now, for JSON: that of CSV and more; `regions` adds a list of them.

    model: the first digits of the SHA-256 of the model's file.
    """
    named = row(prediction)
    if regions:
        named["regions"] = None if prediction.regions is None else [json_object(one) for one in prediction.regions]
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    photo = prediction.photo._asdict() if prediction.photo else dict.fromkeys(PhotoStatistics._fields)
    return named | {"schema": SCHEMA, "time": now, "model": model or None} | photo


def csv_line(values: Iterable[Any]) -> str:
    r"""One CSV line, RFC 4180 quoting. Text that a spreadsheet would run as a formula gets an apostrophe before it.

    >>> csv_line(["=1+1.png", 12.3456789, None, "a"])
    "'=1+1.png,12.3457,,a\n"
    """
    return quoted_line(_cell(value) for value in values)


def quoted_line(cells: Iterable[str]) -> str:
    r"""One CSV line of cells as they are, such as those that were read from one, RFC 4180 quoting.

    >>> quoted_line(["'=1+1.png", "-12.5", "a,b"])
    '\'=1+1.png,-12.5,"a,b"\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # quotes text with \r or \n
    return line.getvalue()[:-2] + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def json_line(values: dict[str, Any]) -> str:
    """One JSON object on a line; floats to six significant digits."""
    return json.dumps(_plain(values)) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON has no infinity


class Lines:
    """Where rows go: stdout or a file. Each is flushed at once. A line that was only partly written is removed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.whole = 0  # bytes of complete lines
        self.file: TextIO = sys.stdout

    def __enter__(self) -> "Lines":
        if self.path is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names may be any bytes
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise MambaADError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def write(self, line: str) -> None:
        try:
            self.file.write(line)
            self.file.flush()
            if self.path is not None:
                self.whole = self.file.tell()
        except OSError as error:
            if is_closed_pipe(error):
                raise
            where = self.path or "stdout"
            raise MambaADError(f"cannot write {where}: {error.strerror}; the rows before are kept") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        try:
            self.file.close()
        except OSError:  # rows that could not be flushed; write has reported it
            os.truncate(self.path, self.whole)


def write_rows(
    predictions: Iterable[Prediction],
    path: Path | None,
    as_json: bool,
    regions: bool = False,
    model: str = "",
    share: "Share | None" = None,
) -> "Counter[str]":
    """Stream one row per image to stdout or a file, CSV with a header or JSON lines; returns the verdicts.

    With `regions`, which needs JSON, each row lists the regions above the threshold. `model`: see `json_row`.
    With a `share` of the files, each row ends with what it tells of the shards.
    """
    counts: Counter[str] = Counter()
    with Lines(path) as lines:
        if not as_json:
            lines.write(csv_line((*COLUMNS, *(() if share is None else share.names))))
        for index, one in enumerate(predictions):
            counts[one.verdict] += 1
            values = json_row(one, model, regions) if as_json else row(one)
            values |= {} if share is None else share.columns(index)
            lines.write(json_line(values) if as_json else csv_line(values.values()))
    return counts


def worst_first(predictions: Iterable[Prediction], counts: "Counter[str]") -> Iterator[Prediction]:
    """The images to look at first: those with an error, then the highest scores, at most `WORST`. Counts verdicts."""

    def seen() -> Iterator[Prediction]:
        for one in predictions:
            counts[one.verdict] += 1
            yield one

    yield from heapq.nlargest(WORST, seen(), key=lambda one: one.urgency)


def print_table(predictions: Iterable[Prediction], console: Console) -> "Counter[str]":
    """A table for people, worst first, with a bar for each score, half full at the threshold; returns the verdicts."""
    counts: Counter[str] = Counter()
    rows = list(worst_first(predictions, counts))
    highest = max((one.score for one in rows if one.score is not None), default=1.0)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold", min_width=24)
    if len({one.class_name for one in rows}) > 1:
        table.add_column("class")
    table.add_column("score", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in rows:
        cells = [Text(shown(one.file.name))]
        if len(table.columns) == 5:
            cells.append(Text(shown(one.class_name)))
        style = STYLES.get(one.verdict, "cyan")
        score = "" if one.score is None else f"{one.score:#.3g}".rstrip(".")
        cells += [Text(score), bar(one, highest, style), Text(one.verdict, style=style)]
        table.add_row(*cells)
    console.print(table)
    for one in rows:
        if said := one.error or one.warning:
            console.print(Text(f"{shown(one.file.name)}: {said}"))
    total = sum(counts.values())
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    console.print(f"\n{total} images: {said}", highlight=False)
    if total > len(rows):
        console.print(f"the worst {len(rows)} are shown; --csv lists all", highlight=False)
    return counts


def bar(one: Prediction, highest: float, style: str) -> Text:
    """The score as a bar whose middle is the threshold. Without a threshold, the highest score fills it.

    It grows with the distance from the threshold, since scores and thresholds may be negative.
    """
    if one.score is None:
        return Text()
    share = one.score / (highest or 1.0) if one.colour_scale is None else 0.5 + one.urgency / (2 * FULL)
    filled = round(max(0.0, min(1.0, share)) * BAR)
    marks = ["━"] * filled + [" "] * (BAR - filled)
    if one.colour_scale is not None and filled < BAR // 2:
        marks[BAR // 2] = "┊"
    return Text("".join(marks), style=style)
