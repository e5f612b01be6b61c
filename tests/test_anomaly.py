"""Distances, losses and maps by hand and by scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from mambaad_cli.model import anomaly


def test_cosine_distance_by_hand() -> None:
    """Alike 0, at right angles 1, opposite 2, whatever the length."""
    f = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]).T.reshape(1, 2, 1, 3)
    r = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)
    assert anomaly.cosine_distances([f], [r])[0].flatten().tolist() == pytest.approx([0, 1, 2], abs=1e-6)


def test_losses_by_hand() -> None:
    zero, two = torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 2.0)
    assert float(anomaly.mse_loss([zero, two], [two, two])) == 4.0
    assert float(anomaly.cosine_loss([two, two], [two, -two])) == pytest.approx(2.0)


@pytest.mark.parametrize("size", [(64, 80), (10, 7), (33, 1)])
def test_map_is_bilinear_upsampling_summed_and_smoothed_as_scipy_does(size: tuple[int, int]) -> None:
    distances = [torch.rand(2, side, side + 1) for side in (16, 8, 4)]
    upsampled = sum(F.interpolate(d[:, None], size=size, mode="bilinear", align_corners=True)[:, 0] for d in distances)
    expected = np.stack([gaussian_filter(one.double().numpy(), 4) for one in upsampled])
    assert anomaly.fuse(distances, size).numpy() == pytest.approx(expected, abs=1e-5)


def test_moments_weigh_a_scale_by_how_unusual_it_is() -> None:
    distances = [torch.full((1, 4, 4), 0.9), torch.full((1, 2, 2), 0.3)]
    moments = torch.tensor([[0.8, 0.1], [0.1, 0.05]])
    assert anomaly.fuse(distances, (8, 8), moments=moments).numpy() == pytest.approx(5.0)


def test_image_score_is_the_maximum() -> None:
    assert anomaly.image_score(torch.tensor([[[1.0, 5.0]], [[-3.0, -2.0]]])).tolist() == [5.0, -2.0]


def test_map_does_not_lose_precision_under_autocast() -> None:
    distances = [torch.rand(1, 8, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(anomaly.fuse(distances, (32, 32)), anomaly.fuse(distances, (32, 32)))
        assert anomaly.fuse(distances, (32, 32)).dtype == torch.float32
