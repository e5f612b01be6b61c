import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaad_cli import MambaADError
from mambaad_cli.inspection.calibration import (
    above,
    ceiling,
    exceeds,
    images_for,
    main,
    p_value,
    promise,
    realised,
    threshold,
    usual_promise,
    usual_share,
)
from mambaad_cli.inspection.findings import choices
from mambaad_cli.inspection.product import Product, ScoredDefect
from tests.conftest import calibrated

SHARES = [Fraction(1, 100), Fraction(1, 20), Fraction(1, 10), Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)]
finite = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("share", SHARES)
def test_of_good_images_from_one_line_at_most_the_wanted_share_is_rejected(share: Fraction) -> None:
    """Brute force: n + 1 images in any order, each in turn the new one, the others the calibration."""
    for n in (*range(1, 40), 98, 99, 100, 101):
        scores = np.random.default_rng(n).permutation(n + 1).astype(float).tolist()
        rejected = sum(score > threshold(scores[:i] + scores[i + 1 :], float(share)) for i, score in enumerate(scores))
        promised = max(share, Fraction(1, n + 1))
        assert Fraction(rejected, n + 1) <= promised
        assert Fraction(rejected + 1, n + 1) > promised  # and no more careful than it has to be
        assert promise(n, float(share)) == pytest.approx(float(promised))


@pytest.mark.parametrize("n", [20, 33, 60, 120])
def test_the_usual_threshold_rejects_what_it_promises_of_any_tail(n: int) -> None:
    """Of a heavy tail, each image in turn the new one."""
    scores = np.random.default_rng(n).standard_cauchy(n + 1).tolist()
    rejected = 0
    for i, score in enumerate(scores):
        others = scores[:i] + scores[i + 1 :]
        rejected += score > threshold(others, usual_share(others))
    assert 0 < rejected / (n + 1) <= usual_promise(n)


def test_odd_ones_do_not_set_the_threshold_unless_a_share_is_asked_for() -> None:
    nut, usual = Product("nut", (64, 64)), np.linspace(1.0, 2.0, 40).tolist()
    for odd, expected, share in (([], 2.0, 0.04), ([9.0], 2.0, 2 / 42), ([9.0, 8.0, 7.0], 7.0, 3 / 44)):
        measured = calibrated(nut, [*usual, *odd]).calibration
        assert measured is not None
        assert measured.threshold == expected
        assert measured.share == pytest.approx(share)
        assert measured.promised == 3 / (41 + len(odd))  # what is promised counts all that might have been odd
    assert calibrated(nut, [1.0] * 10 + [9.0]).threshold == 9.0  # too few to tell what is odd
    assert calibrated(nut, [*usual, 9.0], max_false_reject=0.01).threshold == 9.0


def test_of_many_images_one_in_25_lies_above_the_usual_threshold() -> None:
    measured = calibrated(Product("nut", (64, 64)), np.arange(1, 201).tolist()).calibration
    assert measured is not None
    assert (measured.threshold, measured.promised) == (193, 0.04)


def test_each_choice_says_what_it_costs_and_what_it_finds() -> None:
    defects = tuple(ScoredDefect("spot", 9.0, score) for score in (1.5, 1.92, 1.97, 5.0))
    measured = calibrated(Product("nut", (64, 64)), np.linspace(1.0, 2.0, 101).tolist(), simulated=defects).calibration
    assert measured is not None
    assert [(round(c.threshold, 2), c.found, c.above, c.chosen) for c in choices(measured)] == [
        (2.0, 1, 0, False),
        (1.97, 1, 3, True),
        (1.91, 3, 9, False),
    ]
    assert [round(choice.rejects, 3) for choice in choices(measured)] == [0.01, 0.04, 0.1]
    alone = calibrated(Product("nut", (64, 64)), [1.0]).calibration
    assert alone is not None
    assert [choice.chosen for choice in choices(alone)] == [True]


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, 3, 5, -0.01, math.nan])
def test_what_is_no_share_is_refused(share: float) -> None:
    """Three per cent is 0.03: 3 would otherwise give the smallest score of all, or an IndexError."""
    with pytest.raises(MambaADError, match="expected a share between 0 and 1"):
        threshold([1.0, 2.0, 3.0] * 11, share)


@pytest.mark.parametrize("share", SHARES)
def test_the_rank_is_exact_where_floats_round(share: Fraction) -> None:
    for n in range(1, 500):
        exact = -((n + 1) * (1 - share) // -1)
        assert threshold([float(i) for i in range(1, n + 1)], float(share)) == min(exact, n)


def test_a_single_good_image_gives_its_own_score_and_promises_a_half() -> None:
    assert threshold([2.5], 0.01) == 2.5
    assert promise(1, 0.01) == 0.5


@settings(deadline=None)
@given(st.lists(finite, min_size=1), st.randoms())
def test_the_order_of_scores_does_not_matter(scores: list[float], random: "np.random.Generator") -> None:
    shuffled = scores[:]
    random.shuffle(shuffled)
    assert threshold(shuffled, 0.1) == threshold(scores, 0.1)
    assert threshold(scores, 0.1) in scores


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=60), finite)
def test_an_image_is_above_the_threshold_exactly_if_its_p_value_is_within_the_promise(
    scores: list[float], score: float
) -> None:
    share = promise(len(scores), 0.05)
    assert exceeds(score, threshold(scores, 0.05)) == (p_value(scores, score) <= share + 1e-12)


