"""The content of a report: counts and yields, its rows worst first, and the record for auditors."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mambaad_cli.inspection.findings import exact_interval
from mambaad_cli.inspection.row_files import Row

VERDICTS = ("good", "review", "anomalous", "unknown", "uncalibrated", "error")
PASSED = ("good",)  # a part for review has not passed yet
URGENT_VERDICTS = {"error": 3, "unknown": 2}  # these come before all scores, the highest number first


@dataclass(frozen=True)
class Entry:
    """A row of the report."""

    row: Row
    pictures: Any = None  # pictures.Pictures, or None
    link: str = ""  # to the original photo, from the report's folder
    digest: str = ""  # the first digits of the photo's SHA-256, where it was read

    @property
    def name(self) -> str:
        return os.path.basename(self.row.path)  # noqa: PTH119

    @property
    def folder(self) -> str:
        return os.path.dirname(self.row.path)  # noqa: PTH120

    @property
    def day(self) -> str:
        return "" if self.row.time is None else self.row.time.date().isoformat()

    @property
    def bar(self) -> float | None:
        """The score as a share of a bar whose middle is the threshold."""
        margin = self.row.margin
        return None if math.isinf(margin) else min(1.0, max(0.02, 0.5 + margin / 4))


@dataclass(frozen=True)
class VerdictCounts:
    """The numbers of images of a product on a day, by verdict."""

    product: str
    day: str
    verdicts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.verdicts.values())

    @property
    def judged(self) -> int:
        """Images with a verdict: all but those that could not be read."""
        return self.total - self.verdicts.get("error", 0)

    @property
    def passed(self) -> int:
        return sum(self.verdicts.get(verdict, 0) for verdict in PASSED)

    @property
    def yield_rate(self) -> float | None:
        """The share of the judged images that are good; None where nothing is judged, or there is no threshold."""
        if not self.judged or self.verdicts.get("uncalibrated"):
            return None
        return self.passed / self.judged

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the yield of the line, if images are independent of each other."""
        return exact_interval(self.passed, self.judged)


@dataclass(frozen=True)
class Report:
    """The content of a page."""

    title: str
    entries: list[Entry]  # worst first
    record: list[tuple[str, list[tuple[str, str]]]]  # (heading, (name, value) …)
    notes: list[str] = field(default_factory=list)
    study: Any = None  # the gauge study, as `mambaad msa --json` prints it

    @property
    def lead(self) -> str:
        """The line below the title: products and days."""
        products = ", ".join(name for name in self.products if name)
        days = [day for day in self.days if day]
        span = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
        return " · ".join(text for text in (products, span) if text)

    @property
    def counts(self) -> list[VerdictCounts]:
        return counted(entry.row for entry in self.entries)

    @property
    def whole(self) -> VerdictCounts:
        return VerdictCounts("", "", Counter(entry.row.verdict for entry in self.entries))

    @property
    def products(self) -> list[str]:
        return sorted({entry.row.class_name for entry in self.entries})

    @property
    def days(self) -> list[str]:
        return sorted({entry.day for entry in self.entries})

    @property
    def verdicts(self) -> list[str]:
        """The verdicts that occur, in a fixed order."""
        occurring = self.whole.verdicts
        return [verdict for verdict in VERDICTS if verdict in occurring] + sorted(set(occurring) - set(VERDICTS))


def counted(rows: Iterable[Row]) -> list[VerdictCounts]:
    """Counts by product and day, in this order.

    >>> rows = [Row("a", "nut", verdict="good"), Row("b", "nut")]
    >>> [(count.product, count.passed, count.total) for count in counted(rows)]
    [('nut', 1, 2)]
    """
    groups: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        day = "" if row.time is None else row.time.date().isoformat()
        groups.setdefault((row.class_name, day), Counter())[row.verdict] += 1
    return [VerdictCounts(*key, groups[key]) for key in sorted(groups)]


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """Unreadable images, then unknown ones, then by how far the score lies above the threshold.

    >>> rows = [Row("a", score=1.0, threshold=2.0), Row("b", verdict="error"), Row("c", score=3.0, threshold=2.0)]
    >>> [row.path for row in worst_first(rows)]
    ['b', 'c', 'a']
    """
    return sorted(rows, key=urgency)


def urgency(row: Row) -> tuple[float, float, float]:
    """Sort key of `worst_first`."""
    return -URGENT_VERDICTS.get(row.verdict, 0), -row.margin, -(row.score or 0.0)


def link_to(photo: str, page: Path) -> str:
    r"""The address of a photo, as seen from the folder of the page: report and photos can move together.

    >>> link_to("in/a b#<1>.png", Path("out/report.html"))
    '../in/a%20b%23%3C1%3E.png'
    """
    return quote(os.fsencode(os.path.relpath(photo, page.parent)))  # : too, so that no name is taken for a protocol


def thresholds(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(product, its thresholds in the rows), for the record."""
    products: dict[str, dict[float, None]] = {}
    for row in rows:
        if row.threshold is not None:
            products.setdefault(row.class_name, {})[row.threshold] = None
    return [(name or "all", ", ".join(f"{value:.6g}" for value in values)) for name, values in sorted(products.items())]
