import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mambaad_cli.model.known_defects import (
    RIDGE,
    classifier_of,
    hardest_patches,
    likeness,
    of_raw_patches,
    with_known_defects,
)


def test_the_classifier_is_the_minimum_of_the_balanced_loss() -> None:
    bad, good = torch.randn(9, 4) + 1.0, torch.randn(60, 4)
    found = classifier_of(bad, good).numpy()

    def loss(weights: np.ndarray) -> float:
        sides = [(bad, -1.0, 69 / 18), (good, 1.0, 69 / 120)]
        total = RIDGE / 2 * (weights[:-1] ** 2).sum()
        for patches, sign, share in sides:
            total += share * np.logaddexp(0, sign * (patches.numpy() @ weights[:-1] + weights[-1])).sum()
        return float(total)

    expected = minimize(loss, np.zeros(5), tol=1e-10).x
    np.testing.assert_allclose(found, expected, atol=1e-3)
    again = classifier_of(bad, good, torch.from_numpy(found))
    np.testing.assert_allclose(again.numpy(), found, atol=1e-6)


def test_patches_as_the_encoder_gives_them_are_judged_as_whitened_ones() -> None:
    mean, whitening, classifier = torch.randn(6), torch.randn(6, 6), torch.randn(7).double()
    patches = torch.randn(2, 3, 4, 6)
    white = (patches - mean) @ whitening
    expected = white.double() @ classifier[:-1] + classifier[-1]
    torch.testing.assert_close(likeness(of_raw_patches(classifier, mean, whitening), patches), expected.float())


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(3, 12, 10)


def test_the_score_is_that_of_both_together_wherever_each_is_highest(maps: Tensor) -> None:
    found = torch.rand(3, 12, 10) * 4
    result = with_known_defects(maps, found, torch.tensor([1.0]), torch.tensor([0.5]))
    expected = maps.amax((1, 2)) + 0.5 * (found.amax((1, 2)) - 1.0)
    torch.testing.assert_close(result.amax((1, 2)), expected)
    each = with_known_defects(maps, found, torch.tensor([1.0, 9.0, 0.0]), torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(each[0], result[0])
    torch.testing.assert_close(each[1:], maps[1:])  # far below the centre, or without a gain


def test_what_is_like_no_known_defect_stays_as_it_is(maps: Tensor) -> None:
    found = torch.full_like(maps, -3.0)
    assert torch.equal(with_known_defects(maps, found, torch.tensor([1.0]), torch.tensor([2.0])), maps)


def test_where_a_known_defect_is_seen_the_map_rises(maps: Tensor) -> None:
    found = torch.zeros_like(maps)
    found[:, 4, 7] = 8.0
    result = with_known_defects(maps, found, torch.tensor([0.0]), torch.tensor([1.0]))
    assert [divmod(int(one.argmax()), 10) for one in result] == [(4, 7)] * 3
    assert bool((result >= maps - 1e-6).all())


def test_the_hardest_patches_are_those_where_the_map_is_highest_and_inside_a_mask() -> None:
    close, far = torch.randn(4, 5, 3), torch.randn(8, 10, 2)
    anomaly_map = torch.zeros(16, 20)
    anomaly_map[5, 9], anomaly_map[14, 1] = 2.0, 1.0  # positions (1, 2) and (3, 0) of the close view
    first, second = hardest_patches(anomaly_map, [far, close], 2)
    assert torch.equal(second, torch.stack([close[1, 2], close[3, 0]]))
    torch.testing.assert_close(first[0], far[2:4, 4:6].mean((0, 1)))  # interpolated between the four around it
    mask = torch.zeros(16, 20, dtype=torch.bool)
    mask[14, 1] = True
    (only,) = hardest_patches(anomaly_map, [close], 20, mask)  # smaller than a position
    assert torch.equal(only, close[3, 0][None])
