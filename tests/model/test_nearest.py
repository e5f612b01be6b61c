"""Distances to the nearest patches against brute force."""

import math
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor

from mambaad_cli.model.kernels import cpu, nearest
from mambaad_cli.model.kernels.nearest import nearest_distances, nearest_ref, smallest
from mambaad_cli.model.quantised import restored, stored


def as_stored(patches: Tensor) -> Tensor:
    """As the patches of a memory are: integers of 8 bits times a step."""
    return restored(*stored(patches))


def brute_force(points: Tensor, patches: Tensor, spacing: Tensor, count: int) -> Tensor:
    found = torch.cdist(points.double(), patches.double()).topk(min(count, len(patches)), largest=False)
    return (found.values / spacing[found.indices]).mean(1).float()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels", [3, 20, 167])
@pytest.mark.parametrize(("p", "m", "count"), [(600, 3000, 5), (3, 3, 5), (1, 77, 9), (20, 16, 13), (20, 7, 1)])
def test_kernel_equals_brute_force(p: int, m: int, count: int, channels: int) -> None:
    points, patches, spacing = torch.randn(p, channels), as_stored(torch.randn(m, channels)), torch.rand(m) + 0.5
    found = nearest_distances(points, patches, spacing, count)
    torch.testing.assert_close(found, brute_force(points, patches, spacing, count), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("isa")
def test_sums_of_very_many_channels_do_not_overflow() -> None:
    patches = as_stored(torch.full((40, 3000), 7.0) * torch.linspace(0.5, 1, 40)[:, None])
    points = torch.full((9, 3000), 7.0)
    found = nearest_distances(points, patches, torch.ones(40), 3)
    torch.testing.assert_close(found, brute_force(points, patches, torch.ones(40), 3))


@pytest.mark.usefixtures("isa")
def test_patches_that_were_changed_are_not_taken_for_those_before() -> None:
    points, spacing = torch.randn(30, 8), torch.ones(50)
    for _ in range(5):
        patches = as_stored(torch.randn(50, 8))
        found = nearest_distances(points, patches, spacing, 5)
        torch.testing.assert_close(found, brute_force(points, patches, spacing, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("p", "m", "count"), [(600, 3000, 5), (3, 3, 5), (20, 40, 20)])
def test_pytorchs_operators_equal_brute_force(p: int, m: int, count: int) -> None:
    points, patches, spacing = torch.randn(p, 20), torch.randn(m, 20), torch.rand(m) + 0.5
    with patch.object(cpu, "suit", lambda *tensors: False):
        found = nearest_distances(points, patches, spacing, count)
    torch.testing.assert_close(found, brute_force(points, patches, spacing, count), rtol=1e-4, atol=1e-4)


def test_a_point_of_the_memory_is_no_distance_from_itself() -> None:
    patches = as_stored(100 * torch.randn(50, 8))
    assert nearest_distances(patches, patches, torch.ones(50), 1).max() < 0.2  # the rounding of squared lengths


@pytest.mark.parametrize(("rows", "m"), [(1, 3), (7, 500), (9, 2000), (300, 3001)])
def test_the_smallest_values_are_those_of_topk(rows: int, m: int) -> None:
    values = torch.randn(rows, m)
    values[0, : m // 2] = math.inf
    found, places = smallest(values, 5)
    wanted = values.topk(min(5, m), dim=1, largest=False)
    assert torch.equal(found, wanted.values)
    assert torch.equal(values.gather(1, places), found)


@pytest.mark.parametrize(("device", "calls"), [("cpu", 4), ("meta", 1)])
def test_a_gpu_compares_all_points_at_once_and_a_cpu_one_block_after_the_other(device: str, calls: int) -> None:
    """Each block takes a GPU a dozen small kernels. "meta" stands for it: a device that is not the CPU."""
    points, patches, spacing = (torch.rand(*shape, device=device) for shape in ((1000, 8), (300, 8), (300,)))
    with patch.object(cpu, "suit", lambda *tensors: False), patch.object(nearest, "nearest_ref", Mock()) as compared:
        compared.side_effect = nearest_ref
        found = nearest_distances(points, patches, spacing, 3)
    assert compared.call_count == calls
    assert found.shape == (1000,)


def test_a_gpu_takes_no_more_points_at_once_than_its_memory_has_room_for() -> None:
    points, patches = torch.rand(1000, 8, device="meta"), torch.rand(300, 8, device="meta")
    with patch.object(nearest, "GPU_PRODUCTS", 400 * 300), patch.object(nearest, "nearest_ref", Mock()) as compared:
        compared.side_effect = nearest_ref
        nearest_distances(points, patches, torch.rand(300, device="meta"), 3)
    assert [len(call.args[0]) for call in compared.call_args_list] == [400, 400, 200]
