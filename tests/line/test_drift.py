import itertools
import math

import numpy as np
import pytest

from mambaad_cli.line import drift
from mambaad_cli.line.drift import Gambler, Ranking, RiseTest, ShareTest, rank_payoffs, simulated


def test_bets_on_ranks_are_fair_whatever_the_number_of_good_images() -> None:
    shifts = np.array([-1.0, 0.25, 2.0])
    for n in (0, 1, 7, 500):
        payoffs = np.stack([rank_payoffs(above, n, shifts) for above in range(n + 1)])
        assert payoffs.mean(0) == pytest.approx(1.0)
        assert (np.diff(payoffs[:, 1:], axis=0) <= 1e-9).all()  # the higher the value, the better for a rise


def test_the_money_of_all_orders_of_the_same_values_is_on_average_what_it_was_at_first() -> None:
    """Exchangeable values: each of the 5! orders is as likely as the others."""
    for values, good in (((1.0, 2.0, 3.0, 4.0, 5.0), 2), ((1.0, 1.0, 2.0, 2.0, 5.0), 0)):
        money = []
        for order in itertools.permutations(values):
            test = RiseTest(order[:good])
            money.append([test.add(value) for value in order[good:]][-1])
        distinct = len(set(values)) == len(values)
        assert np.mean(money) == pytest.approx(1.0) if distinct else np.mean(money) < 1.0


def test_the_money_on_shares_is_on_average_what_it_was_at_first_where_the_share_is_at_its_limit() -> None:
    limit, average = 0.3, 0.0
    for hits in itertools.product((False, True), repeat=6):
        test = ShareTest(limit)
        money = [test.add(hit) for hit in hits][-1]
        average += money * math.prod(limit if hit else 1 - limit for hit in hits)
    assert average == pytest.approx(1.0)


def test_a_gambler_without_luck_keeps_what_is_not_in_play_yet() -> None:
    gambler = Gambler(2)
    assert [gambler.bet(np.zeros(2)) for _ in range(4)] == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_false_alarms_are_as_few_as_promised_and_a_shift_is_found() -> None:
    rng = np.random.default_rng(0)
    quiet = [simulated(rng, 50, 300, 0, 0.0, 0.2) for _ in range(60)]
    assert sum(one is not None for one in quiet) <= 60 * 0.2
    found = [simulated(rng, 100, 100, 400, 1.0, 0.01) for _ in range(20)]
    assert all(one is not None and 100 <= one < 300 for one in found)


def test_values_that_fall_are_found_only_where_asked_for() -> None:
    rng = np.random.default_rng(1)
    good, low = rng.normal(size=100).tolist(), rng.normal(-2, size=100).tolist()
    both, rise = RiseTest(good, fall=True), RiseTest(good)
    assert max(both.add(value) for value in low) > 1e6
    assert max(rise.add(value) for value in low) <= 1.0


def test_ranks_are_exact_at_first_and_then_those_of_a_bounded_number_of_bins() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=2000).round(3).tolist()
    exact, bounded = Ranking(values[:10]), Ranking(values[:10], exact=500)
    for i, value in enumerate(values[10:], 10):
        above, equal = exact.add(value)
        assert (above, equal) == (sum(one > value for one in values[:i]), values[:i].count(value))
        few_above, more_equal = bounded.add(value)
        assert few_above <= above <= above + equal <= few_above + more_equal
        assert i >= 500 or (few_above, more_equal) == (above, equal)
        assert more_equal < 0.05 * i
    assert bounded._bins is not None
    assert (bounded.count, len(bounded._bins)) == (2000, 2 * len(set(values[:500])) + 1)


def test_a_shift_is_found_after_more_values_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "EXACT", 300)
    rng = np.random.default_rng(4)
    quiet, shifted = rng.normal(size=3000).tolist(), rng.normal(1.0, size=600).tolist()
    test = RiseTest(rng.normal(size=50).tolist())
    assert max(test.add(value) for value in quiet) < 100
    assert max(test.add(value) for value in shifted) > 1e6


def test_a_share_above_its_limit_is_found_and_one_below_is_not() -> None:
    rng = np.random.default_rng(2)
    high, low = ShareTest(0.01), ShareTest(0.01)
    assert max(high.add(hit) for hit in rng.random(500) < 0.05) > 1e3
    assert max(low.add(hit) for hit in rng.random(5000) < 0.005) < 20
    assert math.isfinite([high.add(True) for _ in range(500)][-1])


def test_the_simulation_prints_what_it_promises_and_finds(capsys: pytest.CaptureFixture[str]) -> None:
    drift.main(["--lines", "5", "--parts", "100", "--before", "20", "--good", "50", "--shift", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5 lines; promised: a false alarm on at most 0.01 of them"
    assert len(lines) == 3
    assert "5 of 5" in lines[2]
