"""What a threshold finds: of simulated defects by kind and size, and of known defects with an exact interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mambaad_cli.inspection.calibration import exceeds, promise
from mambaad_cli.inspection.product import Calibration, Products, threshold_of

SURE_SHARE = 0.9  # of the defects of at least some length that are found, from which that length is named
MIN_DEFECTS = 3  # that a length is named from
ALTERNATIVES = (0.01, 0.10)  # shares of good images that may be rejected, beside the chosen one


class Found(NamedTuple):
    """How many simulated defects of a kind a threshold finds."""

    kind: str
    found: int
    total: int
    length: float | None  # pixels of the photo, from which SURE_SHARE of them are found; None: not even the largest


def found_simulated(rows: Sequence[tuple[str, float, float]], threshold: float) -> list[Found]:
    """Of each kind, from (kind, length, score) of simulated defects.

    >>> found_simulated([("spot", 4.0, 1.0), ("spot", 8.0, 3.0), ("spot", 9.0, 4.0), ("spot", 20.0, 5.0)], 2.0)
    [Found(kind='spot', found=3, total=4, length=8.0)]
    """
    kinds = []
    for kind in dict.fromkeys(kind for kind, _, _ in rows):
        defects = sorted((length, exceeds(score, threshold)) for other, length, score in rows if other == kind)
        hits = [hit for _, hit in defects]
        tails = [i for i in range(len(defects) - MIN_DEFECTS + 1) if sum(hits[i:]) >= SURE_SHARE * len(hits[i:])]
        kinds.append(Found(kind, sum(hits), len(defects), defects[tails[0]][0] if tails else None))
    return kinds


def described(found: Sequence[Found]) -> str:
    """One line for people.

    >>> described([Found("spot", 3, 4, 8.0), Found("scratch", 1, 4, None)])
    'finds 4 of 8 simulated defects: spot 3/4 (90% from 8 px), scratch 1/4'
    """
    kinds = [
        f"{kind.kind} {kind.found}/{kind.total}"
        + ("" if kind.length is None else f" ({SURE_SHARE:.0%} from {kind.length:.0f} px)")
        for kind in found
    ]
    hits, total = sum(kind.found for kind in found), sum(kind.total for kind in found)
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


def summary(products: Products) -> dict[str, dict[str, Any]]:
    """Of each calibrated product, fit for JSON: its threshold, what that promises, and what it finds."""
    calibrations = {name: product.calibration for name, product in products.items()}
    return {name: _summary(measured) for name, measured in calibrations.items() if measured is not None}


def _summary(measured: Calibration) -> dict[str, Any]:
    threshold, count = measured.threshold, len(measured.scores)
    return {
        "threshold": threshold,
        "good_images": count,
        "held_out": measured.promising,
        "above_threshold": sum(exceeds(score, threshold) for score in measured.scores),
        "source": "new photos" if measured.new_photos else "training photos",
        "promised_false_rejects": measured.promised if measured.promising else None,
        "false_rejects_at_95_confidence": measured.ceiling if measured.promising else None,
        "simulated_defects": [kind._asdict() for kind in found_simulated(measured.simulated, threshold)],
        "choices": [choice._asdict() for choice in choices(measured)],
    }


class Choice(NamedTuple):
    """What a threshold costs and what it finds."""

    rejects: float  # share of new good images, at most
    threshold: float
    found: int  # of the simulated defects
    above: int  # of the good images that it comes from
    chosen: bool


def choices(measured: Calibration) -> list[Choice]:
    """The chosen threshold beside those that reject less and more, the highest first."""
    count = len(measured.scores)
    wanted = [(measured.promised, measured.threshold, True)]
    wanted += [(promise(count, share), measured.threshold_for(share), False) for share in ALTERNATIVES]
    different = {threshold: (rejects, threshold, chosen) for rejects, threshold, chosen in reversed(wanted)}
    return [
        Choice(
            rejects,
            threshold,
            sum(exceeds(defect.score, threshold) for defect in measured.simulated),
            sum(exceeds(score, threshold) for score in measured.scores),
            chosen,
        )
        for rejects, threshold, chosen in sorted(different.values(), key=lambda choice: -choice[1])
    ]


class Known(NamedTuple):
    """What a product's threshold does to known defects."""

    misses: Misses
    finds_all: float | None  # a lower threshold that would miss none; None where none is missed
    would_reject: int | None  # good images of the calibration above that one


def known_defects(products: Products, scores: Mapping[str, Sequence[float]]) -> dict[str, Known]:
    """From the scores of known defects by product."""
    known = {}
    for name, defect_scores in scores.items():
        misses = misses_of(defect_scores, threshold_of(products, name) or 0.0)
        good_scores = products[name].scores if name in products else ()
        lower = threshold_that_finds(defect_scores) if misses.missed and good_scores else None
        rejected = None if lower is None else sum(exceeds(score, lower) for score in good_scores)
        known[name] = Known(misses, lower, rejected)
    return known


def threshold_that_finds(scores: Sequence[float]) -> float:
    """The highest threshold that every one of these known defects exceeds, in six digits.

    >>> threshold_that_finds([3.0, 2.0])
    1.99999
    """
    least = min(scores)
    return float(f"{least - max(abs(least), 1e-6) * 5e-6:.6g}") if math.isfinite(least) else least
