"""Sequential tests of what comes from a line: has something changed, and since when?

Each test is a gambler with one unit of money, who bets against "nothing has changed". As long as nothing has, every
bet is fair at best, so the chance that the money ever reaches c is at most 1/c (Ville's inequality), however often one
looks (Shafer and Vovk, "Game-Theoretic Foundations for Probability and Finance", 2019). With c = 100, at most one line
in a hundred ever gets a false alarm.

Values, such as scores, are compared with those of good images that were scored as new: is the next value one that could
have been among all those before? Its rank is uniform as long as all are exchangeable, whatever their distribution, so
this is exact for any number of these images (conformal test martingales: Vovk, Nouretdinov and Gammerman, "Testing
exchangeability on-line", ICML 2003). Shares, such as that of rejects, are compared with a limit.

When the change comes is not known. So the gambler puts 1 / (k (k + 1)) of the money into play at the k-th value: what
is in play from then on has not lost anything on the values before.

`python -m mambaad_cli.line.drift` simulates lines: how many get a false alarm, and when a change is found.
"""

import argparse
import bisect
import math
import statistics
from collections.abc import Sequence

import numpy as np

SHIFTS = (0.25, 0.5, 1.0, 2.0)  # that the bets are best for, in standard deviations of a normal score
RATES = (1.5, 2.0, 4.0, 10.0)  # that the bets are best for, in units of the limit
MAX_MONEY = 1e300
EXACT = 20_000  # values that are kept exactly


class Gambler:
    """Money of equal shares for each of some strategies, each put into play bit by bit."""

    def __init__(self, strategies: int) -> None:
        self._played = np.zeros(strategies)
        self.count = 0

    def bet(self, payoffs: np.ndarray) -> float:
        """The money after one more value, on which a unit in play of each strategy becomes `payoffs`, on average 1."""
        self.count += 1
        self._played = (self._played + 1 / (self.count * (self.count + 1))) * payoffs
        self._played = np.minimum(self._played, MAX_MONEY)
        return float(self._played.mean()) + 1 / (self.count + 1)  # and what is not in play yet


class Ranking:
    """Counts how many of the values before lie above a new one, in memory that does not grow without end.

    The first `exact` values are kept. From then on values that lie between the same two of them count as equal.
    RiseTest takes the worse of the ranks that an equal value may have, so its promise holds as before.

    >>> ranking = Ranking([3.0, 1.0, 2.0])
    >>> ranking.add(2.0), ranking.add(0.5)
    ((1, 1), (4, 0))
    """

    def __init__(self, values: Sequence[float], exact: int | None = None) -> None:
        self.count = len(values)
        self._exact = EXACT if exact is None else exact
        self._values = sorted(values)
        self._bins: np.ndarray | None = None  # counts: below the first of the values, equal to it, between it and …

    def add(self, value: float) -> tuple[int, int]:
        """How many of the values before lie above this one, and how many equal it."""
        if self._bins is None and self.count >= self._exact:
            self._values, counts = (column.tolist() for column in np.unique(self._values, return_counts=True))
            self._bins = np.zeros(2 * len(counts) + 1, np.int64)
            self._bins[1::2] = counts
        low = bisect.bisect_left(self._values, value)
        high = bisect.bisect_right(self._values, value)
        self.count += 1
        if self._bins is None:
            self._values.insert(high, value)
            return self.count - 1 - high, high - low
        place = low + high  # 2 low, or 2 low + 1 where it equals the value there
        above, equal = int(self._bins[place + 1 :].sum()), int(self._bins[place])
        self._bins[place] += 1
        return above, equal


