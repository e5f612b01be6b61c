from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad_cli import MambaADError
from mambaad_cli.calibration import p_value, promise, threshold

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


@pytest.mark.parametrize("share", SHARES)
def test_the_rank_is_exact_where_floats_round(share: Fraction) -> None:
    for n in range(1, 500):
        exact = -((n + 1) * (1 - share) // -1)
        assert threshold([float(i) for i in range(1, n + 1)], float(share)) == min(exact, n)


def test_a_single_good_image_gives_its_own_score_and_promises_a_half() -> None:
    assert threshold([2.5], 0.01) == 2.5
    assert promise(1, 0.01) == 0.5


@given(st.lists(finite, min_size=1), st.randoms())
def test_the_order_of_scores_does_not_matter(scores: list[float], random: "np.random.Generator") -> None:
    shuffled = scores[:]
    random.shuffle(shuffled)
    assert threshold(shuffled, 0.1) == threshold(scores, 0.1)
    assert threshold(scores, 0.1) in scores


@given(st.lists(finite, min_size=1, max_size=60), finite)
def test_an_image_is_above_the_threshold_exactly_if_its_p_value_is_within_the_promise(
    scores: list[float], score: float
) -> None:
    share = promise(len(scores), 0.05)
    assert (score > threshold(scores, 0.05)) == (p_value(scores, score) <= share + 1e-12)


def test_p_values_lie_between_one_over_n_plus_one_and_one() -> None:
    scores = [1.0, 2.0, 2.0, 3.0]
    assert [p_value(scores, score) for score in (0.0, 1.0, 2.0, 2.5, 3.0, 9.0)] == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]


def test_no_scores_is_an_error_that_says_what_next() -> None:
    with pytest.raises(MambaADError, match="run mambaad calibrate"):
        threshold([], 0.01)
