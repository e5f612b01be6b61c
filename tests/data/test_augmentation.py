import pytest
import torch

from mambaad_cli.data.augmentation import cut_paste, moved, nudged


def test_cut_paste_moves_features_and_makes_none_up() -> None:
    features = [torch.arange(3 * 4 * side * side).float().view(3, 4, side, side) for side in (16, 8, 4)]
    before = [stage.clone() for stage in features]
    corrupted = cut_paste(features, share=1.0)
    for stage, copy, old in zip(features, corrupted, before, strict=True):
        assert torch.equal(stage, old)
        changed = (copy != stage).any(1)
        assert changed.flatten(1).any(1).sum() >= 1
        assert changed.float().mean() < 0.5
        known = {tuple(position) for position in stage.movedim(1, -1).flatten(0, 2).tolist()}
        assert {tuple(position) for position in copy.movedim(1, -1).flatten(0, 2).tolist()} <= known
    assert all(torch.equal(a, b) for a, b in zip(cut_paste(features, share=0.0), features, strict=True))


def test_cut_paste_takes_from_any_image_and_anywhere_to_anywhere() -> None:
    b, side = 200, 32
    features = torch.arange(b * side * side).view(b, 1, side, side)
    corrupted = cut_paste([features], share=1.0, most=1)[0]
    corners = []  # image, top and left: where a rectangle came from and where it went
    for image in range(b):
        changed = (corrupted[image, 0] != features[image, 0]).nonzero()
        if len(changed):
            top, left = changed[0].tolist()
            source, place = divmod(int(corrupted[image, 0, top, left]), side * side)
            corners.append([source, *divmod(place, side), top, left])
    table = torch.tensor(corners).float().T
    assert table.shape[1] > 0.9 * b
    assert len(table[0].unique()) > b / 3
    assert torch.corrcoef(table).fill_diagonal_(0).abs().max() < 0.4
    assert (table[1:].amin(1) <= 1).all()
    assert (table[1:].amax(1) >= 0.8 * side).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 7)])
def test_cut_paste_takes_any_grid(size: tuple[int, int]) -> None:
    assert cut_paste([torch.randn(1, 2, *size)], share=1.0)[0].shape == (1, 2, *size)


def test_moved_views_show_the_same_thing_elsewhere() -> None:
    pixels = torch.zeros(3, 64, 96)
    pixels[:, 28:36, 44:52] = 1.0
    views = moved(pixels, 50, seed=1)
    assert views.shape == (50, 3, 64, 96)
    areas = views.mean(1).sum((1, 2)) / 64
    assert 0.5 < float(areas.min()) < 0.9 < 1.1 < float(areas.max()) < 1.8  # scaled by e^−¼ … e^¼ along each axis
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    mass = views.mean(1).flatten(1)
    centres = torch.stack([(mass * at.flatten()).sum(1) / mass.sum(1) for at in (y, x)], 1)
    offsets = (centres - torch.tensor([31.5, 47.5])).abs() / torch.tensor([64.0, 96.0])
    assert 0.14 < float(offsets.max()) < 0.2  # 0.15 of a side, times the scale


@pytest.mark.parametrize("size", [(64, 96), (40, 8), (1, 1)])
def test_a_nudged_view_is_the_image_a_few_whole_pixels_away(size: tuple[int, int]) -> None:
    pixels = torch.rand(3, *size)
    offsets = set()
    for seed in range(30):
        view = nudged(pixels, seed)
        assert view.shape == pixels.shape
        reach = [side // 16 for side in size]
        at = [
            (y, x)
            for y in range(-reach[0], reach[0] + 1)
            for x in range(-reach[1], reach[1] + 1)
            if torch.equal(
                view[:, max(0, -y) : size[0] - max(0, y), max(0, -x) : size[1] - max(0, x)],
                pixels[:, max(0, y) : size[0] + min(0, y), max(0, x) : size[1] + min(0, x)],
            )
        ]
        assert len(at) == 1
        offsets.update(at)
        assert torch.equal(view, nudged(pixels, seed))
    assert len(offsets) > 1 or size == (1, 1)


def test_a_view_of_nothing_is_nothing_and_the_same_seed_gives_the_same_views() -> None:
    assert torch.allclose(moved(torch.full((3, 20, 30), 0.7), 4, seed=2), torch.tensor(0.7), atol=1e-6)
    pixels = torch.rand(3, 16, 16)
    assert torch.equal(moved(pixels, 3, seed=5), moved(pixels, 3, seed=5))
    assert not torch.equal(moved(pixels, 3, seed=5), moved(pixels, 3, seed=6))


def test_views_of_wide_images_are_turned_not_sheared() -> None:
    """A square stays a square: its two diagonals keep the same length in pixels."""
    pixels = torch.zeros(1, 64, 256)
    pixels[:, 16:48, 112:144] = 1.0
    for view in moved(pixels, 20, seed=3)[:, 0]:
        y, x = torch.nonzero(view > 0.5, as_tuple=True)
        y, x = y.float(), x.float()
        spread = torch.cov(torch.stack([y, x]))
        assert abs(float(spread[0, 0] / spread[1, 1]) - 1) < 0.15
        assert abs(float(spread[0, 1] / spread[0, 0])) < 0.15


def test_flips_mirror_along_both_axes() -> None:
    pixels = torch.zeros(1, 64, 64)
    pixels[:, :20, :20] = 1.0
    corners = {(bool(v[:32, :32].mean() > 0.1), bool(v[:32, 32:].mean() > 0.1), bool(v[32:, :32].mean() > 0.1))
               for v in moved(pixels, 40, seed=1, flips=True)[:, 0]}  # fmt: skip
    assert {(True, False, False), (False, True, False), (False, False, True), (False, False, False)} <= corners
