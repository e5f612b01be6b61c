import pytest

from mambaad_cli.gauge.agreement import Decision, agreement, agreements, kappa, kappas_between


def decisions(appraiser: str, text: str) -> list[Decision]:
    """From "good:..x bad:xxx": a part a word with its reference; each . accepts it, each x rejects it."""
    found = []
    for number, word in enumerate(text.split()):
        reference, said = word.split(":")
        found += [
            Decision(str(number), appraiser, str(i), reference == "bad", mark == "x") for i, mark in enumerate(said)
        ]
    return found


@pytest.mark.parametrize(
    ("counts", "published"), [((45, 5, 3, 97), 0.88), ((45, 2, 3, 100), 0.92), ((42, 9, 6, 93), 0.77)]
)
def test_kappa_is_that_of_the_manual(counts: tuple[int, int, int, int], published: float) -> None:
    """AIAG's attribute study of 50 parts in three trials: the cross tables of three appraisers with the reference."""
    both, first, second, neither = counts
    pairs = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    found = kappa(pairs)
    assert found is not None
    assert round(found, 2) == published


def test_a_small_study_counts_as_by_hand() -> None:
    """Two good parts, one of them with a false alarm; three bad parts, one with a miss in three, one never found."""
    one = agreement(decisions("A", "good:... good:.x. bad:xxx bad:xx. bad:..."), "A")
    assert (one.effectiveness.count, one.effectiveness.total) == (2, 5)
    assert (one.repeatability.count, one.repeatability.total) == (3, 5)  # the part that is never found repeats
    assert (one.misses.count, one.misses.total) == (4, 9)
    assert (one.false_alarms.count, one.false_alarms.total) == (1, 6)
    # 10 of 15 agree; 9/15 are bad and 6/15 are rejected: 0.6 · 0.4 + 0.4 · 0.6 = 0.48 agree by chance
    assert one.kappa == pytest.approx((10 / 15 - 0.48) / 0.52)


def test_the_interval_is_exact() -> None:
    """Of the manual: 42 of 50 parts, 71 % to 93 %; and no miss in ten, at most 1 − 0.025^(1/10)."""
    always = agreement(decisions("A", "bad:xxxxxxxxxx"), "A")
    assert always.misses.high == pytest.approx(1 - 0.025**0.1)
    assert (always.misses.low, always.misses.rate, always.false_alarms.rate, always.kappa) == (0, 0, None, None)


def test_all_appraisers_must_be_right_on_an_effective_part() -> None:
    both = [*decisions("left", "good:.. bad:xx"), *decisions("right", "good:.x bad:xx")]
    left, right, together = agreements(both)
    assert [one.effectiveness.count for one in (left, right, together)] == [2, 1, 1]
    assert (together.appraiser, together.effectiveness.total) == ("all", 2)
    # three of the four photos get the same verdict from both; 2/4 and 3/4 are rejected: 0.5 agree by chance
    assert kappas_between(both) == {("left", "right"): pytest.approx(0.5)}
