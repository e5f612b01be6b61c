import csv
import math
from pathlib import Path

import numpy as np
import pytest

from mambaad_cli.gauge.variance import Gauge, crossed, one_way
from tests.conftest import DATA

AIAG = DATA / "gauge" / "aiag.csv"


def scores(path: Path = AIAG) -> np.ndarray:
    """(10 parts, 3 appraisers, 3 trials)."""
    with path.open() as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)]).reshape(10, 3, 3)


def gauge() -> Gauge:
    found = crossed(scores())
    assert found is not None
    return found


def test_the_analysis_of_variance_is_that_of_the_manual() -> None:
    """AIAG, "Measurement Systems Analysis", the gauge study's table: DF, SS, MS."""
    published = {
        "appraiser": (2, 3.1673, 1.58363),
        "part": (9, 88.3619, 9.81799),
        "appraiser × part": (18, 0.3590, 0.01994),
        "repeatability": (60, 2.7589, 0.04598),
        "total": (89, 94.6471, None),
    }
    for one in gauge().anova:
        df, ss, ms = published[one.name]
        assert (one.df, round(one.ss, 4)) == (df, ss)
        assert ms is None or one.ms == pytest.approx(ms, abs=6e-6)
    interaction = gauge().anova[2]
    assert interaction.f == pytest.approx(0.434, abs=5e-4)


def test_the_components_are_those_of_the_manual() -> None:
    """The same study with its interaction pooled: σ, the share of the total σ, ndc."""
    found = gauge()
    assert found.interaction == 0
    assert found.reproducibility == found.appraisers
    sigmas = (found.repeatability, found.reproducibility or 0, found.grr, found.parts, found.total)
    assert [math.sqrt(one) for one in sigmas] == pytest.approx(
        [0.199933, 0.226838, 0.302373, 1.042327, 1.0853], abs=2e-5
    )
    assert [round(100 * (found.share(one) or 0), 1) for one in sigmas[:4]] == [18.4, 20.9, 27.9, 96.0]
    assert found.ndc == 4


def test_variances_are_found_where_they_are_known() -> None:
    """Parts, appraisers and their interaction of known σ: the mean of the estimates over many studies."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        part, appraiser = rng.normal(0, 3, (8, 1, 1)), rng.normal(0, 2, (1, 6, 1))
        both, trial = rng.normal(0, 1.5, (8, 6, 1)), rng.normal(0, 1, (8, 6, 3))
        one = crossed(part + appraiser + both + trial)
        assert one is not None
        found.append((one.repeatability, one.interaction, one.appraisers, one.parts))
    assert np.mean(np.array(found, np.float64), axis=0) == pytest.approx([1, 2.25, 4, 9], rel=0.12)


def test_one_appraiser_with_unequal_trials() -> None:
    """By hand: parts of 2 and 4 trials; n₀ = 6 − (4 + 16)/6 = 8/3; MS 24 and 2."""
    one = one_way([[1.0, 3.0], [6.0, 6.0, 8.0, 4.0]])
    assert one is not None
    part, error, total = one.anova
    assert (part.ss, error.ss, total.ss) == pytest.approx((64 / 3, 10, 94 / 3))
    assert (part.df, error.df, error.ms) == (1, 4, 2.5)
    assert one.parts == pytest.approx((64 / 3 - 2.5) / (8 / 3))
    assert one.reproducibility is None
    assert one.ndc == int(1.41 * math.sqrt(one.parts / 2.5))


def test_a_gauge_that_never_varies_has_no_end_of_categories() -> None:
    one = one_way([[1.0, 1.0], [2.0, 2.0]])
    assert one is not None
    assert (one.grr, one.ndc, one.share(one.grr)) == (0, None, 0)
    same = one_way([[1.0, 1.0], [1.0, 1.0]])
    assert same is not None
    assert same.share(same.grr) is None


@pytest.mark.parametrize("groups", [[], [[1.0, 2.0]], [[1.0], [2.0]]])
def test_too_few_scores_tell_nothing(groups: list[list[float]]) -> None:
    assert one_way(groups) is None
