"""Scores of good images that were scored as new ones -> threshold and p-value, and what they promise.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World"): of n + 1 good images that come from
the same line, each is equally likely to have the highest score. So at most a share α of new good images exceeds a
threshold at the ⌈(n + 1)(1 − α)⌉-th smallest of n scores, on average and for any distribution of scores.

`python -m mambaad_cli.inspection.calibration SCORES.csv` checks this on the output of `mambaad score GOOD_DIR --csv`
for good images that were not used for training: it splits them at random many times, and counts the false rejects among
the new ones.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mambaad_cli import MambaADError

USUAL = 0.04  # the share of good images that a threshold may reject, unless another is asked for
ODD = 3.5  # deviations above the median, by the median absolute one, that are odd (Iglewicz & Hoaglin, 1993)
MOST_ODD = 2  # odd ones that do not set the threshold, unless another share is asked for
FEWEST = 20  # scores that tell what is odd


def usual_share(scores: Sequence[float]) -> float:
    """The share that a threshold may reject where none is asked for: USUAL, or enough that odd ones do not set it.

    A good image that is very unlike the others would hide most defects if few other scores are there.

    >>> usual_share([1.0, 1.1, 1.2] * 10), usual_share([1.0, 1.1, 1.2] * 10 + [9.0]) == 2 / 32
    (0.04, True)
    """
    odd = 0 if len(scores) < FEWEST else sum(deviation > ODD for deviation in deviations(scores))
    return max(USUAL, (min(odd, MOST_ODD) + 1) / (len(scores) + 1) if odd else 0.0)


def usual_promise(n: int) -> float:
    """The share of false rejects that n scores can promise where no share is asked for.

    As many odd ones count as may be passed over, however many were: which ones are odd was read from the same scores.

    >>> [round(usual_promise(n), 3) for n in (10, 33, 100)]
    [0.091, 0.088, 0.04]
    """
    passed_over = 0 if n < FEWEST else MOST_ODD
    return max(USUAL, (passed_over + 1) / (n + 1))


def deviations(scores: Sequence[float]) -> list[float]:
    """How far each score lies above the median, in units of the deviation that the median absolute one stands for.

    >>> [round(value, 1) for value in deviations([1.0, 2.0, 3.0, 4.0, 50.0])]
    [-1.3, -0.7, 0.0, 0.7, 31.7]
    """
    values = np.asarray(scores, dtype=np.float64)
    above = values - np.median(values)
    return list((above / max(1.4826 * float(np.median(np.abs(above))), 1e-12)).tolist())


def threshold(scores: Sequence[float], max_false_reject: float) -> float:
    """The score that at most a share `max_false_reject` of new good images will exceed, as far as n scores can tell.

    Fewer than 1 / max_false_reject − 1 scores cannot promise that: then the threshold is the highest score (see
    `promise`).

    >>> threshold([1.0, 2.0, 3.0, 4.0], 0.25), threshold([1.0, 2.0, 3.0, 4.0], 0.01)
    (4.0, 4.0)
    >>> threshold([float(i) for i in range(1, 100)], 0.10)
    90.0
    """
    if not len(scores):
        raise MambaADError("no scores of good images: run mambaad calibrate MODEL GOOD_DIR")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    return float(ordered[_rank(len(scores), max_false_reject) - 1])


def _rank(n: int, max_false_reject: float) -> int:
    """Which of n scores, from the smallest, is the threshold: ⌈(n + 1)(1 − α)⌉, at most n."""
    check_share(max_false_reject)
    return max(1, min(math.ceil((n + 1) * (1 - max_false_reject) - 1e-9), n))


def check_share(max_false_reject: float | None) -> None:
    """Raises MambaADError for what is no share, such as a percentage."""
    if max_false_reject is not None and not 0 < max_false_reject < 1:
        raise MambaADError(f"max_false_reject is {max_false_reject:g}: expected a share between 0 and 1, such as 0.03")


def promise(n: int, max_false_reject: float) -> float:
    """The share of false rejects that n scores can really promise: the wanted one, or 1 / (n + 1) if that is more.

    >>> promise(200, 0.01), promise(40, 0.01) == 1 / 41
    (0.01, True)
    """
    return max(max_false_reject, 1 / (n + 1))


def ceiling(n: int, max_false_reject: float, confidence: float = 0.95) -> float:
    """An upper bound, with this confidence, on the share of false rejects of one threshold from n scores.

    A promise is an average over calibrations: by chance the n images may be more alike than later ones. The share of
    images above the k-th smallest of n scores is distributed as Beta(n + 1 − k, k), for any distribution of scores.

    >>> round(ceiling(8, 0.01), 3), round(ceiling(99, 0.01), 3), round(ceiling(1000, 0.01), 3)
    (0.312, 0.03, 0.016)
    """
    from scipy.special import betaincinv

    k = _rank(n, max_false_reject)
    return float(betaincinv(n + 1 - k, k, confidence))


def images_for(max_false_reject: float) -> int:
    """The number of good images that are needed to promise this share.

    >>> images_for(0.01), images_for(0.05), images_for(0.3)
    (99, 19, 3)
    """
    return max(1, math.ceil(1 / max_false_reject - 1 - 1e-9))


def percent(share: float) -> str:
    """
    >>> percent(0.01), percent(1 / 9), percent(0.001)
    ('1%', '11.1%', '0.1%')
    """
    return f"{100 * share:.3g}%"


def p_value(scores: Sequence[float], score: float) -> float:
    """How often a good image scores this high: (1 + number of scores ≥ score) / (n + 1), in six digits as in `exceeds`.

    >>> p_value([1.0, 2.0, 3.0], 2.5), p_value([1.0, 2.0, 3.0], 3.0000001)
    (0.5, 0.5)
    """
    own = six_digits(score)
    return (1 + sum(six_digits(other) >= own for other in scores)) / (len(scores) + 1)


def six_digits(value: float) -> float:
    """The value as it is printed. The seventh digit of a score depends on its batch.

    >>> six_digits(3.00000123)
    3.0
    """
    return float(f"{value:.6g}")


def exceeds(score: float, threshold: float) -> bool:
    """Whether a score lies above the threshold, compared in six digits.

    >>> exceeds(3.0000001, 3.0), exceeds(3.0001, 3.0)
    (False, True)
    """
    return six_digits(score) > six_digits(threshold)


def above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Which of many values lie above the threshold, each as in `exceeds`: bool, of the same shape.

    >>> above(np.array([2.0, 3.0000001, 3.0001]), 3.0).tolist()
    [False, False, True]
    """
    found = values > threshold
    close = np.abs(values - threshold) <= 2e-5 * abs(threshold)  # only there rounding can change the answer
    found[close] = [exceeds(float(value), threshold) for value in values[close]]
    return found


