"""The memory of good patches against brute force."""

import math

import pytest
import torch
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.spatial.distance import cdist

from mambaad_cli.model import memory as memories
from mambaad_cli.model.memory import (
    Memory,
    close_patches,
    distances,
    expected_distances,
    fuse_looks,
    k_centre,
    memory_of,
    patches_of,
    power_of_positions,
    restored,
    stored,
    unusual_patches,
    whitening_of,
)
from tests.model.dispatch import Recorder


@pytest.fixture
def memory() -> Memory:
    return memory_of(torch.randn(300, 6) * torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 4.0]), 40, seed=0)[0]


def test_patches_lie_on_the_middle_stage_and_hold_the_two_coarsest_stages() -> None:
    features = [torch.full((2, c, side, side), float(c)) for c, side in ((3, 16), (4, 8), (5, 4))]
    found = patches_of(features)
    assert found.shape == (2, 8, 8, 9)
    assert torch.equal(found[0, 0, 0], torch.tensor([4.0] * 4 + [5.0] * 5))


def test_a_close_look_averages_positions_with_binomial_weights() -> None:
    coarse = torch.randn(2, 5, 7, 6)
    found = close_patches([torch.randn(2, 4, 14, 12), coarse], binomial=True)[:, 4:].numpy()
    expected = coarse.numpy()
    for axis in (2, 3):
        expected = correlate1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_far_look_counts_by_its_weight_and_the_gaussian_is_as_wide_as_asked() -> None:
    far, close = torch.zeros(1, 8, 8), torch.rand(1, 8, 8)
    alone = fuse_looks([close], (8, 8), far_weight=0.5, sigma=1.5)
    assert alone[0].numpy() == pytest.approx(gaussian_filter(close[0].numpy(), 1.5), abs=1e-6)
    torch.testing.assert_close(fuse_looks([far, close], (8, 8), 0.5, 1.5), alone)
    torch.testing.assert_close(fuse_looks([close, far], (8, 8), 0.5, 1.5), 0.5 * alone)