def test_p_values_lie_between_one_over_n_plus_one_and_one() -> None:
    scores = [1.0, 2.0, 2.0, 3.0]
    assert [p_value(scores, score) for score in (0.0, 1.0, 2.0, 2.5, 3.0, 9.0)] == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]


def test_no_scores_is_an_error_that_says_what_next() -> None:
    with pytest.raises(MambaADError, match="run mambaad calibrate"):
        threshold([], 0.01)


# ---- six digits ----


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=30), finite)
def test_above_says_of_many_what_exceeds_says_of_each(values: list[float], threshold: float) -> None:
    near = [threshold * (1 + step) for step in (-1e-5, -6e-6, -4e-6, 0, 4e-6, 6e-6, 1e-5, 2e-5)]
    expected = [exceeds(value, threshold) for value in values + near]
    assert above(np.array(values + near), threshold).tolist() == expected


def test_a_score_has_the_p_value_of_the_one_that_prints_alike() -> None:
    scores = [1.0, 2.0, 3.0]
    assert p_value(scores, 2.0 * (1 + 4e-7)) == p_value(scores, 2.0) == 0.75
    assert p_value(scores, 2.00001) == 0.5


# ---- what a promise is worth ----


@pytest.mark.parametrize("n", [1, 2, 4, 8, 40])
def test_few_images_promise_what_one_in_so_many_is_worth(n: int) -> None:
    """The highest of n: its false rejects stay below x with probability 1 − (1 − x)ⁿ."""
    assert ceiling(n, 0.01) == pytest.approx(1 - 0.05 ** (1 / n))
    assert ceiling(n, 0.01, 0.5) == pytest.approx(1 - 0.5 ** (1 / n))


@pytest.mark.parametrize(("n", "share"), [(8, 0.01), (99, 0.01), (99, 0.1), (200, 0.05)])
def test_the_ceiling_holds_for_19_of_20_calibrations(n: int, share: float) -> None:
    """Uniform scores: the share of new ones above a threshold t is 1 − t."""
    rng = np.random.default_rng(0)
    rates = [1 - threshold(rng.random(n).tolist(), share) for _ in range(4000)]
    assert np.mean([rate < ceiling(n, share) for rate in rates]) == pytest.approx(0.95, abs=0.015)
    assert np.mean(rates) <= promise(n, share) + 4 * np.std(rates) / np.sqrt(4000)


@pytest.mark.parametrize("share", SHARES)
def test_so_many_images_can_promise_a_share_and_one_fewer_cannot(share: Fraction) -> None:
    n = images_for(float(share))
    assert promise(n, float(share)) == pytest.approx(float(share))
    assert promise(n - 1, float(share)) > float(share) + 1e-6


# ---- the experiment ----


@pytest.mark.parametrize("share", [0.01, 0.05, 0.10])
@pytest.mark.parametrize("n", [10, 40, 150])
def test_over_random_splits_the_false_rejects_are_what_theory_says(share: float, n: int) -> None:
    """Over all splits the k-th smallest of n is exceeded by (n + 1 − k) / (n + 1), which is within the promise."""
    scores = np.random.default_rng(1).lognormal(size=300).tolist()
    found = realised(scores, share, n, splits=400)
    k = min(int(np.ceil((n + 1) * (1 - share) - 1e-9)), n)
    assert found.mean == pytest.approx((n + 1 - k) / (n + 1), abs=4 * found.error)
    assert found.mean <= found.promise + 4 * found.error
    assert (found.n, found.promise) == (n, promise(n, share))


def test_alike_scores_reject_nothing() -> None:
    assert realised([1.0] * 20, 0.1) == (10, 0.1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("n", [0, 4, 9])
def test_a_split_without_either_side_is_an_error(n: int) -> None:
    with pytest.raises(MambaADError, match="cannot be split"):
        realised([1.0, 2.0, 3.0, 4.0], 0.1, n)


def test_the_experiment_reads_what_score_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{name}/{i}.png,{name},{i / 7:.6g},3,good,,0.5" for name in ("nut", "bolt") for i in range(40)]
    rows.append("x.png,nut,,,error,not an image,")
    (tmp_path / "a.csv").write_text("\n".join(["path,class,score,threshold,verdict,error,p_value", *rows]))
    main([str(tmp_path / "a.csv"), "--calibration", "19", "--splits", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if ":" in line] == [
        "nut: 40 good images, mean p-value 0.50, 50 splits",
        "bolt: 40 good images, mean p-value 0.50, 50 splits",
    ]
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["1%", "19", "5.00%"],
        ["5%", "19", "5.00%"],
        ["10%", "19", "10.00%"],
    ]
    shown = float(lines[2].split()[3].rstrip("%")) / 100
    assert shown == pytest.approx(realised([i / 7 for i in range(40)], 0.01, 19, 50).mean, abs=6e-5)


@pytest.mark.parametrize(
    ("text", "said"), [("a,b\n1,2\n", "not written by mambaad score"), ("class,score\nnut,x\n", "not written by")]
)
def test_another_csv_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    for path, reason in (("a.csv", said), ("gone.csv", "No such file")):
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path / path)])
        assert end.value.code == 1
        assert reason in capsys.readouterr().err
