"""Metrics against scikit-learn, a brute-force AU-PRO over every threshold, and cases worked by hand."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import metrics as module
from mambaad_cli.benchmark.metrics import (
    ImageMetrics,
    PixelMetrics,
    StreamingPixelMetrics,
    auroc,
    average_precision,
    f1max,
    image_metrics,
    mad,
    pixel_metrics,
    synthetic_images,
)

Images = tuple[list[np.ndarray], list[np.ndarray]]


def brute_force_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float = 0.3) -> float:
    """AU-PRO by its definition: per-region overlap and false-positive rate at every distinct score, trapezoids."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in regions_of(mask)]
    good = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in np.unique(flat(maps))[::-1]:
        overlap = np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])
        points.append((float((good >= threshold).mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit < x1:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def regions_of(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask, structure=[[1, 1, 1]] * 3)
    return [labels == k for k in range(1, count + 1)]


def f1_at_every_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    found = [scores >= threshold for threshold in np.unique(scores)]
    return max(2 * (labels & f).sum() / (labels.sum() + f.sum()) for f in found)


def random_images(seed: int, n: int = 6, levels: int | None = None) -> Images:
    """n maps of several sizes, every third one good; scores rounded to so many levels, so that ties are many."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(n):
        shape = tuple(rng.integers(3, 13, 2))
        mask = rng.random(shape) < 0.25 if i % 3 else np.zeros(shape, dtype=bool)
        scores = rng.standard_normal(shape) + mask
        maps.append((np.round(scores * levels) / levels if levels else scores).astype(np.float32))
        masks.append(mask)
    return maps, masks


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays])


# Image metrics


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_image_metrics_equal_scikit_learn_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    labels = rng.random(300) < 0.4
    scores = np.round(rng.standard_normal(300) + labels, decimals)
    expected = (
        sk.roc_auc_score(labels, scores),
        sk.average_precision_score(labels, scores),
        f1_at_every_threshold(labels, scores),
    )
    assert image_metrics(labels, scores) == pytest.approx(expected, abs=1e-9)


def test_image_metrics_of_a_case_worked_by_hand() -> None:
    # thresholds .9 .8 .7 .6: (tp, fp) = (1,0) (1,1) (2,1) (2,2)
    found = image_metrics([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6])
    assert found == pytest.approx((3 / 4, 0.5 * 1 + 0.5 * 2 / 3, 2 * 2 / (2 + 3)))


def test_equal_image_scores_are_one_threshold() -> None:
    assert image_metrics([0, 1], [0.5, 0.5]) == pytest.approx((0.5, 0.5, 2 / 3))


def test_f1max_is_right_where_some_threshold_finds_nothing() -> None:
    assert f1max([0, 0, 1], [0.9, 0.8, 0.1]) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [auroc, average_precision, f1max, image_metrics])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0, 0], [1, 2, 3], "all 3 images are good"),
        ([1, 1], [1, 2], "all 2 images are anomalous"),
        ([], [], "all 0 images"),
        ([0, 1], [1, np.nan], "NaN"),
        ([0, 1], [1, np.inf], "infinite"),
        ([0, 1, 1], [1, 2], "do not pair up"),
        ([[0, 1]], [[1, 2]], "do not pair up"),
    ],
)
def test_image_metrics_refuse_what_they_cannot_measure(
    metric: Callable, labels: list, scores: list, message: str
) -> None:
    with pytest.raises(MambaADError, match=message):
        metric(labels, scores)


def test_mad_is_the_mean_of_the_seven() -> None:
    # MambaAD on MVTec-AD, as published
    assert round(mad(ImageMetrics(98.6, 99.6, 97.8), PixelMetrics(97.7, 56.3, 59.2, 93.1)), 1) == 86.0


# Exact pixel metrics


@pytest.mark.parametrize("levels", [1, 3, 20, None])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_metrics_equal_scikit_learn_and_brute_force(seed: int, levels: int | None) -> None:
    maps, masks = random_images(seed, levels=levels)
    labels, scores = flat(masks), flat(maps)
    expected = (
        sk.roc_auc_score(labels, scores),
        sk.average_precision_score(labels, scores),
        f1_at_every_threshold(labels, scores),
        brute_force_aupro(maps, masks),
    )
    assert pixel_metrics(maps, masks) == pytest.approx(expected, abs=1e-9)


def test_pixel_metrics_equal_scikit_learn_on_a_quarter_million_tied_pixels() -> None:
    rng = np.random.default_rng(0)
    masks = list(rng.random((4, 256, 256)) < 0.03)
    maps = [np.round(rng.normal(mask, 1), 2).astype(np.float32) for mask in masks]
    labels, scores = flat(masks), flat(maps)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    f1 = np.nanmax(2 * precision * recall / (precision + recall))
    expected = (sk.roc_auc_score(labels, scores), sk.average_precision_score(labels, scores), f1)
    assert pixel_metrics(maps, masks)[:3] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_aupro_equals_brute_force_on_any_small_images(data: st.DataObject) -> None:
    maps, masks = drawn_images(data)
    assert pixel_metrics(maps, masks).aupro == pytest.approx(brute_force_aupro(maps, masks), abs=1e-9)


def drawn_images(data: st.DataObject) -> Images:
    """Two 3 × 4 images of few levels, with at least one defect pixel and one good pixel."""
    scores = data.draw(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1e-6, 0.25, 0.25001, 3.0]), min_size=24, max_size=24))
    mask = data.draw(st.lists(st.booleans(), min_size=24, max_size=24).filter(lambda m: any(m) and not all(m)))
    return list(np.array(scores, np.float32).reshape(2, 3, 4)), list(np.array(mask).reshape(2, 3, 4))


def test_aupro_weighs_regions_alike_whatever_their_area() -> None:
    # found: the region of 1 pixel whole, none of the region of 4; then no good pixel below the limit: 1/2
    anomaly_map = np.zeros((10, 10), np.float32)
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = mask[5:7, 5:7] = True
    anomaly_map[~mask] = 1
    anomaly_map[0, 0] = 2
    # at score 1 all good pixels come at once: a flat line at 1/2 from rate 0 on
    assert pixel_metrics([anomaly_map], [mask]).aupro == pytest.approx(0.5)


def test_aupro_counts_pixels_that_touch_at_a_corner_as_one_region() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = mask[5, 5] = True
    anomaly_map = np.where(mask, 0, 1).astype(np.float32)
    anomaly_map[5, 5] = 2  # 1 of 2 regions; were corners apart, 1 of 3
    assert pixel_metrics([anomaly_map], [mask]).aupro == pytest.approx(1 / 2)


def test_aupro_cuts_a_tie_that_spans_the_limit_linearly() -> None:
    # all scores equal: the curve is the diagonal, its area up to 0.3 is 0.3²/2
    mask = np.eye(5, dtype=bool)
    assert pixel_metrics([np.ones((5, 5))], [mask]).aupro == pytest.approx(0.3 / 2)


def test_aupro_ignores_what_is_found_beyond_the_limit() -> None:
    # 10 good pixels score 10…1, defects at 7.5 (rate 0.3) and 6.5 (rate 0.4): nothing found below 0.3
    anomaly_map = np.array([[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 7.5, 6.5]], np.float32)
    mask = np.array([[0] * 10 + [1] * 2], bool)
    assert pixel_metrics([anomaly_map], [mask]).aupro == 0
    # a defect at rate 0.1 is found over 0.2 of the 0.3
    anomaly_map[0, 10] = 9.5
    assert pixel_metrics([anomaly_map], [mask]).aupro == pytest.approx(0.5 * 0.2 / 0.3)


def test_good_images_add_false_positives_only() -> None:
    image, mask = np.array([[3, 1]], np.float32), np.array([[True, False]])
    good, empty = np.array([[2, 4]], np.float32), np.array([[False, False]])
    assert pixel_metrics([image], [mask]) == (1, 1, 1, 1)
    # of 3 good pixels one lies above the defect: AU-ROC 2/3, precision 1/2, F1 2/3, found from rate 1/3 on
    assert pixel_metrics([image, good], [mask, empty]) == pytest.approx((2 / 3, 1 / 2, 2 / 3, 0))


def test_pixel_metrics_do_not_depend_on_the_order_of_images_or_on_scale() -> None:
    maps, masks = random_images(1, levels=5)
    expected = pixel_metrics(maps, masks)
    assert pixel_metrics(maps[::-1], masks[::-1]) == pytest.approx(expected, abs=1e-12)
    assert pixel_metrics([m * 8 for m in maps], masks) == pytest.approx(expected, abs=1e-12)


def test_pixel_metrics_take_generators() -> None:
    maps, masks = random_images(2)
    assert pixel_metrics(iter(maps), (mask for mask in masks)) == pixel_metrics(maps, masks)


def test_pixel_metrics_take_generators_that_use_one_buffer_again() -> None:
    images = list(synthetic_images(6, side=32))
    scores, mask = np.empty((32, 32), np.float32), np.empty((32, 32), bool)

    def refilled(buffer: np.ndarray, which: int) -> Iterator[np.ndarray]:
        for image in images:
            buffer[:] = image[which]
            yield buffer

    found = pixel_metrics(refilled(scores, 0), refilled(mask, 1))
    assert found == pixel_metrics([m for m, _ in images], [m for _, m in images])


def test_pixel_metrics_do_not_depend_on_how_good_pixels_are_sorted_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = random_images(3, n=20, levels=4)
    expected, whole = pixel_metrics(maps, masks), module._sorted_runs
    monkeypatch.setattr(module, "_sorted_runs", lambda parts: whole(parts, size=100))
    assert pixel_metrics(maps, masks) == expected


def test_sorted_runs_hold_every_value_once_even_of_an_image_larger_than_a_run() -> None:
    parts = [np.arange(70)[::-1], np.arange(3), np.arange(200)]
    runs = list(module._sorted_runs(parts, size=50))
    assert len(runs) == 3
    assert all((np.diff(run) >= 0).all() for run in runs)
    assert sorted(flat(runs)) == sorted(flat(parts))


def test_pixel_metrics_leave_maps_and_masks_as_they_were() -> None:
    maps, masks = random_images(4)
    copies = [m.copy() for m in maps], [m.copy() for m in masks]
    pixel_metrics(maps, masks)
    for before, after in zip(flat(copies[0]), flat(maps), strict=True):
        assert before == after
    assert (flat(copies[1]) == flat(masks)).all()


def streaming(maps: list[np.ndarray], masks: list[np.ndarray]) -> tuple[PixelMetrics, PixelMetrics]:
    stream = StreamingPixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        stream.add(anomaly_map, mask)
    return stream.result()


@pytest.mark.parametrize("measure", [pixel_metrics, streaming])
@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2)), "no mask marks a defect"),
        (np.zeros((2, 2)), np.ones((2, 2)), "every pixel as defect"),
        (np.zeros((2, 2)), np.ones((2, 3)), r"\(2, 2\) and mask \(2, 3\)"),
        (np.zeros(4), np.array([0, 0, 1, 1]), "do not pair up"),
        (np.array([[np.nan, 1]]), np.array([[0, 1]]), "NaN"),
        (np.array([[np.inf, 1]]), np.array([[0, 1]]), "infinite"),
    ],
)
def test_pixel_metrics_refuse_what_they_cannot_measure(
    measure: Callable, scores: np.ndarray, mask: np.ndarray, message: str
) -> None:
    with pytest.raises(MambaADError, match=message):
        measure([scores], [mask])


@pytest.mark.parametrize("measure", [pixel_metrics, streaming])
def test_pixel_metrics_refuse_no_images(measure: Callable) -> None:
    with pytest.raises(MambaADError, match="no mask marks a defect"):
        measure([], [])


def test_more_maps_than_masks_are_a_bug() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pixel_metrics([np.zeros((2, 2))] * 2, [np.eye(2)])


# Streaming pixel metrics


def test_streaming_stays_within_its_bound_and_1e_4_on_realistic_maps() -> None:
    images = list(synthetic_images(40))
    maps, masks = [m for m, _ in images], [m for _, m in images]
    value, error = streaming(maps, masks)
    for got, bound, exact in zip(value, error, pixel_metrics(maps, masks), strict=True):
        assert abs(got - exact) <= bound <= 1e-4


@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
def test_streaming_stays_within_its_bound_however_coarse_the_bins(offset: float) -> None:
    maps, masks = random_images(5, n=12)
    maps = [m + np.float32(offset) for m in maps]
    value, error = streaming(maps, masks)
    for got, bound, exact in zip(value, error, pixel_metrics(maps, masks), strict=True):
        assert abs(got - exact) <= bound + 1e-12
    assert (max(error) > 0.01) == (offset >= 1e4)


def test_streaming_bound_is_reached_by_the_best_and_the_worst_order_inside_a_bin() -> None:
    low, high = np.float32(1), np.nextafter(np.float32(1), np.float32(2))  # one bin
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    best = pixel_metrics([np.where(mask, high, low)], [mask])
    worst = pixel_metrics([np.where(mask, low, high)], [mask])
    value, error = streaming([np.where(mask, high, low)], [mask])
    assert np.add(value, error) == pytest.approx(best)
    assert np.subtract(value, error)[[0, 2, 3]] == pytest.approx(np.array(worst)[[0, 2, 3]])
    assert value.ap - error.ap <= worst.ap


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_streaming_stays_within_its_bound_on_any_small_images(data: st.DataObject) -> None:
    maps, masks = drawn_images(data)
    value, error = streaming(maps, masks)
    for got, bound, exact in zip(value, error, pixel_metrics(maps, masks), strict=True):
        assert abs(got - exact) <= bound + 1e-12


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_bins_keep_the_order_of_scores(scores: list[float]) -> None:
    ordered = np.sort(np.array(scores, np.float32))
    bins = module._bins(ordered).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2**24


def test_minus_zero_and_zero_share_a_bin() -> None:
    assert len(set(module._bins(np.array([-0.0, 0.0], np.float32)).tolist())) == 1


def test_a_refused_image_leaves_the_stream_as_it_was() -> None:
    maps, masks = random_images(6)
    stream = StreamingPixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        stream.add(anomaly_map, mask)
    expected = stream.result()
    with pytest.raises(MambaADError):
        stream.add(np.full((2, 2), np.nan), np.eye(2))
    assert stream.result() == expected


# The synthetic images of the measurement


def test_synthetic_images_are_smooth_float32_maps_with_three_percent_defect() -> None:
    images = list(synthetic_images(40))
    assert {(m.shape, m.dtype.name, mask.dtype.name) for m, mask in images} == {((256, 256), "float32", "bool")}
    assert 0.02 < np.mean([mask for _, mask in images]) < 0.04
    assert np.abs(np.diff(images[1][0])).max() < 0.1 * np.ptp(images[1][0])
    assert not images[0][1].any()
