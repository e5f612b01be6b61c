import pytest
import torch

from mambaad_cli.inspection.recognition import MARGIN, Recognised, Recogniser, learn, signature


@pytest.fixture
def points() -> torch.Tensor:
    """Twenty signatures of each of two products, far apart."""
    return torch.randn(40, 6) + torch.tensor([0.0] * 20 + [30.0] * 20)[:, None]


NAMES = ["nut"] * 20 + ["bolt"] * 20


def taught(points: torch.Tensor, names: list[str], held_out: list[int]) -> tuple[Recogniser, float]:
    """A recogniser, and the limit beyond which an image shows no product."""
    recogniser, farthest = learn(points, names, held_out)
    return recogniser, MARGIN * max(farthest.values())


def recognised(points: torch.Tensor, names: list[str], held_out: list[int], images: torch.Tensor) -> list[Recognised]:
    recogniser, limit = taught(points, names, held_out)
    return recogniser(images, limit)


def test_signature_is_mean_and_deviation_of_the_two_coarsest_stages() -> None:
    stages = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2)]
    found = signature(stages)
    wanted = [part for one in stages[1:] for part in (one.std(dim=(2, 3)), one.mean(dim=(2, 3)))]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_each_image_is_recognised_with_certainty(points: torch.Tensor) -> None:
    found = recognised(points, NAMES, [0, 20], points)
    assert [one.name for one in found] == NAMES
    assert all(one.known and 0.9 < one.certainty <= 1 for one in found)


def test_halfway_between_two_products_nothing_is_certain(points: torch.Tensor) -> None:
    recogniser, limit = taught(points, NAMES, held_out=[])
    assert recogniser(recogniser.means.mean(0, keepdim=True), limit)[0].certainty == pytest.approx(0, abs=1e-3)


def test_what_is_far_from_all_products_is_unknown(points: torch.Tensor) -> None:
    assert not recognised(points, NAMES, [0, 20], torch.full((1, 6), 300.0))[0].known


def test_one_product_alone_is_certain_or_unknown(points: torch.Tensor) -> None:
    near, far = recognised(points[:20], NAMES[:20], [0], torch.stack([points[3], points[30]]))
    assert (near.name, near.certainty, near.known) == ("nut", 1.0, True)
    assert not far.known


def test_more_dimensions_than_images_are_no_trouble() -> None:
    points = torch.randn(6, 300) + torch.tensor([0.0] * 3 + [9.0] * 3)[:, None]
    names = ["nut"] * 3 + ["bolt"] * 3
    found = recognised(points, names, [0], points)
    assert [one.name for one in found] == names
    assert all(torch.isfinite(torch.tensor(one.certainty)) for one in found)


def test_the_farthest_of_each_product_is_that_of_an_image_its_mean_was_not_computed_from(points: torch.Tensor) -> None:
    """Held-out images as they are, the others against the mean that is left without them."""
    recogniser, farthest = learn(points, NAMES, held_out=[0, 20])
    for first, name in ((0, "nut"), (20, "bolt")):
        own = points[first : first + 20]
        others = [torch.cat([own[1:i], own[max(i, 1) + (i > 0) :]]) for i in range(20)]
        offsets = torch.stack([image - rest.mean(0) for image, rest in zip(own, others, strict=True)])
        expected = ((offsets @ recogniser.precision) * offsets).sum(1).max()
        assert farthest[name] == pytest.approx(float(expected), rel=1e-4)