class RiseTest:
    """Do values rise above those of `good` ones? A value counts as high as possible among its equals.

    With `fall` the values are expected to rise or to fall.
    """

    def __init__(self, good: Sequence[float], fall: bool = False) -> None:
        self._before = Ranking(good)
        self._shifts = np.array([*SHIFTS, *(-shift for shift in SHIFTS)] if fall else SHIFTS)
        self._gambler = Gambler(len(self._shifts))

    def add(self, value: float) -> float:
        """The money after this value."""
        n, (above, equal) = self._before.count, self._before.add(value)
        payoffs = np.minimum(rank_payoffs(above, n, self._shifts), rank_payoffs(above + equal, n, self._shifts))
        return self._gambler.bet(payoffs)


def rank_payoffs(above: int, n: int, shifts: np.ndarray) -> np.ndarray:
    """What one unit becomes on a value with `above` of n values above it, for each strategy.

    If normal values shift by d, their p-value p has the distribution F(p) = Φ(Φ⁻¹(p) + d). The payoff is its
    probability of this rank in units of 1 / (n + 1), which is that of a value like those before.

    >>> payoffs = np.stack([rank_payoffs(k, 4, np.array([0.5, -2.0])) for k in range(5)])
    >>> payoffs.mean(0).round(12).tolist(), payoffs[0].round(2).tolist()
    ([1.0, 1.0], [1.83, 0.01])
    """
    from scipy.special import ndtr, ndtri

    low, high = ndtri(above / (n + 1)), ndtri((above + 1) / (n + 1))
    return (n + 1) * (ndtr(high + shifts) - ndtr(low + shifts))


class ShareTest:
    """Is the share of hits above a limit?"""

    def __init__(self, limit: float) -> None:
        rates = np.array([min(rate * limit, (1 + limit) / 2) for rate in RATES])
        self._hit, self._miss = rates / limit, (1 - rates) / (1 - limit)
        self._gambler = Gambler(len(rates))

    def add(self, hit: bool) -> float:
        """The money after this one."""
        return self._gambler.bet(self._hit if hit else self._miss)


# ---- simulation ----


def simulated(
    rng: np.random.Generator, good: int, before: int, after: int, shift: float, false_alarm: float
) -> int | None:
    """One line of normal scores that shift after `before` parts, in deviations: the part with the alarm, or None."""
    test = RiseTest(rng.normal(size=good).tolist())
    scores = np.concatenate([rng.normal(size=before), rng.normal(shift, size=after)])
    return next((i for i, score in enumerate(scores) if test.add(float(score)) >= 1 / false_alarm), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate lines: how many get a false alarm, and after how many parts a change is found."""
    parser = argparse.ArgumentParser("python -m mambaad_cli.line.drift", description=main.__doc__)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--parts", type=int, default=2000, help="of each line, for false alarms, and after a change")
    parser.add_argument("--before", type=int, default=200, help="good parts before the change")
    parser.add_argument("--shift", type=float, default=0.5, help="of the scores, in standard deviations")
    parser.add_argument("--false-alarm", type=float, default=0.01)
    parser.add_argument("--good", type=int, nargs="+", default=[20, 99, 500], help="held-out good images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    print(f"{options.lines} lines; promised: a false alarm on at most {options.false_alarm:.3g} of them")
    print(f"held-out  false alarms in {options.parts} parts   shift of {options.shift:g} found   after (median)")
    for good in options.good:
        quiet = [
            simulated(rng, good, options.parts, 0, 0.0, options.false_alarm) is not None for _ in range(options.lines)
        ]
        alarms = [
            simulated(rng, good, options.before, options.parts, options.shift, options.false_alarm)
            for _ in range(options.lines)
        ]
        parts = [
            math.inf if alarm is None else alarm - options.before + 1
            for alarm in alarms
            if alarm is None or alarm >= options.before
        ]
        hits = sum(part < math.inf for part in parts)
        median = statistics.median(parts) if parts else math.nan
        delay = f"{median:.0f} parts" if math.isfinite(median) else "not found"
        print(f"{good:8}  {sum(quiet):8} of {options.lines:<20} {hits:10} of {len(parts):<8} {delay:>12}")


if __name__ == "__main__":
    main()
