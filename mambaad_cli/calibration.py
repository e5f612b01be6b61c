"""Scores of good images that were not trained on -> threshold, p-value, and what they promise.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World"): of n + 1 good images that come from
the same line, each is equally likely to score highest. So a threshold at the ⌈(n + 1)(1 − α)⌉-th smallest of n scores
is exceeded by at most a share α of new good images, whatever the distribution of scores.
"""

import math
from collections.abc import Sequence

import numpy as np

from mambaad_cli import MambaADError


def threshold(scores: Sequence[float], max_false_reject: float) -> float:
    """The score that at most a share `max_false_reject` of new good images will exceed, as far as n scores can tell.

    With fewer than 1 / max_false_reject − 1 scores no threshold can promise that: then it is the most careful one,
    the highest score (see `promise`).

    >>> threshold([1.0, 2.0, 3.0, 4.0], 0.25), threshold([1.0, 2.0, 3.0, 4.0], 0.01)
    (4.0, 4.0)
    >>> threshold([float(i) for i in range(1, 100)], 0.10)
    90.0
    """
    if not len(scores):
        raise MambaADError("no scores of good images: run mambaad calibrate MODEL GOOD_DIR")
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - max_false_reject) - 1e-9)
    return float(np.sort(np.asarray(scores, dtype=np.float64))[min(rank, n) - 1])


def promise(n: int, max_false_reject: float) -> float:
    """The share of false rejects that n scores can really promise: the wanted one, or 1 / (n + 1) where that is more.

    >>> promise(200, 0.01), promise(40, 0.01) == 1 / 41
    (0.01, True)
    """
    return max(max_false_reject, 1 / (n + 1))


def p_value(scores: Sequence[float], score: float) -> float:
    """How often a good image scores as high: (1 + number of scores ≥ score) / (n + 1).

    >>> p_value([1.0, 2.0, 3.0], 2.5)
    0.5
    """
    return (1 + int(np.sum(np.asarray(scores) >= score))) / (len(scores) + 1)
