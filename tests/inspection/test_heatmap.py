import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mambaad_cli.inspection.heatmap import (
    VERDICT_COLOURS,
    ColourScale,
    Tile,
    _text_width,
    contact_sheet,
    framed,
    heat,
    overlay,
    raw16,
    shorten,
    thumbnail,
)

SCALE = ColourScale(cold=0.3, threshold=0.5)
values = st.floats(-1e6, 1e6, width=32)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def cone(size: int, peak: float) -> np.ndarray:
    """(size, size): `peak` in the middle, falling by 0.01 a pixel."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (peak - 0.01 * np.hypot(y, x)).astype(np.float32)


def line_pixels(picture: np.ndarray) -> np.ndarray:
    """(n, 2) y, x of the white line; no other pixel of a grey picture with its glow has so much blue."""
    return np.argwhere(picture.min(axis=2) > 150)


# heat


def test_heat_of_hand_worked_values():
    values = np.array([[-1.0, 0.3, 0.4, 0.5, 0.7, 1.3]])
    assert heat(values, SCALE) == pytest.approx(np.array([[0, 0, 0.25, 0.5, 0.75, 0.9]]), abs=1e-6)
    assert heat(values, SCALE).dtype == np.float32


@settings(deadline=None)
@given(values, values, values, values)
@example(0.0, 1e-45, 1.0, 1e-45)
def test_heat_is_monotone_and_within_0_and_1_whatever_the_scale(a, b, cold, threshold):
    low, high = heat(np.array([[min(a, b), max(a, b)]]), ColourScale(cold, threshold))[0]
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("scale", [ColourScale(0.5, 0.5), ColourScale(0.9, 0.5), ColourScale(0, 0), ColourScale(1, -2)])
def test_heat_at_the_threshold_is_a_half_even_if_cold_is_not_below_it(scale):
    below, at, above = heat(np.array([[scale.threshold - 0.01, scale.threshold, scale.threshold + 0.01]]), scale)[0]
    assert below < at == 0.5 < above


def test_nan_is_hottest_and_never_leaves():
    broken = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    assert heat(broken, SCALE).tolist() == [[1, 1, 0, 0.5]]
    assert len(line_pixels(overlay(grey(64, 64), np.full((4, 4), np.nan), SCALE))) > 0


# overlay


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_cold_map_leaves_the_picture_untouched(dtype):
    picture = photo(50, 70)
    cold = np.random.default_rng(1).uniform(0, SCALE.cold, (16, 16)).astype(np.float32)
    np.testing.assert_array_equal(overlay(picture.astype(dtype), cold, SCALE), picture)


def test_a_good_image_is_not_stretched_to_its_own_maximum():
    picture = photo(64, 64)
    nearly_cold = cone(64, SCALE.cold + 0.1 * (SCALE.threshold - SCALE.cold))  # heat 0.05 at most
    difference = np.abs(overlay(picture, nearly_cold, SCALE).astype(int) - picture)
    assert difference.max() <= 2


def test_the_same_value_has_the_same_heat_whatever_else_is_in_the_image():
    one = np.full((32, 32), 0.45, np.float32)
    other = one.copy()
    other[:, 20:] = 50
    picture = photo(128, 128)
    a, b = overlay(picture, one, SCALE), overlay(picture, other, SCALE)
    np.testing.assert_array_equal(a[:, :64], b[:, :64])
    assert (a[:, 100:] != b[:, 100:]).any()
    assert not np.array_equal(a, picture)


def test_hotter_means_redder():
    levels = [overlay(grey(9, 9), np.full((3, 3), v), ColourScale(0, 1))[4, 4].astype(int) for v in (0.2, 0.6, 0.99)]
    redness = [int(r - b) for r, g, b in levels]
    assert redness == sorted(redness)
    assert redness[0] < redness[-1]


@pytest.mark.parametrize("peak", [0.49, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.52, 3.0])
@pytest.mark.parametrize("side", [40, 128, 333])
def test_a_line_appears_exactly_if_a_value_exceeds_the_threshold(peak, side):
    values = np.full((64, 64), 0.1, np.float32)
    values[21, 40] = peak  # a single value: the picture's own pixels may all miss it
    drawn = line_pixels(overlay(grey(side, side), values, SCALE))
    assert bool(len(drawn)) == (peak > SCALE.threshold)


@pytest.mark.parametrize("side", [101, 404])
def test_the_line_runs_where_the_map_crosses_the_threshold(side):
    picture = overlay(grey(side, side), cone(101, SCALE.threshold + 0.3), SCALE)  # 30 of 101 pixels from the middle
    y, x = (line_pixels(picture) - (side - 1) / 2).T
    assert np.hypot(y, x) == pytest.approx(30 * side / 101, abs=max(1.5, side / 200))
    assert np.histogram(np.arctan2(y, x), bins=24)[0].min() > 0


def test_the_line_follows_a_picture_of_another_shape():
    values = np.zeros((50, 50), np.float32)
    values[:, 25:] = 1  # crosses half way
    drawn = line_pixels(overlay(grey(60, 300), values, SCALE))
    assert drawn[:, 1].min() == pytest.approx(150, abs=3)
    assert drawn[:, 1].max() >= 297
    assert {0, 59} <= set(drawn[:, 0].tolist())  # closed along the picture's border


@pytest.mark.parametrize("background", [0, 128, 255])
def test_the_line_is_visible_on_dark_and_bright_pictures(background):
    picture = np.full((200, 200, 3), background, np.uint8)
    drawn = overlay(picture, cone(200, SCALE.threshold + 0.5), SCALE)
    across = drawn[100, 140:160].astype(int).sum(axis=1) / 3
    assert across.max() - across.min() > 80


def test_the_line_grows_with_the_picture():
    def share(side: int) -> float:
        return len(line_pixels(overlay(grey(side, side), cone(64, 0.7), SCALE))) / side**2

    assert share(2000) == pytest.approx(share(800), rel=0.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (40, 30), (20_000, 12), (2000, 3000)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_overlay_has_the_size_of_its_picture(size, value):
    picture = grey(*size)
    drawn = overlay(picture, np.full((8, 8), value, np.float32), SCALE)
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, picture) == (value == 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (256, 3), (1500, 1200)])
def test_a_map_may_have_any_size(size):
    assert len(line_pixels(overlay(grey(100, 100), np.ones(size, np.float32), SCALE))) > 0


def test_the_inputs_stay_as_they_were():
    picture, values = photo(30, 30), cone(30, 1)
    before = picture.copy(), values.copy()
    overlay(picture, values, SCALE)
    np.testing.assert_array_equal(picture, before[0])
    np.testing.assert_array_equal(values, before[1])


# frames


def test_frames_lie_around_their_boxes_and_leave_the_inside_and_the_rest_alone():
    picture = photo(200, 300)
    drawn = framed(picture, [(100, 80, 60, 40)])
    changed = (drawn != picture).any(axis=2)
    assert not changed[80:120, 100:160].any()
    assert changed[60:140, 80:180].sum() == changed.sum() > 200
    assert (drawn[changed].min(axis=1) > 200).any()  # white on black: seen on any picture
    assert (drawn[changed].max(axis=1) < 50).any()


def test_without_boxes_the_picture_stays_as_it_is():
    picture = photo(20, 30)
    np.testing.assert_array_equal(framed(picture, []), picture)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (40, 30), (3000, 2000)])
def test_frames_stay_inside_pictures_of_any_size(size):
    boxes = [(0, 0, size[1], size[0]), (size[1] - 1, size[0] - 1, 1, 1), (0, 0, 1, 1)]
    drawn = framed(grey(*size), boxes * 40)
    assert drawn.shape == (*size, 3)
    assert (drawn != 90).any()


def test_each_frame_has_its_number():
    one, two = framed(grey(200, 200), [(50, 50, 40, 40)]), framed(grey(200, 200), [(50, 50, 40, 40)] * 2)
    assert not np.array_equal(one, two)  # a 2 under the 1


# raw16


def test_raw16_of_hand_worked_values():
    """Zero is kept apart from negative values; the threshold is 32768."""
    t = SCALE.threshold
    codes = raw16(np.array([[-9, -t, -t / 2, 0, t, 2 * t, 3 * t, 99, np.nan, np.inf]]), SCALE)
    assert codes.tolist() == [[0, 0, 8192, 16384, 32768, 49152, 65535, 65535, 65535, 65535]]
    assert codes.dtype == np.uint16


def test_raw16_codes_give_the_map_back_to_half_a_step():
    values = np.random.default_rng(0).uniform(0, 2, (40, 40)).astype(np.float32)
    step = SCALE.threshold / 16384
    back = SCALE.threshold + (raw16(values, SCALE).astype(float) - 32768) * step
    assert back == pytest.approx(np.minimum(values, 3 * SCALE.threshold), abs=1.01 * step)


@pytest.mark.parametrize(("threshold", "codes"), [(0.0, [16384, 32768, 49152]), (-1.0, [32768, 49152, 65535])])
def test_raw16_takes_a_threshold_that_is_not_positive(threshold, codes):
    assert raw16(np.array([[-1.0, 0.0, 1.0]]), ColourScale(-2, threshold)).tolist() == [codes]


# contact sheet


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (75, 100)),
        ((640, 480), (100, 75)),
        ((30, 30), (100, 100)),
        ((1, 5000), (1, 100)),
        ((1, 1), (100, 100)),
    ],
)
def test_a_thumbnail_keeps_the_aspect(size, expected):
    assert thumbnail(grey(*size), 100).shape == (*expected, 3)
    assert thumbnail(grey(*size).astype(np.float32), 100).dtype == np.uint8


def test_a_thumbnail_of_a_thumbnail_is_itself():
    once = thumbnail(photo(300, 200), 100)
    np.testing.assert_array_equal(thumbnail(once, 100), once)


def coloured_tiles(count: int, verdict: str = "good") -> list[Tile]:
    return [Tile(np.full((30, 20, 3), (10 + 20 * i, 7, 250), np.uint8), f"{i}", 0.5, verdict) for i in range(count)]


def centres(sheet: np.ndarray, tiles: list[Tile]) -> np.ndarray:
    """(n, 2) x, y of the middle of each tile's picture, found by its colour."""
    found = [np.argwhere((sheet == tile.image[0, 0]).all(axis=2)).mean(axis=0)[::-1] for tile in tiles]
    return np.array(found)