class Realised(NamedTuple):
    """False rejects over random splits of good images, and their promise; all values but n are shares."""

    n: int  # scores in each calibration
    promise: float
    mean: float
    deviation: float  # between splits
    error: float  # standard error of the mean


def realised(
    scores: Sequence[float], max_false_reject: float, n: int | None = None, splits: int = 100, seed: int = 0
) -> Realised:
    """Split scores at random into n for the threshold and the rest as new images; count those above it, `splits` times.

    Without `n` half of the scores are for the threshold. Raises MambaADError where either side would be empty.

    >>> found = realised([float(i) for i in range(100)], 0.05)
    >>> found.n, found.promise, abs(found.mean - 2 / 51) < 4 * found.error  # the 49th of 50: 2 of 51 lie above
    (50, 0.05, True)
    """
    n = len(scores) // 2 if n is None else n
    if not 0 < n < len(scores):
        raise MambaADError(f"{len(scores)} scores cannot be split into {n} for the threshold and some more")
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(splits):
        shuffled = rng.permutation(scores).tolist()
        limit = threshold(shuffled[:n], max_false_reject)
        rates.append(np.mean([exceeds(score, limit) for score in shuffled[n:]]))
    deviation = float(np.std(rates))
    return Realised(n, promise(n, max_false_reject), float(np.mean(rates)), deviation, deviation / math.sqrt(splits))


def read_scores(paths: Sequence[Path], column: str = "score") -> dict[str, list[float]]:
    """Scores by class, or other numbers, from CSV files that `mambaad score --csv` wrote; rows without are left out."""
    scores: dict[str, list[float]] = {}
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                for row in csv.DictReader(file):
                    if row[column]:
                        scores.setdefault(row["class"], []).append(float(row[column]))
        except OSError as error:
            raise MambaADError(f"cannot read {path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise MambaADError(f"{path} was not written by mambaad score --csv") from error
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Print for each class the promised and the realised false rejects, and the mean p-value: ½ of new good images."""
    parser = argparse.ArgumentParser("python -m mambaad_cli.inspection.calibration", description=main.__doc__)
    parser.add_argument("scores", nargs="+", type=Path, help="CSV of good images that were not used for training")
    parser.add_argument("--calibration", type=int, help="images for the threshold; by default half of them")
    parser.add_argument("--splits", type=int, default=100)
    options = parser.parse_args(arguments)
    try:
        p_values = read_scores(options.scores, "p_value")
        for name, scores in read_scores(options.scores).items():
            known = f", mean p-value {np.mean(p_values[name]):.2f}" if name in p_values else ""
            print(f"{name}: {len(scores)} good images{known}, {options.splits} splits")
            print("  asked     n  promised  realised   ± error        sd")
            for share in (0.01, 0.05, 0.10):
                one = realised(scores, share, options.calibration, options.splits)
                shares = (one.promise, one.mean, one.error, one.deviation)
                print(f"{share:7.0%} {one.n:5}", *(f"{value:9.2%}" for value in shares))
    except MambaADError as error:
        parser.exit(1, f"mambaad: {error}\n")


if __name__ == "__main__":
    main()
