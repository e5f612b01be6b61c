import pytest

from mambaad_cli.gauge.agreement import Decision, agreement, agreements, kappa, kappas_between


def decisions(appraiser: str, text: str) -> list[Decision]:
    """From "good:..x bad:xxx": a part a word with its reference; each . accepts it, each x rejects it."""
    made = []
    for number, word in enumerate(text.split()):
        reference, marks = word.split(":")
        made += [
            Decision(str(number), appraiser, str(i), reference == "bad", mark == "x") for i, mark in enumerate(marks)
        ]
    return made


@pytest.mark.parametrize(
    ("counts", "published"), [((45, 5, 3, 97), 0.88), ((45, 2, 3, 100), 0.92), ((42, 9, 6, 93), 0.77)]
)
def test_kappa_is_that_of_the_manual(counts: tuple[int, int, int, int], published: float) -> None:
    """AIAG's attribute study of 50 parts in three trials: the cross tables of three appraisers with the reference."""
    both, first, second, neither = counts
    pairs = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    value = kappa(pairs)
    assert value is not None
    assert round(value, 2) == published


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([], None),
        ([(True, True)] * 3, None),  # chance alone makes them agree
        ([(False, False)], None),
        ([(True, False)] * 4, 0.0),  # never, as chance would
        ([(True, False), (False, True)], -1.0),
        ([(True, True), (False, False)], 1.0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_kappa_where_one_side_never_varies(pairs: list[tuple[bool, bool]], value: float | None) -> None:
    assert kappa(pairs) == value


def test_a_small_study_counts_as_by_hand() -> None:
    """Two good parts, one of them with a false alarm; three bad parts, one with a miss in three, one never found."""
    small = agreement(decisions("A", "good:... good:.x. bad:xxx bad:xx. bad:..."), "A")
    assert (small.effectiveness.count, small.effectiveness.total) == (2, 5)
    assert (small.repeatability.count, small.repeatability.total) == (3, 5)  # the part that is never found repeats
    assert (small.misses.count, small.misses.total) == (4, 9)
    assert (small.false_alarms.count, small.false_alarms.total) == (1, 6)
    # 10 of 15 agree; 9/15 are bad and 6/15 are rejected: 0.6 · 0.4 + 0.4 · 0.6 = 0.48 agree by chance
    assert small.kappa == pytest.approx((10 / 15 - 0.48) / 0.52)


def test_the_interval_is_exact() -> None:
    """Of the manual: 42 of 50 parts, 71 % to 93 %; and no miss in ten, at most 1 − 0.025^(1/10)."""
    always = agreement(decisions("A", "bad:xxxxxxxxxx"), "A")
    assert always.misses.high == pytest.approx(1 - 0.025**0.1)
    assert (always.misses.low, always.misses.rate, always.false_alarms.rate, always.kappa) == (0, 0, None, None)


def test_all_appraisers_must_be_right_on_an_effective_part() -> None:
    both = [*decisions("left", "good:.. bad:xx"), *decisions("right", "good:.x bad:xx")]
    left, right, together = agreements(both)
    assert [each.effectiveness.count for each in (left, right, together)] == [2, 1, 1]
    assert (together.appraiser, together.effectiveness.total) == ("all", 2)
    # three of the four photos get the same verdict from both; 2/4 and 3/4 are rejected: 0.5 agree by chance
    assert kappas_between(both) == {("left", "right"): pytest.approx(0.5)}
