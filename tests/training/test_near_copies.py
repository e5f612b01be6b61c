"""Photos that show nearly the same are found, and count as one for the threshold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mambaad_cli.data import images
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.training.features import Features, Group, Seen
from mambaad_cli.training.near_copies import near_copies
from tests.conftest import picture
from tests.training.conftest import promising, scores_of


def features_of(stage: torch.Tensor) -> Features:
    """Images that one stage (n, h, w, c) is known of."""
    group = Group([stage], list(range(len(stage))), [1] * len(stage))
    return Features([group], [Seen()] * len(stage))


def noisy(stage: torch.Tensor, share: float) -> torch.Tensor:
    return stage + share * torch.randn_like(stage)


def test_bursts_are_found_among_others() -> None:
    stage = torch.randn(30, 6, 6, 8)
    stage[5:9] = noisy(stage[5].expand(4, -1, -1, -1), 0.05)
    stage[20] = noisy(stage[2], 0.05)
    assert sorted(near_copies(features_of(stage), range(30))) == [[2, 20], [5, 6, 7, 8]]
    assert near_copies(features_of(stage), [1, 3, 5, 10, 11]) == []


def test_they_are_found_where_every_photo_has_one() -> None:
    """The nearest of any is a copy then: only the distance between any two photos tells."""
    parts = torch.randn(6, 6, 6, 8)
    stage = noisy(parts.repeat_interleave(3, 0), 0.05)
    assert near_copies(features_of(stage), range(18)) == [list(range(3 * i, 3 * i + 3)) for i in range(6)]


def test_photos_of_different_parts_are_none() -> None:
    assert near_copies(features_of(torch.randn(40, 6, 6, 8)), range(40)) == []
    alike = torch.randn(1, 6, 6, 8) + 0.3 * torch.randn(40, 6, 6, 8)  # of one kind
    assert near_copies(features_of(alike), range(40)) == []
    assert near_copies(features_of(torch.randn(2, 6, 6, 8)), range(2)) == []


def test_what_shows_the_same_is_on_one_side_whatever_else_is_joined() -> None:
    first, second = features_of(torch.randn(4, 2, 2, 3)), features_of(torch.randn(3, 2, 2, 3))
    first.group([[0, 2]])
    second.group([[1, 2]])
    joined = first.and_those_of(second)
    assert [joined.alike(i) for i in range(7)] == [[0, 2], [1], [0, 2], [3], [4], [5, 6], [5, 6]]
    joined.group([[2, 3]])
    assert joined.alike(0) == [0, 2, 3]
    assert joined.first_of_alike([3, 1, 2, 6, 5]) == [3, 1, 6]
    assert joined.distinct(range(7)) == list(range(7))


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Twelve parts, three times each: as it is, and with the noise of a camera."""
    rng = np.random.default_rng(0)
    for i in range(12):
        part = picture(i)
        for shot in range(3):
            noise = rng.integers(-1, 2, part.shape) if shot else 0
            images.write(tmp_path / "burst" / f"{i}_{shot}.png", (part + noise).clip(0, 255).astype(np.uint8))
    return tmp_path / "burst"


def test_each_burst_counts_as_one_photo(run: Callable[..., ModelRecord], bursts: Path) -> None:
    record = run(images.find([bursts]), evidence="memory")
    assert len(scores_of(record)["part"]) == 12
    assert promising(record) == {"part"}
    alone = run([file for file in images.find([bursts]) if file.path.stem.endswith("_0")], evidence="memory")
    burst, once = (sorted(scores_of(model)["part"]) for model in (record, alone))
    assert np.median(burst) > 0.7 * np.median(once)
