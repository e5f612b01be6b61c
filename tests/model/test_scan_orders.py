"""Walks over grids: the published ones where those exist, permutations everywhere."""

from pathlib import Path

import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.model.scan_orders import DIRECTIONS, WALKS, directions

GRIDS = [(h, w) for h in range(1, 41) for w in range(1, 41)]


@pytest.mark.parametrize("order", WALKS)
@pytest.mark.parametrize("side", [4, 8, 16, 32, 64])
def test_orders_are_the_published_ones_on_squares_of_powers_of_two(golden: Path, order: str, side: int) -> None:
    published = np.load(golden / "scan_orders.npz")[f"{order}_{side}"]
    assert WALKS[order](side, side).tolist() == published.tolist()


@pytest.mark.parametrize("order", WALKS)
def test_every_walk_of_any_grid_visits_each_position_once(order: str) -> None:
    for h, w in GRIDS:
        assert np.array_equal(np.sort(WALKS[order](h, w)), np.arange(h * w)), (h, w)


@pytest.mark.parametrize("order", WALKS)
def test_every_direction_visits_each_position_once(order: str) -> None:
    for h, w in [(1, 1), (1, 7), (5, 3), (6, 9), (13, 8)]:
        for k in DIRECTIONS:
            if k == 6 and order not in ("hilbert", "scan"):
                continue
            walks = directions(order, h, w, k)
            assert walks.shape == (k, h * w)
            assert np.array_equal(np.sort(walks, axis=1), np.tile(np.arange(h * w), (k, 1))), (h, w, k)


def step_lengths(walk: np.ndarray, w: int) -> np.ndarray:
    """City-block distance from each position to the next."""
    rows, columns = np.divmod(walk.astype(int), w)
    return np.abs(np.diff(rows)) + np.abs(np.diff(columns))


@pytest.mark.parametrize("order", ["hilbert", "scan"])
def test_hilbert_and_boustrophedon_only_step_to_neighbours_on_any_grid(order: str) -> None:
    for h, w in GRIDS:
        for walk in directions(order, h, w, 8):
            assert (step_lengths(walk, w) == 1).all(), (h, w)


def test_hilbert_stays_local_where_raster_does_not() -> None:
    """A stretch of 16 positions of Hilbert's walk fits into a small square; of the raster it is a line."""
    rows, columns = np.divmod(WALKS["hilbert"](24, 40)[:16], 40)
    assert max(np.ptp(rows), np.ptp(columns)) < 8


def test_zigzag_goes_along_anti_diagonals_in_turn() -> None:
    assert WALKS["zigzag"](3, 3).tolist() == [0, 1, 3, 6, 4, 2, 5, 7, 8]


def test_second_half_of_the_directions_is_the_first_half_backwards() -> None:
    for order in WALKS:
        for k in (2, 4, 8):
            walks = directions(order, 5, 6, k)
            assert np.array_equal(walks[k // 2 :], walks[: k // 2, ::-1])


@pytest.mark.parametrize("order", ["hilbert", "scan"])
def test_six_directions_are_the_eight_without_repetition(order: str) -> None:
    eight = {walk.tobytes() for walk in directions(order, 8, 8, 8)}
    six = [walk.tobytes() for walk in directions(order, 8, 8, 6)]
    assert len(eight) == 6
    assert set(six) == eight


@pytest.mark.parametrize("order", ["sweep", "zorder", "zigzag"])
def test_the_other_orders_have_eight_different_directions(order: str) -> None:
    assert len({walk.tobytes() for walk in directions(order, 8, 8, 8)}) == 8
    with pytest.raises(MambaADError, match="2, 4 or 8"):
        directions(order, 8, 8, 6)


def test_unknown_order_and_direction_are_named() -> None:
    with pytest.raises(MambaADError, match="no scan order 'peano'"):
        directions("peano", 4, 4, 8)
    with pytest.raises(MambaADError, match="cannot be walked in 3 directions"):
        directions("hilbert", 4, 4, 3)
