"""Scan orders and directions: the order in which a selective scan visits the positions of an h × w grid.

Five orders (MambaAD, section 3.3), each for any grid: `sweep` (raster), `scan` (boustrophedon), `zorder` (Morton),
`zigzag` (anti-diagonals) and `hilbert`. A scan order is a permutation of the flat indices row · w + column.

Letters: h rows, w columns, l = h·w positions, k directions.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from mambaad_cli import MambaADError

DIRECTIONS = (2, 4, 6, 8)


def sweep(h: int, w: int) -> np.ndarray:
    """Row by row, each from left to right.

    >>> sweep(2, 3).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return np.arange(h * w)


def scan(h: int, w: int) -> np.ndarray:
    """The boustrophedon: row by row, turning at each end, so that each position is a neighbour of the one before.

    >>> scan(2, 3).tolist()
    [0, 1, 2, 5, 4, 3]
    """
    grid = np.arange(h * w).reshape(h, w)
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid.ravel()


def zorder(h: int, w: int) -> np.ndarray:
    """By Morton code: the bits of row and column interleaved. Codes of positions outside the grid are skipped.

    >>> zorder(2, 3).tolist()
    [0, 1, 3, 4, 2, 5]
    """
    rows, columns = np.divmod(np.arange(h * w), w)
    return np.argsort(2 * _spread_bits(rows) + _spread_bits(columns))


def zigzag(h: int, w: int) -> np.ndarray:
    """Anti-diagonal by anti-diagonal, up and down in turn, as JPEG reads its coefficients.

    >>> zigzag(2, 3).tolist()
    [0, 1, 3, 4, 2, 5]
    """
    rows, columns = np.divmod(np.arange(h * w), w)
    diagonal = rows + columns
    return np.lexsort((np.where(diagonal % 2, rows, columns), diagonal))


def hilbert(h: int, w: int) -> np.ndarray:
    """Hilbert's curve, generalised to any rectangle: every position is a neighbour of the one before.

    On a square with sides of 2ⁿ it is the classical curve. On other grids it runs along the longer side from one corner
    to the next, and the rectangle is cut as in Červený's "Generalized Hilbert space-filling curve". Where the longer
    side is odd and the other one even, no path of neighbours joins these corners: then it runs along the other side.

    >>> hilbert(2, 2).tolist()
    [0, 2, 3, 1]
    """
    along_rows = w >= h
    longer, shorter = max(h, w), min(h, w)
    if longer % 2 and shorter % 2 == 0:
        along_rows = not along_rows
    rows, columns = _hilbert_path(w, h).T[::-1] if along_rows else _hilbert_path(h, w).T
    return rows * w + columns


@lru_cache(maxsize=1024)
def _hilbert_path(a: int, b: int) -> np.ndarray:
    """(a·b, 2) coordinates of a path over an a × b rectangle from (0, 0) to (a − 1, 0)."""
    if a == 1 or b == 1:
        path = np.zeros((a * b, 2), dtype=np.int64)
        path[:, 0 if b == 1 else 1] = np.arange(a * b)
        return path
    if 2 * a > 3 * b:  # long: two rectangles one behind the other
        cut = _even_half(a)
        return np.concatenate([_hilbert_path(cut, b), _hilbert_path(a - cut, b) + [cut, 0]])
    cut = _even_half(b)
    out = _hilbert_path(cut, a // 2)[:, ::-1]
    across = _hilbert_path(a, b - cut) + [0, cut]
    back = [a - 1, cut - 1] - _hilbert_path(cut, a - a // 2)[:, ::-1]
    return np.concatenate([out, across, back])


def _even_half(side: int) -> int:
    """About half of a side, an even number where possible: only an even part can be crossed there and back."""
    half = side // 2
    return half + (half % 2 if side > 2 else 0)


def _spread_bits(x: np.ndarray) -> np.ndarray:
    """Bit i of x moved to bit 2i."""
    spread = np.zeros_like(x)
    for bit in range(16):
        spread |= ((x >> bit) & 1) << (2 * bit)
    return spread


WALKS: dict[str, Callable[[int, int], np.ndarray]] = {
    "sweep": sweep,
    "scan": scan,
    "zorder": zorder,
    "zigzag": zigzag,
    "hilbert": hilbert,
}


def directions(order: str, h: int, w: int, k: int) -> np.ndarray:
    """(k, l) int32: one scan order in k directions over an h × w grid (MambaAD, section 3.3).

    Forward: the grid as is, transposed, rotated by 90°, rotated and transposed; then the same four backwards. 2: as is
    and backwards; 4: also the transposed pair; 8: all. On a square of 2ⁿ two of the eight directions of Hilbert's curve
    repeat others, and so do two of the boustrophedon's; 6 leaves these two out.

    Raises MambaADError for an unknown order or k.

    >>> directions("sweep", 2, 2, 4).tolist()
    [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]
    """
    if order not in WALKS:
        raise MambaADError(f"no scan order {order!r}: choose {', '.join(WALKS)}")
    if k not in DIRECTIONS or (k == 6 and order not in _REPEATED):
        known = "2, 4, 6 or 8" if order in _REPEATED else "2, 4 or 8"
        raise MambaADError(f"{order} cannot be walked in {k} directions: choose {known}")
    return _directions(order, h, w, k)


# Which of the four forward directions repeats another one backwards.
_REPEATED = {"hilbert": 3, "scan": 2}


@lru_cache(maxsize=256)
def _directions(order: str, h: int, w: int, k: int) -> np.ndarray:
    grid = np.arange(h * w).reshape(h, w)
    views = [grid, grid.T, np.rot90(grid), np.rot90(grid).T]
    if k == 6:
        del views[_REPEATED[order]]
    forward = [view.ravel()[WALKS[order](*view.shape)] for view in views[: k // 2]]
    walks = np.ascontiguousarray(forward + [walk[::-1] for walk in forward], dtype=np.int32)
    walks.setflags(write=False)  # all callers share it
    return walks
