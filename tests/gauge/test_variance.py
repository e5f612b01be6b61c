import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mambaad_cli.gauge import tables
from mambaad_cli.gauge.study import Study
from mambaad_cli.gauge.variance import Gauge, crossed, one_way
from tests.conftest import DATA

AIAG = DATA / "gauge" / "aiag.csv"


def scores(path: Path = AIAG) -> np.ndarray:
    """(10 parts, 3 appraisers, 3 trials)."""
    with path.open() as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)]).reshape(10, 3, 3)


def gauge() -> Gauge:
    published = crossed(scores())
    assert published is not None
    return published


def test_the_analysis_of_variance_is_that_of_the_manual() -> None:
    """AIAG, "Measurement Systems Analysis", the gauge study's table: DF, SS, MS."""
    published = {
        "appraiser": (2, 3.1673, 1.58363),
        "part": (9, 88.3619, 9.81799),
        "appraiser × part": (18, 0.3590, 0.01994),
        "repeatability": (60, 2.7589, 0.04598),
        "total": (89, 94.6471, None),
    }
    for source in gauge().anova:
        df, ss, ms = published[source.name]
        assert (source.df, round(source.ss, 4)) == (df, ss)
        assert ms is None or source.ms == pytest.approx(ms, abs=6e-6)
    interaction = gauge().anova[2]
    assert interaction.f == pytest.approx(0.434, abs=5e-4)


def test_the_components_are_those_of_the_manual() -> None:
    """The same study with its interaction pooled: σ, the share of the total σ, ndc."""
    pooled = gauge()
    assert pooled.interaction == 0
    assert pooled.reproducibility == pooled.appraisers
    variances = (pooled.repeatability, pooled.reproducibility or 0, pooled.grr, pooled.parts, pooled.total)
    assert [math.sqrt(variance) for variance in variances] == pytest.approx(
        [0.199933, 0.226838, 0.302373, 1.042327, 1.0853], abs=2e-5
    )
    assert [round(100 * (pooled.share(variance) or 0), 1) for variance in variances[:4]] == [18.4, 20.9, 27.9, 96.0]
    assert pooled.ndc == 4


def test_variances_are_found_where_they_are_known() -> None:
    """Parts, appraisers and their interaction of known σ: the mean of the estimates over many studies."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(300):
        part, appraiser = rng.normal(0, 3, (8, 1, 1)), rng.normal(0, 2, (1, 6, 1))
        both, trial = rng.normal(0, 1.5, (8, 6, 1)), rng.normal(0, 1, (8, 6, 3))
        gauge = crossed(part + appraiser + both + trial)
        assert gauge is not None
        estimates.append((gauge.repeatability, gauge.interaction, gauge.appraisers, gauge.parts))
    assert np.mean(np.array(estimates, np.float64), axis=0) == pytest.approx([1, 2.25, 4, 9], rel=0.12)


def test_one_appraiser_with_unequal_trials() -> None:
    """By hand: parts of 2 and 4 trials; n₀ = 6 − (4 + 16)/6 = 8/3; MS 24 and 2."""
    gauge = one_way([[1.0, 3.0], [6.0, 6.0, 8.0, 4.0]])
    assert gauge is not None
    part, error, total = gauge.anova
    assert (part.ss, error.ss, total.ss) == pytest.approx((64 / 3, 10, 94 / 3))
    assert (part.df, error.df, error.ms) == (1, 4, 2.5)
    assert gauge.parts == pytest.approx((64 / 3 - 2.5) / (8 / 3))
    assert gauge.reproducibility is None
    assert gauge.ndc == int(1.41 * math.sqrt(gauge.parts / 2.5))


def test_a_gauge_that_never_varies_has_no_end_of_categories() -> None:
    gauge = one_way([[1.0, 1.0], [2.0, 2.0]])
    assert gauge is not None
    assert (gauge.grr, gauge.ndc, gauge.share(gauge.grr)) == (0, None, 0)
    same = one_way([[1.0, 1.0], [1.0, 1.0]])
    assert same is not None
    assert same.share(same.grr) is None


def without_repeatability(interaction: float) -> np.ndarray:
    """(4 parts, 3 appraisers, 2 trials) by an inspection that repeats exactly; appraisers differ by the part."""
    cells = np.arange(4.0)[:, None] + 0.1 * np.arange(3.0)
    return np.repeat((cells + interaction * np.random.default_rng(0).normal(size=(4, 3)))[..., None], 2, axis=2)


def test_an_interaction_is_not_pooled_where_the_scores_of_a_cell_never_vary() -> None:
    """Its F is infinite: nothing could be more significant. Pooled, it would count as repeatability."""
    gauge = crossed(without_repeatability(interaction=0.5))
    assert gauge is not None
    _, _, both, equipment, _ = gauge.anova
    assert (equipment.ms, both.f, both.p) == (0, math.inf, 0)
    assert gauge.repeatability == 0
    assert gauge.interaction == pytest.approx((both.ms or 0) / 2)
    assert gauge.grr == gauge.reproducibility


def test_where_neither_interaction_nor_repeatability_varies_there_is_nothing_to_test() -> None:
    """0.1 and 0.7 have no exact numbers: what their rounding leaves is no variance."""
    for scale in (1.0, 0.7, 1e-6, 1e9):
        gauge = crossed(scale * without_repeatability(interaction=0.0))
        assert gauge is not None
        appraiser, part, both, equipment, _ = gauge.anova
        assert (both.ms, both.f, both.p, equipment.ms) == (0, None, None, 0)
        assert (part.f, part.p, appraiser.f, appraiser.p) == (math.inf, 0, math.inf, 0)
        assert (gauge.interaction, gauge.repeatability) == (0, 0)


def test_parts_that_differ_by_more_than_an_exact_gauge_are_significant() -> None:
    gauge = one_way([[1.0, 1.0], [2.0, 2.0]])
    assert gauge is not None
    part, error, _ = gauge.anova
    assert (part.f, part.p, error.f, error.p) == (math.inf, 0, None, None)
    same = one_way([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]])
    assert same is not None
    assert (same.anova[0].ms, same.anova[0].f) == (0, None)


def test_an_infinite_f_is_shown_as_such_and_is_null_in_json() -> None:
    """json.dumps would write Infinity, which no other program reads."""
    gauge = crossed(without_repeatability(interaction=0.5))
    assert gauge is not None
    study = Study(4, 0, 24, 0, agreements=[], kappas={}, gauges={"nut": gauge}, flips=[], notes=[])
    facts = json.loads(tables.to_json(study), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    by_name = {row["name"]: row for row in facts["scores"][0]["anova"]}
    assert (by_name["appraiser × part"]["f"], by_name["appraiser × part"]["p"]) == (None, 0)
    console = Console(file=io.StringIO(), width=120)
    console.print(tables.to_table(study))
    (line,) = [line for line in console.file.getvalue().splitlines() if "∞" in line]
    assert line.split()[-3:] == ["∞", "<", "0.001"]


@pytest.mark.parametrize("groups", [[], [[1.0, 2.0]], [[1.0], [2.0]]])
def test_too_few_scores_tell_nothing(groups: list[list[float]]) -> None:
    assert one_way(groups) is None
