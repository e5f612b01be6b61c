"""Gauge repeatability and reproducibility of scores, by analysis of variance.

AIAG, "Measurement Systems Analysis", 4th edition, chapter III, section B, and its appendix A: a crossed study with
random parts and appraisers. Letters: p parts, o appraisers, r trials; σ² variances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mambaad_cli.gauge.agreement import Limits

POOL = 0.25  # an interaction that is less significant than this counts as repeatability; AIAG asks for a high level
NDC = 1.41  # √2, as the manual rounds it

# Of the AIAG manual: below 10 % acceptable, up to 30 % marginal; at least five distinct categories.
GRR_SHARE = Limits(0.10, 0.30, upper=True)
CATEGORIES = Limits(5, 5)


class Source(NamedTuple):
    """A row of the table of the analysis of variance."""

    name: str
    df: int
    ss: float  # sum of squares
    ms: float | None  # mean square; None of the total
    f: float | None = None  # infinite where only the source varies; None where it is not tested
    p: float | None = None


@dataclass(frozen=True)
class Gauge:
    """The variances that the scores of a study consist of."""

    anova: tuple[Source, ...]
    repeatability: float  # σ² of trials of the same part by the same appraiser
    appraisers: float | None  # σ² between appraisers; None where there is one
    interaction: float | None  # σ² of appraiser × part; None where there is one, 0 where it is pooled
    parts: float  # σ² between parts

    @property
    def reproducibility(self) -> float | None:
        return None if self.appraisers is None else self.appraisers + (self.interaction or 0.0)

    @property
    def grr(self) -> float:
        """σ² of the gauge: repeatability and reproducibility."""
        return self.repeatability + (self.reproducibility or 0.0)

    @property
    def total(self) -> float:
        return self.grr + self.parts

    def share(self, variance: float) -> float | None:
        """σ of a component as a share of the total σ, as in %GRR; None where no score varies."""
        return math.sqrt(variance / self.total) if self.total else None

    @property
    def ndc(self) -> int | None:
        """The number of distinct categories, 1.41 σ_parts / σ_GRR rounded down; None where the gauge never varies."""
        return int(NDC * math.sqrt(self.parts / self.grr)) if self.grr else None


def one_way(groups: Sequence[Sequence[float]]) -> Gauge | None:
    """From the scores of each part, which may be unequally many, where there is one appraiser.

    The expected mean square between parts is σ²_repeatability + n₀ σ²_parts, with n₀ = (N − Σ n²/N) / (p − 1) (Searle,
    "Linear Models", 1971). None with fewer than two parts, or where no part has two scores.

    >>> gauge = one_way([[1.0, 3.0], [5.0, 7.0]])
    >>> gauge.repeatability, gauge.parts
    (2.0, 7.0)
    """
    parts = [np.asarray(scores, np.float64) for scores in groups if len(scores)]
    sizes = np.array([len(scores) for scores in parts])
    p, n = len(parts), int(sizes.sum())
    if p < 2 or n <= p:
        return None
    everything = np.concatenate(parts)
    grand, rounding = everything.mean(), _rounding(everything)
    between = sum(len(scores) * (scores.mean() - grand) ** 2 for scores in parts)
    within = sum(((scores - scores.mean()) ** 2).sum() for scores in parts)
    error = _source("repeatability", n - p, within, rounding)
    part = _tested(_source("part", p - 1, between, rounding), error)
    total = _source("total", n - 1, between + within, rounding)._replace(ms=None)
    each = (n - (sizes**2).sum() / n) / (p - 1)
    return Gauge((part, error, total), _ms(error), None, None, _component(_ms(part) - _ms(error), each))


def crossed(scores: np.ndarray) -> Gauge | None:
    """From scores (p, o, r) of a balanced study with several appraisers.

    The interaction is pooled with repeatability where its F-test gives p > 0.25, and where there is neither of both.
    None with fewer than two parts, appraisers or trials.
    """
    scores = np.asarray(scores, np.float64)
    p, o, r = scores.shape
    if min(p, o, r) < 2:
        return None
    grand, rounding = scores.mean(), _rounding(scores)
    part_means, appraiser_means, cells = scores.mean((1, 2)), scores.mean((0, 2)), scores.mean(2)
    of_parts = o * r * ((part_means - grand) ** 2).sum()
    of_appraisers = p * r * ((appraiser_means - grand) ** 2).sum()
    of_cells = r * ((cells - part_means[:, None] - appraiser_means + grand) ** 2).sum()
    of_trials = ((scores - cells[..., None]) ** 2).sum()
    equipment = _source("repeatability", p * o * (r - 1), of_trials, rounding)
    both = _tested(_source("appraiser × part", (p - 1) * (o - 1), of_cells, rounding), equipment)
    pooled = both.p is None or both.p > POOL
    # what parts and appraisers are tested against: all that varies without them
    rest = _source("", both.df + equipment.df, both.ss + equipment.ss, rounding) if pooled else both
    appraiser = _tested(_source("appraiser", o - 1, of_appraisers, rounding), rest)
    part = _tested(_source("part", p - 1, of_parts, rounding), rest)
    total = _source("total", p * o * r - 1, ((scores - grand) ** 2).sum(), rounding)._replace(ms=None)
    return Gauge(
        (appraiser, part, both, equipment, total),
        repeatability=_ms(rest) if pooled else _ms(equipment),
        appraisers=_component(_ms(appraiser) - _ms(rest), p * r),
        interaction=0.0 if pooled else _component(_ms(both) - _ms(equipment), r),
        parts=_component(_ms(part) - _ms(rest), o * r),
    )


def _rounding(scores: np.ndarray) -> float:
    """A sum of squares that the rounding of these scores alone can cause: anything below it counts as 0."""
    return float(scores.size * (8 * np.finfo(np.float64).eps * np.abs(scores).max()) ** 2)


def _source(name: str, df: int, ss: float, rounding: float) -> Source:
    ss = 0.0 if ss <= rounding else float(ss)
    return Source(name, df, ss, ss / df)


def _tested(source: Source, error: Source) -> Source:
    """The source with its F-test against `error`.

    Where the error is 0, F is infinite and p is 0. Where the source is 0 too, there is nothing to test.
    """
    from scipy.stats import f

    if not error.ms:
        return source._replace(f=math.inf, p=0.0) if source.ms else source
    ratio = _ms(source) / error.ms
    return source._replace(f=ratio, p=float(f.sf(ratio, source.df, error.df)))


def _ms(source: Source) -> float:
    return source.ms or 0.0


def _component(difference: float, n: float) -> float:
    """A variance component; a negative estimate counts as 0."""
    return max(0.0, float(difference / n))