def test_whitened_patches_vary_alike_in_all_directions() -> None:
    patches = torch.randn(5000, 4) @ torch.randn(4, 4) + 3
    mean, whitening = whitening_of(patches)
    white = (patches - mean) @ whitening
    torch.testing.assert_close(white.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    assert torch.cov(white.T).diagonal().max() < 1.05
    assert (torch.cov(white.T) - torch.cov(white.T).diagonal().diag()).abs().max() < 1e-3


def test_a_coreset_covers_what_chance_would_leave_out() -> None:
    """Three clusters, of which one has a hundred times as many patches as the others."""
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    patches = torch.cat([centres[i] + torch.randn(n, 2) for i, n in ((0, 1000), (1, 10), (2, 10))])
    chosen = patches[k_centre(patches, 3, seed=1)]
    assert {int(torch.cdist(patch[None], centres).argmin()) for patch in chosen} == {0, 1, 2}
    assert torch.equal(k_centre(patches, 30, seed=1), k_centre(patches, 30, seed=1))
    assert len(set(k_centre(patches, 30, seed=1).tolist())) == 30


def test_a_coreset_is_that_of_farthest_points_and_none_is_read_before_all_are_chosen() -> None:
    """A GPU would wait for each index that is read: thousands of times for one memory."""
    patches = torch.randn(400, 6)
    with Recorder() as recorder:
        chosen = k_centre(patches, 50, seed=2)
    assert "_local_scalar_dense" not in recorder.operators
    generator = torch.Generator().manual_seed(2)
    points = patches @ (torch.randn(6, memories.PROJECTED, generator=generator) / math.sqrt(memories.PROJECTED))
    expected = [int(torch.randint(len(points), (), generator=generator))]
    apart = torch.tensor(cdist(points.double(), points.double()))
    while len(expected) < 50:
        expected.append(int(apart[expected].amin(0).argmax()))
    assert chosen.tolist() == expected


def test_distances_are_those_of_brute_force(memory: Memory) -> None:
    patches = torch.randn(2, 20, 17, 6)
    found = distances(memory, patches)
    white = ((patches - memory.mean) @ memory.whitening).flatten(0, 2)
    nearest = cdist(white.double(), memory.patches.double())
    order = nearest.argsort(1)[:, :5]
    expected = (torch.tensor(nearest).gather(1, torch.tensor(order)) / memory.spacing.double()[order]).mean(1)
    torch.testing.assert_close(found.flatten().double(), expected, atol=1e-3, rtol=1e-3)


def test_what_is_expected_is_local_and_drawn_to_the_mean_where_images_are_few() -> None:
    good = torch.ones(4, 6, 6)
    good[:, :, 3:] = 3.0
    expected = expected_distances(good)
    assert float(expected[0, 0]) == pytest.approx((4 * 1 + 4 * 2) / 8)
    assert float(expected[0, 5]) == pytest.approx((4 * 3 + 4 * 2) / 8)
    many = expected_distances(good.repeat(100, 1, 1))
    assert float(many[0, 0]) == pytest.approx(1, abs=0.02)


def test_a_power_of_zero_divides_by_the_same_everywhere_and_half_by_the_root() -> None:
    good = torch.rand(50, 6, 6) * torch.linspace(1, 4, 6)
    whole = expected_distances(good)
    assert torch.equal(expected_distances(good, 0.0), good.mean().expand(6, 6))
    torch.testing.assert_close(expected_distances(good, 0.5), (whole * good.mean()).sqrt())


@pytest.mark.parametrize(("growth", "power"), [(2.2, 1.0), (1.5, 0.5), (1.0, 0.0), (0.5, -0.5)])
def test_the_power_is_how_much_faster_the_upper_distances_grow_than_the_mean(growth: float, power: float) -> None:
    """Most distances of a position are its mean, a few are that to the power of growth."""
    mean = torch.linspace(1, 2, 400).view(20, 20)
    good = mean.repeat(200, 1, 1) * (0.95 + 0.1 * torch.rand(200, 1, 1))
    few = torch.rand(200, 20, 20) < 0.03
    good = torch.where(few, 2 * mean**growth, good)
    assert power_of_positions(good) == pytest.approx(power, abs=0.25)


def test_few_images_or_positions_tell_nothing_of_positions() -> None:
    assert power_of_positions(torch.rand(7, 20, 20)) == 1.0
    assert power_of_positions(torch.rand(50, 9, 9)) == 1.0
    counting = torch.zeros(20, 20, dtype=torch.bool)
    counting[3:9] = True
    assert power_of_positions(torch.rand(50, 20, 20), counting) == 1.0
    assert power_of_positions(torch.ones(50, 20, 20)) == pytest.approx(-1.0)  # nothing grows where all are equal


def test_the_border_takes_the_values_beside_it_and_any_grid_is_compared(memory: Memory) -> None:
    memory = memory._replace(expected=torch.ones(8, 8))
    patches = torch.randn(1, 8, 10, 6)
    patches[:, 0] *= 100
    found = unusual_patches(memory, patches)
    assert found.shape == (1, 8, 10)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, :, -1], found[:, :, -2])
    assert math.isfinite(float(found.max()))


def test_a_memory_of_one_patch_is_no_trouble() -> None:
    memory, chosen = memory_of(torch.eye(4)[:2], 1, seed=0)
    assert len(chosen) == 1
    assert torch.isfinite(distances(memory, torch.randn(1, 3, 3, 4))).all()


@pytest.mark.parametrize("size", [0.0, 1e-8, 0.01, 1.0, 300.0])
def test_patches_that_were_stored_are_stored_again_without_loss(size: float) -> None:
    patches = size * torch.randn(50, 12)
    kept = restored(*stored(patches))
    assert torch.equal(kept, restored(*stored(kept)))
    assert float((kept - patches).abs().max()) <= max(size * 4.0 / 127, 1e-6)
