"""Rows of score or watch -> has the line changed since the model was calibrated? Each check tells how sure that is."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from mambaad_cli.inspection.calibration import percent, six_digits
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Calibration
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


class History(NamedTuple):
    """What a plot needs, of each row that counts for a check."""

    numbers: list[int]  # of the rows
    values: list[float]  # of a share 0 or 1
    evidence: list[float]


@dataclass
class Check:
    """One question about the line, and its answer so far.

    Its memory does not grow with the rows, unless it has a `history`.
    """

    name: str  # unreadable, unknown, rejects, scores, brightness, contrast or sharpness
    product: str  # "" where it concerns all products
    test: RiseTest | ShareTest
    needed: float  # evidence that is an alarm, see drift
    limit: float | None = None  # that a share may have
    usual: tuple[float, float, float] | None = None  # quantiles by USUAL of good images
    history: History | None = None
    count: int = 0  # rows
    total: float = 0.0  # of their values
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # the last of their values
    evidence: float = 0.0  # the highest so far
    first: str = ""  # the photo of the first alarm

    def add(self, number: int, path: str, value: float) -> None:
        """Take row `number`, the photo `path`, into account."""
        evidence = self.test.add(bool(value)) if isinstance(self.test, ShareTest) else self.test.add(value)
        self.count += 1
        self.total += value
        self.recent.append(value)
        self.evidence = max(self.evidence, evidence)
        if evidence >= self.needed and not self.first:
            self.first = path
        if self.history is not None:
            self.history.numbers.append(number)
            self.history.values.append(value)
            self.history.evidence.append(evidence)

    @property
    def now(self) -> float:
        """The share of all rows, or the median of the last ones."""
        return self.total / self.count if self.limit is not None else statistics.median(self.recent)

    @property
    def alarm(self) -> bool:
        """A photo's statistic must also be unusual now: a small change of the light can be certain, and harmless."""
        if not self.first or self.name not in WORDS or self.usual is None:
            return bool(self.first)
        return not self.usual[0] <= self.now <= self.usual[2]

    def in_words(self) -> str:
        """What an alarm means, in one line."""
        count = f"{self.total:.0f} of {self.count}"
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
        """Its answer, for programs."""
        usual = None if self.usual is None else dict(zip(("q05", "median", "q95"), self.usual, strict=True))
        return {
            "test": self.name,
            "product": self.product,
            "photos": self.count,
            "now": self.now,
            "limit": self.limit,
            "usual": usual,
            "evidence": self.evidence,
            "alarm": self.alarm,
            "first": self.first or None,
            "says": self.in_words() if self.alarm else "",
        }


class Monitor:
    """Follows the rows of one model, in their order.

    false_alarm: the chance of any false alarm, in all checks together, while nothing changes on the line.
    defects: the share of real defects that is usual on this line, on top of false rejects.
    history: whether each check keeps the values of all rows, as a plot needs them.
    """

    def __init__(
        self, model: ModelRecord, false_alarm: float = 0.01, defects: float = 0.0, history: bool = False
    ) -> None:
        self.model = model.sha256
        self.rows = self.damaged = self.of_other_models = 0
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self._checks: dict[tuple[str, str], Check] = {}
        self._needed = 1 / false_alarm
        self._history = history
        self._ask("unreadable", "", ShareTest(TOLERATED), limit=TOLERATED)
        self._ask("unknown", "", ShareTest(TOLERATED), limit=TOLERATED)
        for product in model.products.values():
            if product.calibration is not None:
                self._ask_of(product.name, product.calibration, defects)
        for check in self._checks.values():
            check.needed *= len(self._checks)  # so that the promise is about all of them together (Bonferroni)

    def _ask_of(self, product: str, measured: Calibration, defects: float) -> None:
        """The checks of one product, by what was measured of its good images."""
        if measured.promising:
            limit = min(0.99, measured.ceiling + defects)
            good = [six_digits(score) for score in measured.scores]
            self._ask("rejects", product, ShareTest(limit), limit=limit)
            self._ask("scores", product, RiseTest(good), usual=_quantiles(good))
        for statistic in WORDS if measured.photos else ():
            good = [six_digits(getattr(photo, statistic)) for photo in measured.photos]
            self._ask(statistic, product, RiseTest(good, fall=True), usual=_quantiles(good))

    def _ask(self, name: str, product: str, test: RiseTest | ShareTest, **expected: Any) -> None:
        history = History([], [], []) if self._history else None
        self._checks[name, product] = Check(name, product, test, self._needed, history=history, **expected)

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
                if check := self._checks.get((name, product)):
                    check.add(self.rows, row.path, value)

    @property
    def checks(self) -> list[Check]:
        """Those for which a row counts, by product."""
        return sorted((check for check in self._checks.values() if check.count), key=lambda check: check.product)

    @property
    def needed(self) -> float:
        """The evidence that is an alarm."""
        return len(self._checks) * self._needed

    @property
    def alarm(self) -> bool:
        """Whether any check gives an alarm."""
        return any(check.alarm for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The answers of all checks, with times in ISO 8601."""
        began, ended = (None if time is None else time.isoformat() for time in (self.began, self.ended))
        return {
            "model": self.model,
            "rows": self.rows,
            "damaged": self.damaged,
            "of_other_models": self.of_other_models,
            "began": began,
            "ended": ended,
            "alarm": self.alarm,
            "evidence_for_alarm": self.needed,
            "tests": [check.as_json() for check in self.checks],
        }


def _values(row: Row) -> dict[str, float]:
    """The values of a row, by the name of the check for which they count."""
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
