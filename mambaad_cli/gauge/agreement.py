"""Attribute agreement: how often the verdicts on known parts are right, and how often they repeat.

AIAG, "Measurement Systems Analysis", 4th edition, chapter III, section C (attribute studies). A decision is one verdict
on one photo; a part is effective where each of its decisions agrees with the reference. The intervals are exact for
independent decisions (Clopper & Pearson, 1934). Several photos of one part are not quite independent, so those of
misses and false alarms are rather too narrow; effectiveness counts each part once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from mambaad_cli.inspection.findings import exact_interval


class Decision(NamedTuple):
    """One verdict on one photo of a part whose state is known."""

    part: str
    appraiser: str  # a camera, a line or a person; "" where there is one
    trial: str
    bad: bool  # the reference
    rejected: bool

    @property
    def right(self) -> bool:
        return self.bad == self.rejected


@dataclass(frozen=True)
class Share:
    """A count out of a total; low and high enclose the true share with 95 % confidence."""

    count: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float | None:
        return self.count / self.total if self.total else None


class Limits(NamedTuple):
    """What is acceptable, and what is at least marginal; `upper` where less is better."""

    acceptable: float
    marginal: float
    upper: bool = False

    def judge(self, value: float | None) -> str:
        """
        >>> limits = Limits(0.02, 0.05, upper=True)
        >>> limits.judge(0.01), limits.judge(0.03), limits.judge(0.3), limits.judge(None)
        ('acceptable', 'marginal', 'unacceptable', '')
        """
        if value is None:
            return ""
        sign = -1 if self.upper else 1
        if sign * value >= sign * self.acceptable:
            return "acceptable"
        return "marginal" if sign * value >= sign * self.marginal else "unacceptable"


# Of the AIAG manual, in the same section. Of kappa it says good above 0.75, and poor below 0.4.
EFFECTIVENESS = Limits(0.90, 0.80)
MISSES = Limits(0.02, 0.05, upper=True)
FALSE_ALARMS = Limits(0.05, 0.10, upper=True)
KAPPA = Limits(0.75, 0.40)


@dataclass(frozen=True)
class Agreement:
    """How the decisions of one appraiser, or of all together, agree with the reference and with each other."""

    appraiser: str
    effectiveness: Share  # parts on which each decision agrees with the reference
    repeatability: Share  # parts on which the decisions agree with each other, right or wrong
    misses: Share  # decisions that accept a bad part
    false_alarms: Share  # decisions that reject a good part
    kappa: float | None  # Cohen's, of decisions and reference; None where all are of one kind


def share(count: int, total: int) -> Share:
    """A share with its exact interval.

    >>> effective = share(42, 50)
    >>> effective.rate, round(effective.low, 3), round(effective.high, 3)
    (0.84, 0.709, 0.928)
    """
    return Share(count, total, *exact_interval(count, total))


def agreement(decisions: Sequence[Decision], appraiser: str) -> Agreement:
    """The agreement of these decisions, whoever made them."""
    parts = by_part(decisions).values()
    bad = [decision.rejected for decision in decisions if decision.bad]
    good = [decision.rejected for decision in decisions if not decision.bad]
    return Agreement(
        appraiser,
        effectiveness=share(sum(all(decision.right for decision in part) for part in parts), len(parts)),
        repeatability=share(sum(len({decision.rejected for decision in part}) == 1 for part in parts), len(parts)),
        misses=share(bad.count(False), len(bad)),
        false_alarms=share(good.count(True), len(good)),
        kappa=kappa([(decision.bad, decision.rejected) for decision in decisions]),
    )


def by_part(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """The decisions on each part, in the order in which the parts come."""
    parts: dict[str, list[Decision]] = {}
    for decision in decisions:
        parts.setdefault(decision.part, []).append(decision)
    return parts


def agreements(decisions: Sequence[Decision]) -> list[Agreement]:
    """Of each appraiser; where there are several, then of all together."""
    by_appraiser: dict[str, list[Decision]] = {}
    for decision in decisions:
        by_appraiser.setdefault(decision.appraiser, []).append(decision)
    each = [agreement(made, appraiser) for appraiser, made in by_appraiser.items()]
    return [*each, agreement(decisions, "all")] if len(each) > 1 else each


def kappas_between(decisions: Sequence[Decision]) -> dict[tuple[str, str], float | None]:
    """Cohen's kappa of each two appraisers, over the trials that both have."""
    rejected: dict[str, dict[tuple[str, str], bool]] = {}  # by appraiser, part and trial
    for decision in decisions:
        rejected.setdefault(decision.appraiser, {})[decision.part, decision.trial] = decision.rejected
    return {(a, b): kappa(_pairs(rejected[a], rejected[b])) for a, b in combinations(rejected, 2)}


def _pairs(first: Mapping[tuple[str, str], bool], second: Mapping[tuple[str, str], bool]) -> list[tuple[bool, bool]]:
    """What both decided on the same photos."""
    return [(first[photo], second[photo]) for photo in first if photo in second]


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa (1960): agreement beyond chance, (observed − expected) / (1 − expected).

    None where there are no pairs, and where both sides are all of one kind, so that chance alone makes them agree.

    >>> round(kappa([(True, True)] * 45 + [(True, False)] * 3 + [(False, True)] * 5 + [(False, False)] * 97), 4)
    0.8788
    """
    from sklearn.metrics import cohen_kappa_score  # which takes longer to import than the study to analyse

    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len({*first, *second}) < 2:
        return None
    return float(cohen_kappa_score(first, second))
