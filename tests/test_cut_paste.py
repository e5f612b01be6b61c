import pytest
import torch

from mambaad_cli.cut_paste import cut_paste


def test_cut_paste_moves_features_and_makes_none_up() -> None:
    features = [torch.arange(3 * 4 * side * side).float().view(3, 4, side, side) for side in (16, 8, 4)]
    before = [stage.clone() for stage in features]
    spoilt = cut_paste(features, share=1.0)
    for stage, copy, old in zip(features, spoilt, before, strict=True):
        assert torch.equal(stage, old)
        changed = (copy != stage).any(1)
        assert changed.flatten(1).any(1).sum() >= 1
        assert changed.float().mean() < 0.5
        known = {tuple(position) for position in stage.movedim(1, -1).flatten(0, 2).tolist()}
        assert {tuple(position) for position in copy.movedim(1, -1).flatten(0, 2).tolist()} <= known
    assert all(torch.equal(a, b) for a, b in zip(cut_paste(features, share=0.0), features, strict=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 7)])
def test_cut_paste_takes_any_grid(size: tuple[int, int]) -> None:
    assert cut_paste([torch.randn(1, 2, *size)], share=1.0)[0].shape == (1, 2, *size)
