"""Distances, losses and maps by hand and by scipy."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mambaad_cli.model import anomaly_map, losses
from mambaad_cli.model.anomaly_map import Residual, residual_statistics, residuals, standardised_distances
from tests.model.dispatch import Recorder


def test_cosine_distance_by_hand() -> None:
    """Alike 0, at right angles 1, opposite 2, whatever the length."""
    f = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]).T.reshape(1, 2, 1, 3)
    r = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)
    assert losses.cosine_distances([f], [r])[0].flatten().tolist() == pytest.approx([0, 1, 2], abs=1e-6)


def test_losses_by_hand() -> None:
    zero, two = torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 2.0)
    assert float(losses.mse_loss([zero, two], [two, two])) == 4.0
    assert float(losses.cosine_loss([two, two], [two, -two])) == pytest.approx(2.0)


def test_hard_loss_by_hand() -> None:
    """Distances 0, 0, 0 and 1 in one image weigh 0, 0, 0 and 4 of 4; where all are alike it is the plain loss."""
    features = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(2, 2, 2, 2)
    rebuilt = features.clone()
    rebuilt[0, :, 0, 0] = torch.tensor([0.0, 1.0])
    assert float(losses.hard_cosine_loss([features[:1]], [rebuilt[:1]])) == pytest.approx(1.0)
    assert float(losses.hard_cosine_loss([features], [rebuilt])) == pytest.approx(0.5)
    assert float(losses.hard_cosine_loss([features], [-features])) == pytest.approx(2.0)


def test_hard_loss_is_the_mean_of_its_images_and_pulls_most_where_it_is_worst() -> None:
    features, rebuilt = torch.randn(3, 5, 4, 4), torch.randn(3, 5, 4, 4)
    loss = losses.hard_cosine_loss([features], [rebuilt])
    alone = [float(losses.hard_cosine_loss([features[[i]]], [rebuilt[[i]]])) for i in range(3)]
    assert float(loss) == pytest.approx(sum(alone) / 3)
    assert float(loss) > float(losses.cosine_loss([features], [rebuilt]))
    rebuilt.requires_grad_()
    assert torch.isfinite(torch.autograd.grad(losses.hard_cosine_loss([rebuilt], [rebuilt]), rebuilt)[0]).all()


@pytest.mark.parametrize("size", [(64, 80), (10, 7), (33, 1)])
def test_map_is_bilinear_upsampling_summed_and_smoothed_as_scipy_does(size: tuple[int, int]) -> None:
    distances = [torch.rand(2, side, side + 1) for side in (16, 8, 4)]
    upsampled = sum(F.interpolate(d[:, None], size=size, mode="bilinear", align_corners=True)[:, 0] for d in distances)
    expected = np.stack([gaussian_filter(distance.double().numpy(), 4) for distance in upsampled])
    assert anomaly_map.fuse(distances, size).numpy() == pytest.approx(expected, abs=1e-5)


def residual(difference: Tensor, rebuilt: Tensor | None = None) -> Residual:
    """Where nothing tells one place from another, unless `rebuilt` does."""
    return Residual(difference, torch.ones_like(difference) if rebuilt is None else rebuilt)


def test_residuals_are_half_the_root_of_the_cosine_distance() -> None:
    features, rebuilt = ([torch.randn(2, 5, 4, 3)], [torch.randn(2, 5, 4, 3)])
    (found,) = residuals(features, rebuilt)
    (distance,) = losses.cosine_distances(features, rebuilt)
    torch.testing.assert_close(found.difference.square().sum(-1) / 2, distance)
    torch.testing.assert_close(found.reconstructed, F.normalize(rebuilt[0], dim=1).permute(0, 2, 3, 1))


def test_unusual_is_a_mahalanobis_distance_in_deviations_of_good_images() -> None:
    good = torch.randn(8, 16, 16, 3) * torch.tensor([1.0, 2.0, 0.1]) + torch.tensor([0.5, 0.0, 1.0])
    (normal,) = residual_statistics(lambda: [[residual(good[:4])], [residual(good[4:])]])
    (found,) = standardised_distances([residual(good)], [normal])
    flat = good.flatten(0, 2).double()
    covariance = torch.cov(flat.T, correction=0)
    covariance = 0.99 * covariance + 0.01 * covariance.diagonal().mean() * torch.eye(3)
    offsets = flat - flat.mean(0)
    distance = ((offsets @ torch.linalg.inv(covariance)) * offsets).sum(-1)
    wanted = (distance - distance.mean()) / distance.std()
    torch.testing.assert_close(found.flatten().double(), wanted, atol=1e-3, rtol=1e-3)


def test_a_direction_that_never_varies_counts_most() -> None:
    given = [residual(torch.randn(1, 32, 32, 2) * torch.tensor([1.0, 0.1]))]
    normal = residual_statistics(lambda: [given])
    along, across = standardised_distances([residual(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]))], normal)[0][0, 0]
    assert across > 10 * along


def good_places(*scale: float) -> Residual:
    """Good images of which every kind of place is rebuilt as a unit vector of its own, each with its own deviation."""
    kind = torch.arange(8 * 16 * 16).view(8, 16, 16) % len(scale)
    rebuilt = torch.eye(len(scale))[kind]
    return Residual(torch.randn(rebuilt.shape) * torch.tensor(scale)[kind][..., None], rebuilt)


def test_what_good_images_fail_at_too_is_forgiven_at_such_places() -> None:
    given = [good_places(1, 1, 1, 3)]
    normal = residual_statistics(lambda: [given])
    alike = Residual(torch.full((1, 1, 4, 4), 3.0), torch.eye(4).view(1, 1, 4, 4))
    at_easy, *_, at_hard = standardised_distances([alike], normal)[0].flatten()
    mean, deviation = normal[0].moments
    ratio = (at_easy * deviation + mean) / (at_hard * deviation + mean)
    # mean squares of 1, 1, 1 and 9: a hard place is worth three means
    assert float(ratio) == pytest.approx(3 / anomaly_map.HARD, rel=0.05)


def test_easy_places_do_not_count_more_and_the_hardest_not_less_than_a_quarter() -> None:
    given = [good_places(*[0.001] * 8, *[0.1] * 7, 30)]
    normal = residual_statistics(lambda: [given])
    forgiven = anomaly_map._expected(torch.eye(16), normal[0].expected)
    assert forgiven[0] == 1
    assert forgiven[-1] == 4


def test_without_forgiving_a_hard_place_counts_as_any_other() -> None:
    places = [good_places(1, 1, 1, 3)]
    (normal,) = residual_statistics(lambda: [places], predict_distance=False)
    assert anomaly_map._expected(torch.eye(4), normal.expected).tolist() == [1.0] * 4
    alike = Residual(torch.full((1, 1, 4, 4), 3.0), torch.eye(4).view(1, 1, 4, 4))
    assert standardised_distances([alike], [normal])[0].flatten().std() < 1e-5


def test_scales_count_by_their_stride() -> None:
    good = [residual(torch.randn(4, side, side, 2)) for side in (16, 8, 4)]
    fine, middle, coarse = standardised_distances(good, residual_statistics(lambda: [good]))
    assert [round(float(scale.std()), 2) for scale in (fine, middle, coarse)] == [0.25, 0.5, 1.0]


def test_good_images_that_never_vary_are_no_trouble() -> None:
    given = [residual(torch.zeros(3, 4, 4, 2))]
    normal = residual_statistics(lambda: [given])
    assert torch.isfinite(standardised_distances([residual(torch.ones(1, 4, 4, 2))], normal)[0]).all()


def test_map_does_not_lose_precision_under_autocast() -> None:
    distances = [torch.rand(1, 8, 8)]
    exact = anomaly_map.fuse(distances, (32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = anomaly_map.fuse(distances, (32, 32))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


def test_statistics_are_the_same_in_any_batches_and_hold_one_of_them_at_a_time() -> None:
    good = good_places(1, 1, 1, 3)
    alive: list[int] = []

    def singly() -> Iterator[list[Residual]]:
        for i in range(8):
            alive.append(1)
            yield [Residual(good.difference[i : i + 1], good.reconstructed[i : i + 1])]

    (whole,), (parts,) = residual_statistics(lambda: [[good]]), residual_statistics(singly)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert len(alive) == 3 * 8  # three passes, each image once in each


@pytest.mark.parametrize("size", [(64, 96), (20, 300)])
def test_local_contrast_takes_a_share_of_a_wide_gaussian_mean_off_each_value(size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size)
    wide = anomaly_map.WIDE * (size[0] * size[1]) ** 0.5
    means = np.stack([gaussian_filter(image_map.double().numpy(), wide, mode="reflect") for image_map in maps])
    expected = maps - 0.4 * torch.from_numpy(means).float()
    torch.testing.assert_close(anomaly_map.local_contrast(maps, 0.4), expected, rtol=0, atol=1e-5)
    assert anomaly_map.local_contrast(maps, 0.0) is maps


def test_a_peak_stands_out_more_than_a_wide_elevation_of_the_same_height() -> None:
    maps = torch.zeros(2, 128, 128)
    maps[0, 60:68, 60:68], maps[1, :64] = 1.0, 1.0
    narrow, broad = anomaly_map.local_contrast(maps, 0.4).flatten(1).amax(1).tolist()
    assert narrow > 0.9
    assert broad < narrow - 0.05


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_matrices_of_a_map_are_made_once_on_each_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the CPU would make a GPU wait at every batch. "meta" stands for it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **choices: nullcontext())  # which "meta" does not know

    def work() -> Tensor:
        return anomaly_map.local_contrast(anomaly_map.fuse([torch.empty(1, 8, 9, device=device)], (40, 36)), 0.4)

    work()
    with Recorder() as recorder:
        assert work().device.type == device
    assert set(recorder.operators) & {"_to_copy", "copy_", "eye", "arange"} == set()


def test_a_network_that_is_built_without_memory_leaves_no_matrix_without_numbers() -> None:
    """A map that is made under `torch.device("meta")` shares its matrices with all later ones."""
    anomaly_map._upsample_and_smooth.cache_clear()
    anomaly_map._smooth.cache_clear()
    distances = torch.rand(1, 8, 9)
    with torch.device("meta"):
        found = anomaly_map.local_contrast(anomaly_map.fuse([distances], (40, 36)), 0.4)
    anomaly_map._upsample_and_smooth.cache_clear()
    anomaly_map._smooth.cache_clear()
    assert torch.equal(found, anomaly_map.local_contrast(anomaly_map.fuse([distances], (40, 36)), 0.4))


def test_maps_of_double_precision_stay_so() -> None:
    assert anomaly_map.local_contrast(torch.rand(1, 20, 20, dtype=torch.double), 0.4).dtype == torch.double
