"""What a threshold finds: of simulated defects by kind and size, and of known defects with an exact interval."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mambaad_cli.inspection.calibration import ceiling, exceeds, promise

if TYPE_CHECKING:
    from mambaad_cli.inspection.fitted_model import FittedModel

SURE = 0.9  # share of the defects of at least some length that are found, from which that length is named
FEWEST = 3  # defects that a length is named from


class Found(NamedTuple):
    """How many simulated defects of a kind a threshold finds."""

    kind: str
    found: int
    total: int
    length: float | None  # pixels of the photo, from which SURE of them are found; None: not even the largest


def found_simulated(rows: Sequence[tuple[str, float, float]], threshold: float) -> list[Found]:
    """Of each kind, from (kind, length, score) of simulated defects.

    >>> found_simulated([("spot", 4.0, 1.0), ("spot", 8.0, 3.0), ("spot", 9.0, 4.0), ("spot", 20.0, 5.0)], 2.0)
    [Found(kind='spot', found=3, total=4, length=8.0)]
    """
    found = []
    for kind in dict.fromkeys(kind for kind, _, _ in rows):
        own = sorted((length, exceeds(score, threshold)) for other, length, score in rows if other == kind)
        hits = [hit for _, hit in own]
        tails = [i for i in range(len(own) - FEWEST + 1) if sum(hits[i:]) >= SURE * len(hits[i:])]
        found.append(Found(kind, sum(hits), len(own), own[tails[0]][0] if tails else None))
    return found


def described(found: Sequence[Found]) -> str:
    """One line for people.

    >>> described([Found("spot", 3, 4, 8.0), Found("scratch", 1, 4, None)])
    'finds 4 of 8 simulated defects: spot 3/4 (90% from 8 px), scratch 1/4'
    """
    kinds = [
        f"{one.kind} {one.found}/{one.total}"
        + ("" if one.length is None else f" ({SURE:.0%} from {one.length:.0f} px)")
        for one in found
    ]
    hits, total = sum(one.found for one in found), sum(one.total for one in found)
    return f"finds {hits} of {total} simulated defects: {', '.join(kinds)}"


class Misses(NamedTuple):
    """How many known defects a threshold misses; low and high enclose the true miss rate with 95 % confidence."""

    missed: int
    total: int
    low: float
    high: float


def misses_of(scores: Sequence[float], threshold: float) -> Misses:
    """Known defects that do not exceed a threshold, with the exact binomial interval (Clopper & Pearson, 1934).

    >>> found = misses_of([1.0, 3.0, 4.0, 5.0], 2.0)
    >>> found.missed, found.total, round(found.low, 3), round(found.high, 3)
    (1, 4, 0.006, 0.806)
    """
    missed = sum(not exceeds(score, threshold) for score in scores)
    return Misses(missed, len(scores), *exact_interval(missed, len(scores)))


def exact_interval(count: int, n: int) -> tuple[float, float]:
    """The interval that holds the true share of `count` in n with 95 % confidence (Clopper & Pearson, 1934).

    >>> [round(end, 3) for end in exact_interval(0, 10)], exact_interval(0, 0)
    ([0.0, 0.308], (0.0, 1.0))
    """
    from scipy.stats import binomtest

    if n == 0:  # of nothing, nothing is known
        return 0.0, 1.0
    interval = binomtest(count, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def summary(model: "FittedModel") -> dict[str, dict[str, Any]]:
    """Of each class with scores, fit for JSON: its threshold, what that promises, and what it finds."""
    found = {}
    for name, scores in model.scores.items():
        threshold, n = model.threshold(name), len(scores)
        assert threshold is not None
        promising = name in model.held_out
        found[name] = {
            "threshold": threshold,
            "good_images": n,
            "held_out": promising,
            "above_threshold": sum(exceeds(score, threshold) for score in scores),
            "promised_false_rejects": promise(n, model.share_of(scores)) if promising else None,
            "false_rejects_at_95_confidence": ceiling(n, model.share_of(scores)) if promising else None,
            "simulated_defects": [one._asdict() for one in found_simulated(model.simulated.get(name, []), threshold)],
        }
    return found


class Known(NamedTuple):
    """What a class's threshold does to known defects."""

    misses: Misses
    finds_all: float | None  # a lower threshold that would miss none; None where none is missed
    would_reject: int | None  # good images of the calibration above that one


def known_defects(model: "FittedModel", scores: Mapping[str, Sequence[float]]) -> dict[str, Known]:
    """From the scores of known defects by class."""
    found = {}
    for name, own in scores.items():
        misses = misses_of(own, model.threshold(name) or 0.0)
        lower = threshold_that_finds(own) if misses.missed and name in model.scores else None
        rejected = None if lower is None else sum(exceeds(score, lower) for score in model.scores[name])
        found[name] = Known(misses, lower, rejected)
    return found


def threshold_that_finds(scores: Sequence[float]) -> float:
    """The highest threshold that every one of these known defects exceeds, in six digits.

    >>> threshold_that_finds([3.0, 2.0])
    1.99999
    """
    least = min(scores)
    return float(f"{least - max(abs(least), 1e-6) * 5e-6:.6g}") if math.isfinite(least) else least
