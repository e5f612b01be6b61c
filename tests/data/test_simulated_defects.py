"""Simulated defects: visible, inside, of the length that they say."""

import pytest
import torch

from mambaad_cli.data.simulated_defects import KINDS, LENGTHS, simulate
from tests.conftest import picture


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(picture(seed, 96, 128)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_defect_is_seen_and_leaves_the_rest_as_it_is(kind: str, seed: int) -> None:
    good = pixels()
    found = simulate(good, pixels(1), kind, seed)
    changed = (found.pixels - good).abs().amax(0) > 0.02
    side = (96 * 128) ** 0.5
    assert LENGTHS[0] * side <= found.length <= LENGTHS[1] * side
    assert changed.any()
    assert changed.float().mean() < 0.25
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1


def test_the_same_seed_draws_the_same_defect_and_another_another() -> None:
    first, again, other = (simulate(pixels(), pixels(1), "spot", seed).pixels for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grey_pictures_stay_grey() -> None:
    grey = pixels()[:1].repeat(3, 1, 1)
    for kind in KINDS:
        found = simulate(grey, grey.flip(1), kind, seed=3).pixels
        assert float((found.amax(0) - found.amin(0)).max()) < 1e-3
