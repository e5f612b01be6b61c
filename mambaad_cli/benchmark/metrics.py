"""The seven metrics of multi-class anomaly detection.

Image AU-ROC, AP, F1max; pixel AU-ROC, AP, F1max, AU-PRO; mAD is the mean of the seven. All lie in [0, 1].

Every metric is exact over all thresholds, where equal scores are one threshold, as in scikit-learn. AU-PRO follows
Bergmann et al., "The MVTec Anomaly Detection Dataset" (IJCV 2021): regions are 8-connected components of each mask
alone, each region weighs the same, and the mean overlap is integrated over the false-positive rate up to 0.3, then
divided by 0.3. Where a metric is undefined (only one kind of image or pixel) MambaADError is raised, never a NaN.

`python -m mambaad_cli.benchmark.metrics` measures time and memory on synthetic maps of the size of MVTec-AD's test set.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn import metrics as sk

from mambaad_cli import MambaADError

FPR_LIMIT = 0.3
EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


class ImageMetrics(NamedTuple):
    auroc: float
    ap: float
    f1max: float


class PixelMetrics(NamedTuple):
    auroc: float
    ap: float
    f1max: float
    aupro: float


def mad(image: ImageMetrics, pixel: PixelMetrics) -> float:
    """The mean of the seven metrics.

    >>> round(mad(ImageMetrics(0.986, 0.996, 0.978), PixelMetrics(0.977, 0.563, 0.592, 0.931)), 3)
    0.86
    """
    return float(np.mean([*image, *pixel]))


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> ImageMetrics:
    """The three image metrics of n images; arguments and errors as for `auroc`.

    >>> image_metrics([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
    ImageMetrics(auroc=0.75, ap=0.8333333333333333, f1max=0.8)
    """
    return ImageMetrics(auroc(labels, scores), average_precision(labels, scores), f1max(labels, scores))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve. labels: (n,) true where anomalous; scores: (n,) higher is more anomalous.

    Raises MambaADError for scores that are not finite, for lengths that differ, and where all labels are the same.

    >>> auroc([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
    0.75
    """
    return float(sk.roc_auc_score(*_checked(labels, scores)))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """AP: precision at each threshold, weighted by the recall it gains; arguments and errors as for `auroc`.

    >>> average_precision([0, 1, 1], [0.1, 0.2, 0.2])
    1.0
    """
    return float(sk.average_precision_score(*_checked(labels, scores)))


def f1max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The highest F1 over all thresholds; arguments and errors as for `auroc`.

    >>> f1max([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
    0.8
    """
    precision, recall, _ = sk.precision_recall_curve(*_checked(labels, scores))
    return float((2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)).max())


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """labels as bool, scores as float64, both (n,) and fit for scikit-learn."""
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise MambaADError(f"image labels {truth.shape} and scores {values.shape} do not pair up: give one per image")
    if not np.isfinite(values).all():
        raise MambaADError("an image score is NaN or infinite: fit the model again")
    if truth.all() or not truth.any():
        kind = "anomalous" if truth.any() else "good"
        raise MambaADError(f"all {truth.size} images are {kind}: image metrics need good and anomalous ones")
    return truth, values


def pixel_metrics(maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]) -> PixelMetrics:
    """The four pixel metrics, exact, over all pixels of all images together.

    maps: (h, w) anomaly maps, taken as float32; masks: (h, w) true where defect, all false for a good image. Both may
    be generators and images may differ in size. Takes 4 bytes a good pixel, about 75 a defect pixel and 80 MB.

    Raises MambaADError for a mask of another shape than its map, for values that are not finite, and where there are
    no defect pixels or no good ones; ValueError where maps and masks differ in number.

    >>> pixel_metrics([np.array([[0.1, 0.2], [0.3, 0.4]])], [np.array([[False, True], [False, True]])])
    PixelMetrics(auroc=0.75, ap=0.8333333333333333, f1max=0.8, aupro=0.5)
    """
    goods, defects, shares = [], [], []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        good, defect, share = _split(anomaly_map, mask)
        goods.append(good)
        defects.append(defect)
        shares.append(share)
    _check_both_kinds(sum(good.size for good in goods), sum(defect.size for defect in defects))
    return _metrics(_steps(goods, np.concatenate(defects), np.concatenate(shares)))


class StreamingPixelMetrics:
    """The four pixel metrics in constant memory, each with a bound on its error, for sets too big to hold.

    Counts good and defect pixels in bins of the upper 24 bits of the float32 score: 15 bits after the leading one, so
    32,768 bins for each doubling of the score. Reserves 400 MB, of which only the bins in use become memory.

    >>> stream = StreamingPixelMetrics()
    >>> stream.add(np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[False, True], [False, True]]))
    >>> value, error = stream.result()
    >>> value.auroc, error.auroc
    (0.75, 0.0)
    """

    def __init__(self) -> None:
        self._good = np.zeros(2**24, dtype=np.int64)
        self._defect = np.zeros(2**24, dtype=np.int64)
        self._share = np.zeros(2**24, dtype=np.float64)

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        """Count one image; arguments and errors as for `pixel_metrics`. A refused image leaves the counts alone."""
        good, defect, share = _split(anomaly_map, mask)
        np.add.at(self._good, _bins(good), 1)
        np.add.at(self._defect, _bins(defect), 1)
        np.add.at(self._share, _bins(defect), share)

    def result(self) -> tuple[PixelMetrics, PixelMetrics]:
        """(value, error): each exact metric lies within value ± error, whatever the order of scores inside the bins.

        The error is worked out from the counts: about 1e-5 on the synthetic maps of this module, up to 0.5 where all
        scores fall into one bin (such as 1000 plus thousandths). Raises MambaADError where no image holds
        a defect pixel or none a good one.
        """
        _check_both_kinds(int(self._good.sum()), int(self._defect.sum()))
        lower, upper = _bounds(self._counted())
        pairs = list(zip(lower, upper, strict=True))
        return PixelMetrics(*((l + u) / 2 for l, u in pairs)), PixelMetrics(*((u - l) / 2 for l, u in pairs))

    def _counted(self) -> "_Steps":
        bins = np.flatnonzero(self._defect)[::-1]
        good = self._good.sum()
        level = good - np.cumsum(self._good)[bins] + self._good[bins]
        return _Steps(self._defect[bins], self._share[bins], level - self._good[bins], level, int(good))


class _Steps(NamedTuple):
    """Where the s distinct scores (or bins) of defect pixels stand among the good pixels, highest first.

    This is all that the metrics need: a threshold between two of these scores only adds false positives.
    """

    defects: np.ndarray  # (s,) defect pixels of this score
    share: np.ndarray  # (s,) their areas as shares of their regions, summed
    above: np.ndarray  # (s,) good pixels of a higher score
    level: np.ndarray  # (s,) good pixels of this score or a higher one
    good: int  # good pixels in all


def _split(anomaly_map: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of good pixels (g,), of defect pixels (d,), and each defect pixel's share 1/area of its region (d,)."""
    scores, mask = np.asarray(anomaly_map, dtype=np.float32), np.asarray(mask, dtype=bool)
    if scores.ndim != 2 or scores.shape != mask.shape:
        raise MambaADError(f"anomaly map {scores.shape} and mask {mask.shape} do not pair up: scale one to the other")
    if not np.isfinite(scores).all():
        raise MambaADError("an anomaly map holds NaN or infinite values: fit the model again")
    if not mask.any():
        return scores.flatten(), np.empty(0, np.float32), np.empty(0)
    regions = ndimage.label(mask, EIGHT_CONNECTED)[0][mask]
    return scores[~mask], scores[mask], 1 / np.bincount(regions)[regions]


def _check_both_kinds(good: int, defect: int) -> None:
    if not defect:
        raise MambaADError("no mask marks a defect: pixel metrics need anomalous images with their masks")
    if not good:
        raise MambaADError("the masks mark every pixel as defect: pixel metrics need good pixels too")


def _steps(goods: list[np.ndarray], defect: np.ndarray, share: np.ndarray) -> _Steps:
    """Sort the defect pixels (d,), then count the good ones (parts of any length) above each distinct score."""
    order = np.argsort(defect)[::-1]
    defect, share = defect[order], share[order]
    first = np.flatnonzero(np.append(True, defect[1:] != defect[:-1]))
    scores = defect[first]
    above, level = np.zeros(first.size, np.int64), np.zeros(first.size, np.int64)
    for run in _sorted_runs(goods):
        above += run.size - np.searchsorted(run, scores, side="right")
        level += run.size - np.searchsorted(run, scores, side="left")
    good = sum(part.size for part in goods)
    return _Steps(np.diff(first, append=defect.size), np.add.reduceat(share, first), above, level, good)


def _sorted_runs(parts: list[np.ndarray], size: int = 2**24) -> Iterator[np.ndarray]:
    """The parts' values in sorted arrays of about `size`: counts add up over runs, so no one array holds them all."""
    n = min(len(parts), -(-sum(part.size for part in parts) // size))
    for i in range(n):
        run = np.concatenate(parts[i::n])
        run.sort()
        yield run


def _bins(scores: np.ndarray) -> np.ndarray:
    """The upper 24 bits of finite float32 scores, recoded so that their order is the scores' order."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0: equal scores, equal bins
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> 8


def _metrics(steps: _Steps) -> PixelMetrics:
    p, f = steps.defects, steps.level
    t = np.cumsum(p)
    ap = np.average(t / (t + f), weights=p)
    f1 = (2 * t / (t[-1] + t + f)).max()
    return PixelMetrics(_area(steps, p, 1.0), float(ap), float(f1), _area(steps, steps.share, FPR_LIMIT))


def _area(steps: _Steps, weights: np.ndarray, limit: float) -> float:
    """Area under the curve of weight found (s,) against false-positive rate, up to `limit`, divided by `limit`.

    The curve is a sum of ramps, one a score, from 0 at rate `above` to the score's weight at `level`, flat from there;
    so the area is the weighted mean of the areas under them. Equals the trapezoid rule over all thresholds, with the
    curve cut linearly at `limit`.
    """
    end = limit * steps.good
    width = np.maximum(end - steps.above, 0)  # from the foot of each ramp to the limit
    ramp = np.minimum(width, steps.level - steps.above)
    under = width - ramp + ramp**2 / (2 * np.maximum(steps.level - steps.above, 1))
    return float(np.average(under, weights=weights) / end)


def _bounds(steps: _Steps) -> tuple[PixelMetrics, PixelMetrics]:
    """(lowest, highest) metrics that any order of scores inside the bins could have given.

    Highest: in each bin every defect pixel above every good one, the defect pixels tied. Lowest: below every good one,
    and for AP also apart: the j-th of p then has precision (t + j)/(t + j + f), after t defect pixels and f good ones.
    Their sum is p - f·Σ 1/(t + f + j) ≥ p - f·log((t + f + p + ½)/(t + f + ½)), for 1/x is convex.
    """
    upper = _metrics(steps._replace(level=steps.above))
    lower = _metrics(steps._replace(above=steps.level))
    p, f = steps.defects, steps.level
    t = np.cumsum(p) - p
    ap = np.average(1 - f * np.log1p(p / (t + f + 0.5)) / p, weights=p)
    return lower._replace(ap=float(ap)), upper


def synthetic_images(n: int, side: int = 256, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield n smooth anomaly maps (side, side) float32 with their masks, about 3 % defect pixels.

    Three images in four hold one to three elliptic defects, of a contrast that differs from image to image.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    for i in range(n):
        mask = np.zeros((side, side), dtype=bool)
        for _ in range(rng.integers(1, 4) if i % 4 else 0):
            y, x = rng.uniform(0.2, 0.8, 2) * side
            stretch = rng.uniform(0.5, 2)
            mask |= (rows - y) ** 2 * stretch + (columns - x) ** 2 / stretch < 0.0065 * side**2
        noise = ndimage.gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 4)
        bump = ndimage.gaussian_filter(mask.astype(np.float32), 4)
        yield 0.3 + noise + np.float32(rng.uniform(0.05, 0.4)) * bump, mask


def peak_bytes() -> int:
    """The most memory that this process has had. Linux counts in KiB, macOS in bytes; Windows is asked by psutil."""
    try:
        import resource
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print time and peak memory of `pixel_metrics` on 1,725 maps of 256 × 256; making the maps is not timed."""
    images = list(synthetic_images(115))
    # 15 scales of each image: as many distinct scores as 1,725 images of their own, made in a fraction of the time
    maps = [anomaly_map * np.float32(scale) for scale in np.linspace(0.9, 1.1, 15) for anomaly_map, _ in images]
    masks = [mask.copy() for _ in range(15) for _, mask in images]
    start = time.perf_counter()
    metrics = pixel_metrics(maps, masks)
    seconds = time.perf_counter() - start
    peak = peak_bytes() / 2**30
    print(
        f"{len(maps)} maps of 256 × 256, {np.mean(masks):.1%} defect: {seconds:.1f} s, peak memory {peak:.2f} GiB "
        f"with the maps; pixel AU-ROC {metrics.auroc:.4f}, AP {metrics.ap:.4f}, F1max {metrics.f1max:.4f}, "
        f"AU-PRO {metrics.aupro:.4f}"
    )


if __name__ == "__main__":
    main()
