"""Rows of score or watch -> has the line changed since the model was calibrated? Each test says how sure that is."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.calibration import ceiling, percent, six_digits
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.row_files import Damaged, Row
from mambaad_cli.line.drift import RiseTest, ShareTest

TOLERATED = 0.01  # share of photos that may be unreadable, and of those that may look like no product
RECENT = 50  # photos whose median is what a value is now
USUAL = (0.05, 0.5, 0.95)  # quantiles of good images
WORDS = {  # what a fall and a rise of each statistic look like
    "brightness": ("photos are darker", "photos are brighter"),
    "contrast": ("photos have less contrast", "photos have more contrast"),
    "sharpness": ("photos are less sharp: out of focus, shaken, or a dirty lens", "photos are sharper, or noisier"),
}


@dataclass
class Test:
    """One question about the line, and what its answer is so far."""

    name: str  # unreadable, unknown, rejects, scores, brightness, contrast or sharpness
    product: str  # "" of all
    tester: RiseTest | ShareTest
    needed: float  # money of the gambler that is an alarm, see drift
    limit: float | None = None  # that a share may have
    usual: tuple[float, float, float] | None = None  # quantiles by USUAL of good images
    numbers: list[int] = field(default_factory=list)  # of the rows that count for it
    values: list[float] = field(default_factory=list)  # of these rows; of a share 0 or 1
    money: list[float] = field(default_factory=list)
    first: str = ""  # the photo of the first alarm

    def add(self, number: int, path: str, value: float) -> None:
        """Take row `number`, the photo `path`, into account."""
        money = self.tester.add(bool(value)) if isinstance(self.tester, ShareTest) else self.tester.add(value)
        self.numbers.append(number)
        self.values.append(value)
        self.money.append(money)
        if money >= self.needed and not self.first:
            self.first = path

    @property
    def now(self) -> float:
        """The share of all rows, or the median of the last ones."""
        if self.limit is not None:
            return sum(self.values) / len(self.values)
        return statistics.median(self.values[-RECENT:])

    @property
    def alarm(self) -> bool:
        """A photo's statistic must also be unusual now: a small change of the light can be certain, and harmless."""
        if not self.first or self.name not in WORDS or self.usual is None:
            return bool(self.first)
        return not self.usual[0] <= self.now <= self.usual[2]

    def in_words(self) -> str:
        """What an alarm means, in one line."""
        count = f"{sum(self.values):.0f} of {len(self.values)}"
        if self.usual is None:
            return {
                "unreadable": f"{count} files cannot be read",
                "unknown": f"{count} photos look like no product of the model",
                "rejects": f"{count} parts are rejected, at times more than {percent(self.limit or 0)}",
            }[self.name]
        low, middle, high = self.usual
        if self.name == "scores":
            return f"scores of good parts have risen: median {self.now:.4g}, {middle:.4g} at calibration"
        return f"{WORDS[self.name][self.now > middle]}: {self.name} {self.now:.3g}, {low:.3g} to {high:.3g} at fit"

    def as_json(self) -> dict[str, Any]:
        usual = None if self.usual is None else dict(zip(("q05", "median", "q95"), self.usual, strict=True))
        return {
            "test": self.name,
            "product": self.product,
            "photos": len(self.values),
            "now": self.now,
            "limit": self.limit,
            "usual": usual,
            "evidence": max(self.money),
            "alarm": self.alarm,
            "first": self.first or None,
            "says": self.in_words() if self.alarm else "",
        }


class Monitor:
    """Follows the rows of one model, in their order.

    false_alarm: the chance of any false alarm, in all tests together, while nothing changes on the line.
    defects: the share of real defects that is usual on this line, on top of false rejects.
    """

    def __init__(self, model: FittedModel, false_alarm: float = 0.01, defects: float = 0.0) -> None:
        self.model = model.sha256
        self.rows = self.damaged = self.of_other_models = 0
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self._tests: dict[tuple[str, str], Test] = {}
        self._needed = 1 / false_alarm
        self._ask("unreadable", "", ShareTest(TOLERATED), limit=TOLERATED)
        self._ask("unknown", "", ShareTest(TOLERATED), limit=TOLERATED)
        for name, scores in model.scores.items():
            if name not in model.held_out:
                continue  # nothing was promised
            limit = min(0.99, ceiling(len(scores), model.share_of(scores)) + defects)
            good = [six_digits(one) for one in scores]
            self._ask("rejects", name, ShareTest(limit), limit=limit)
            self._ask("scores", name, RiseTest(good), usual=_quantiles(good))
        for name, photos in model.photo_statistics.items():
            for part in PhotoStatistics._fields if photos else ():
                good = [six_digits(getattr(one, part)) for one in photos]
                self._ask(part, name, RiseTest(good, fall=True), usual=_quantiles(good))
        for one in self._tests.values():
            one.needed *= len(self._tests)  # so that the promise is of all of them together (Bonferroni)

    def _ask(self, name: str, product: str, tester: RiseTest | ShareTest, **expected: Any) -> None:
        self._tests[name, product] = Test(name, product, tester, self._needed, **expected)

    def add(self, row: Row | Damaged) -> None:
        """Take one row into account. Rows of another model are counted and left out, and so are damaged lines."""
        if isinstance(row, Damaged):
            self.damaged += not row.growing
        elif row.model and self.model and row.model != self.model:
            self.of_other_models += 1
        else:
            self.rows += 1
            self.began, self.ended = self.began or row.time, row.time or self.ended
            for name, value in _values(row).items():
                product = "" if name in ("unreadable", "unknown") else row.class_name
                if test := self._tests.get((name, product)):
                    test.add(self.rows, row.path, value)

    @property
    def tests(self) -> list[Test]:
        """Those with a row that counts for them, by product."""
        return sorted((one for one in self._tests.values() if one.values), key=lambda one: one.product)

    def as_json(self) -> dict[str, Any]:
        """All that was found, with times in ISO 8601."""
        began, ended = (None if one is None else one.isoformat() for one in (self.began, self.ended))
        return {
            "model": self.model,
            "rows": self.rows,
            "damaged": self.damaged,
            "of_other_models": self.of_other_models,
            "began": began,
            "ended": ended,
            "alarm": any(one.alarm for one in self.tests),
            "evidence_for_alarm": len(self._tests) * self._needed,
            "tests": [one.as_json() for one in self.tests],
        }


def _values(row: Row) -> dict[str, float]:
    """What a row says, by the name of the test that it counts for."""
    if row.score is None:
        return {"unreadable": 1.0}
    if row.verdict == "unknown":
        return {"unreadable": 0.0, "unknown": 1.0}
    values = {"unreadable": 0.0, "unknown": 0.0, "rejects": float(row.verdict == "anomalous")}
    if row.verdict != "anomalous":  # presumed good
        values["scores"] = row.score
    return values | (row.photo._asdict() if row.photo else {})


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, USUAL)
    return float(low), float(middle), float(high)
