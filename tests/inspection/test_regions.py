import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.regions import find_regions, json_object

GRID = (10, 10)


def spots(**values: float) -> np.ndarray:
    """(10, 10) of zeros, but for those named by their row and column: r2c3=5.0."""
    anomaly_map = np.zeros(GRID, np.float32)
    for name, value in values.items():
        anomaly_map[int(name[1]), int(name[3])] = value
    return anomaly_map


def test_a_region_worked_by_hand() -> None:
    anomaly_map = spots(r2c3=5, r2c4=6, r3c3=4, r3c4=9, r4c4=4)
    (one,) = find_regions(anomaly_map, 3.0, GRID)
    assert one.box == (3, 2, 2, 3)
    assert (one.area, one.peak, one.peak_at) == (5, 9.0, (4, 3))
    assert one.centre == (4, 3)  # the means are 3.6 + 0.5 and 2.8 + 0.5


def test_regions_that_touch_at_a_corner_are_one_and_others_are_not() -> None:
    assert len(find_regions(spots(r1c1=5, r2c2=5), 3.0, GRID)) == 1
    assert len(find_regions(spots(r1c1=5, r1c3=5), 3.0, GRID)) == 2


def test_the_highest_peak_comes_first() -> None:
    found = find_regions(spots(r0c0=4, r5c5=8, r9c9=6), 3.0, GRID)
    assert [one.peak for one in found] == [8.0, 6.0, 4.0]


def test_a_peak_of_another_region_within_the_box_is_not_its_own() -> None:
    ring = np.zeros(GRID, np.float32)
    ring[1:8, 1:8] = 4
    ring[2:7, 2:7] = 0
    ring[4, 4] = 9
    inner, outer = find_regions(ring, 3.0, GRID)
    assert (inner.box, inner.peak) == ((4, 4, 1, 1), 9.0)
    assert (outer.box, outer.peak, outer.area) == ((1, 1, 7, 7), 4.0, 24)
    assert outer.centre == (4, 4)


def test_boxes_are_in_the_pixels_of_the_picture_whatever_its_shape() -> None:
    (one,) = find_regions(spots(r2c3=5, r2c4=6), 3.0, (200, 50))  # 20 rows and 5 columns a value
    assert (one.box, one.area) == ((15, 40, 10, 20), 200)
    assert (one.peak_at, one.centre) == ((22, 50), (20, 50))


def test_the_box_holds_every_pixel_that_the_region_touches() -> None:
    (one,) = find_regions(spots(r4c4=5), 3.0, (25, 33))  # 2.5 rows and 3.3 columns a value
    assert one.box == (13, 10, 4, 3)  # 13.2 to 16.5, and 10 to 12.5
    assert one.area == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2)])
def test_a_picture_smaller_than_its_map_has_regions_inside_it(size: tuple[int, int]) -> None:
    for name in ("r0c0", "r9c9"):
        (one,) = find_regions(spots(**{name: 5.0}), 3.0, size)
        x, y, width, height = one.box
        assert one.area >= 1
        assert 0 <= x < x + width <= size[1]
        assert 0 <= y < y + height <= size[0]
        assert x <= one.peak_at[0] < x + width
        assert y <= one.peak_at[1] < y + height


def test_min_area_counts_pixels_of_the_picture() -> None:
    anomaly_map = spots(r1c1=9, r5c5=5, r5c6=5)
    assert [one.area for one in find_regions(anomaly_map, 3.0, (100, 100))] == [100, 200]
    assert [one.area for one in find_regions(anomaly_map, 3.0, (100, 100), 101)] == [200]
    assert [one.area for one in find_regions(anomaly_map, 3.0, (100, 100), 200)] == [200]
    assert find_regions(anomaly_map, 3.0, (100, 100), 201) == ()


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(-10, 10, width=32)),
    st.floats(-10, 10),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_there_is_a_region_exactly_if_the_image_is_anomalous(
    anomaly_map: np.ndarray, threshold: float, height: int, width: int
) -> None:
    found = find_regions(anomaly_map, threshold, (height, width))
    score = float(anomaly_map.max())
    assert bool(found) == exceeds(score, threshold)
    if found:
        assert found[0].peak == score


@pytest.mark.parametrize(("step", "count"), [(1e-7, 0), (4e-7, 0), (1e-5, 1)])
def test_the_seventh_digit_makes_no_region(step: float, count: int) -> None:
    assert len(find_regions(np.full((3, 3), 3.0 * (1 + step)), 3.0, (3, 3))) == count


def test_a_program_is_told_plain_numbers() -> None:
    (one,) = find_regions(spots(r2c3=5), 3.0, GRID)
    told = json_object(one)
    assert told == {
        "box": [3, 2, 1, 1],
        "area_px": 1,
        "peak": {"value": 5.0, "x": 3, "y": 2},
        "centre": {"x": 3, "y": 2},
    }
    assert {type(value) for value in (*told["box"], told["area_px"], *told["centre"].values())} == {int}
