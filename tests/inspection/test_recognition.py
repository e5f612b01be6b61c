import pytest
import torch

from mambaad_cli.inspection.recognition import learn, signature


@pytest.fixture
def points() -> torch.Tensor:
    """Twenty signatures of each of two products, far apart."""
    return torch.randn(40, 6) + torch.tensor([0.0] * 20 + [30.0] * 20)[:, None]


NAMES = ["nut"] * 20 + ["bolt"] * 20


def test_signature_is_mean_and_deviation_of_the_two_coarsest_stages() -> None:
    stages = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2)]
    found = signature(stages)
    wanted = [part for one in stages[1:] for part in (one.std(dim=(2, 3)), one.mean(dim=(2, 3)))]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_each_image_is_recognised_with_certainty(points: torch.Tensor) -> None:
    found = learn(points, NAMES, held_out=[0, 20])(points)
    assert [one.name for one in found] == NAMES
    assert all(one.known and 0.9 < one.certainty <= 1 for one in found)


def test_halfway_between_two_products_nothing_is_certain(points: torch.Tensor) -> None:
    recogniser = learn(points, NAMES, held_out=[])
    assert recogniser(recogniser.means.mean(0, keepdim=True))[0].certainty == pytest.approx(0, abs=1e-3)


def test_what_is_far_from_all_products_is_unknown(points: torch.Tensor) -> None:
    assert not learn(points, NAMES, held_out=[0, 20])(torch.full((1, 6), 300.0))[0].known


def test_one_product_alone_is_certain_or_unknown(points: torch.Tensor) -> None:
    recogniser = learn(points[:20], NAMES[:20], held_out=[0])
    near, far = recogniser(torch.stack([points[3], points[30]]))
    assert (near.name, near.certainty, near.known) == ("nut", 1.0, True)
    assert not far.known


def test_more_dimensions_than_images_are_no_trouble() -> None:
    points = torch.randn(6, 300) + torch.tensor([0.0] * 3 + [9.0] * 3)[:, None]
    names = ["nut"] * 3 + ["bolt"] * 3
    found = learn(points, names, held_out=[0])(points)
    assert [one.name for one in found] == names
    assert all(torch.isfinite(torch.tensor(one.certainty)) for one in found)