@pytest.mark.parametrize(
    ("count", "columns", "grid"), [(7, 3, (3, 3)), (7, None, (3, 3)), (4, 9, (1, 9)), (5, 1, (5, 1))]
)
def test_tiles_stand_in_the_order_given_on_an_even_grid(count, columns, grid):
    tiles = coloured_tiles(count)
    sheet = contact_sheet(tiles, columns, tile=80)
    x, y = centres(sheet, tiles).T
    across, down = grid[1], grid[0]
    assert sheet.shape[1] // across > 80
    for i in range(count):
        assert x[i] == pytest.approx(x[0] + (i % across) * (sheet.shape[1] - 5) / across, abs=across)
        assert y[i] == pytest.approx(y[0] + (i // across) * (sheet.shape[0] - 5) / down, abs=down)


def test_no_tiles_give_an_empty_sheet():
    assert (contact_sheet([]) == 255).all()


@pytest.mark.parametrize("verdict", ["anomalous", "review", "good", "error"])
def test_the_frame_has_the_colour_of_the_verdict(verdict):
    sheet = contact_sheet(coloured_tiles(1, verdict), tile=100)
    top = np.argwhere((sheet != 255).any(axis=2))[0]
    assert tuple(sheet[top[0], top[1]]) == VERDICT_COLOURS[verdict]
    assert len(set(VERDICT_COLOURS.values())) == 4


@pytest.mark.parametrize("change", [{"title": "other"}, {"score": 0.7}, {"verdict": "error"}])
def test_the_caption_shows_title_score_and_verdict(change):
    tile = coloured_tiles(1)[0]
    below = [contact_sheet([one], tile=100)[115:] for one in (tile, tile, tile._replace(**change))]
    assert np.array_equal(below[0], below[1])
    assert not np.array_equal(below[0], below[2])


def test_a_long_title_shows_its_end_within_its_cell():
    one, other = ([tile._replace(title="W" * 99 + end) for tile in coloured_tiles(2)] for end in ("1.png", "2.png"))
    gap = (contact_sheet(coloured_tiles(2), tile=100) == 255).all(axis=(0, 2))
    assert (contact_sheet(one, tile=100)[:, gap] == 255).all()
    assert not np.array_equal(contact_sheet(one, tile=100), contact_sheet(other, tile=100))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.integers(20, 200))
def test_a_shortened_text_fits_and_keeps_both_ends(text, room):
    short = shorten(text, room, 0.4)
    assert _text_width(short, 0.4) <= max(room, _text_width("...", 0.4))


def test_a_text_is_shortened_in_its_middle_alone():
    short = shorten("begin_0123456789_0123456789_end.png", 120, 0.4).replace("…", "...")
    start, end = short.split("...")
    assert start.startswith("begin")
    assert end.endswith("end.png")
    assert abs(len(start) - len(end)) <= 1


def test_an_older_opencv_gets_plain_letters(monkeypatch):
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    assert shorten("Prüfling", 1000, 0.4) == "Pr?fling"
    assert shorten("x" * 100, 100, 0.4).isascii()


def test_a_sheet_takes_broken_scores_and_titles_of_any_script():
    tiles = [
        Tile(photo(20, 20), "Prüfling-检测-\udcff.png", float("nan"), "error"),
        Tile(photo(9, 9), "", float("inf"), "odd"),
    ]
    assert contact_sheet(tiles).dtype == np.uint8
