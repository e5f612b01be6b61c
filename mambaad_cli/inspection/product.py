"""What is true of one product, what was learnt of it, and what was measured of it: frozen records, one a product.

Whatever was measured lies in a `Calibration` together with the conditions that it was measured under. Another size or
another region of interest is another condition: then the product has no calibration, and nothing stale can be used.

Letters: h × w positions of a stage, H × W pixels of the model's input.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection import calibration
from mambaad_cli.inspection.lessons import Hardest, Taught
from mambaad_cli.inspection.sources import Sources
from mambaad_cli.inspection.tiles import Tiles
from mambaad_cli.model.anomaly_map import ResidualStatistics
from mambaad_cli.model.fusion import Fusion
from mambaad_cli.model.known_defects import KnownDefects
from mambaad_cli.model.memory import Memory

Size = tuple[int, int]  # height, width


class ScoredDefect(NamedTuple):
    """A defect that was simulated in a good image, and its image score."""

    kind: str
    length: float  # pixels of the photo
    score: float


@dataclass(frozen=True)
class Conditions:
    """What scores were measured under."""

    size: Size  # of what the decoder sees
    region: str = ""  # digest of the region of interest; "": all of every photo counts
    precision: str = "fp32"  # of matrix products

    def allow(self, other: "Conditions") -> bool:
        """Whether scores measured under the other conditions hold under these.

        The precision moves scores by about 2 %, which is said where it happens, and does not change what is compared.
        """
        return (self.size, self.region) == (other.size, other.region)


@dataclass(frozen=True)
class Calibration:
    """Scores of good images, and what else was measured of photos under the same conditions."""

    conditions: Conditions
    scores: tuple[float, ...]  # of good images
    promising: bool = True  # the images were not trained on, so that the threshold promises something for new ones
    max_false_reject: float | None = None  # share that the threshold may reject; None: see calibration.usual_share
    simulated: tuple[ScoredDefect, ...] = ()
    photos: tuple[PhotoStatistics, ...] = ()  # of good images
    farthest: float | None = None  # largest squared distance of a good image from what the product looks like
    new_photos: bool = False  # the scores are of photos that fit has not seen at all: those of `calibrate`

    @property
    def share(self) -> float:
        """The share of good images that the threshold may reject."""
        return self.max_false_reject or calibration.usual_share(self.scores)

    @property
    def promised(self) -> float:
        """The share of new good images that the threshold rejects at most, in the mean over many calibrations."""
        count = len(self.scores)
        if self.max_false_reject is None:
            return calibration.usual_promise(count)
        return calibration.promise(count, self.max_false_reject)

    @property
    def ceiling(self) -> float:
        """The share that it hardly ever exceeds: with 95 % confidence."""
        return calibration.ceiling(len(self.scores), self.promised)

    @property
    def threshold(self) -> float:
        """An image of this product is anomalous above it."""
        return self.threshold_for(self.share)

    def threshold_for(self, share: float) -> float:
        """The threshold that may reject another share of good images."""
        return calibration.threshold(self.scores, share)

    @property
    def cold(self) -> float:
        """The median score of good images, where the colours of a heatmap begin."""
        return self.threshold_for(0.5)

    def p_value(self, score: float) -> float | None:
        """How often a good image scores this high; None where the scores promise nothing."""
        return calibration.p_value(self.scores, score) if self.promising else None


@dataclass(frozen=True, eq=False)
class Learnt:
    """What good images of one product are like."""

    statistics: tuple[ResidualStatistics, ...] = ()  # of the decoder's residuals, one a scale; empty: the plain map
    memories: tuple[Memory, ...] = ()  # of good patches, one a view: the coarse one, then the close one
    fusion: Fusion | None = None  # of the decoder's map and the memory's
    tiles: Tiles | None = None
    hardest: Hardest | None = None  # good patches that known defects are told from
    known: KnownDefects | None = None
    taught: Taught | None = None
    region: np.ndarray | None = None  # of interest, where patches were remembered; None: everywhere
    sources: Sources | None = None  # where the patches of the memories come from, for explanations


@dataclass(frozen=True, eq=False)
class Product:
    """One product of a model."""

    name: str
    size: Size  # of what the decoder sees of its photos
    images: int = 0  # learnt from
    photo_shape: Size | None = None  # median height and width of its files
    turned: bool = False  # it lies any way round in its photos
    region: np.ndarray | None = None  # of interest: a mask of bool, see data.roi; None: all of the photo
    own_masks: bool = False  # each photo comes with a mask of its own
    learnt: Learnt = field(default_factory=Learnt)
    calibration: Calibration | None = None
    untaught: Calibration | None = None  # before anything was taught

    def conditions(self, precision: str = "fp32") -> Conditions:
        """What its images are scored under now."""
        return Conditions(self.size, region_digest(self.region, self.own_masks), precision)

    def under(self, size: Size | None = None, region: np.ndarray | None = None, own_masks: bool = False) -> "Product":
        """The same product seen at another size or through another region.

        Where they differ its calibration goes, and the scores of the good images that verdicts are held against.
        """
        changed = replace(
            self,
            size=size or self.size,
            region=self.region if region is None else region,
            own_masks=self.own_masks or own_masks,
        )
        earlier = self.conditions() if self.calibration is None else self.calibration.conditions
        if changed.conditions().allow(earlier):
            return changed
        return replace(changed, learnt=replace(self.learnt, hardest=None), calibration=None, untaught=None)

    @property
    def threshold(self) -> float | None:
        """An image of this product is anomalous above it; None while it is not calibrated."""
        return None if self.calibration is None else self.calibration.threshold

    @property
    def scores(self) -> tuple[float, ...]:
        """Of good images; none while it is not calibrated."""
        return () if self.calibration is None else self.calibration.scores

    @property
    def promising(self) -> bool:
        """Whether its threshold promises something for new images."""
        return self.calibration is not None and self.calibration.promising

    def photo_scale(self, input_size: Size) -> float:
        """Pixels of a photo on a pixel of the model's input, along a side."""
        height, width = self.photo_shape or input_size
        return math.sqrt(height * width / (input_size[0] * input_size[1]))


Products = Mapping[str, Product]  # by name


def region_digest(region: np.ndarray | None, own_masks: bool = False) -> str:
    """What tells one region of interest from another.

    >>> region_digest(None), region_digest(None, own_masks=True)
    ('', 'masks')
    """
    digest = "" if region is None else hashlib.sha256(repr(region.shape).encode() + region.tobytes()).hexdigest()[:16]
    return " ".join(part for part in (digest, "masks" if own_masks else "") if part)


# ---- verdicts: of a product that is not known, the strictest answer that holds for all ----


def threshold_of(products: Products, name: str, share: float | None = None) -> float | None:
    """An image of this product is anomalous above it; None where no scores of good images are known.

    A product that is not known gets the highest of the thresholds of those that are. share: another share of good
    images that may be rejected than the product's own gives another threshold from the same scores.
    """
    thresholds = [measured.threshold_for(share or measured.share) for measured in calibrations_of(products, name)]
    return max(thresholds, default=None)


def cold_of(products: Products, name: str) -> float | None:
    """The score at which the colours of a heatmap begin."""
    return threshold_of(products, name, 0.5)


def p_value_of(products: Products, name: str, score: float) -> float | None:
    """How often a good image of this product scores this high; None without scores that promise something.

    For a product that is not known, it is the highest p-value over those that are.
    """
    values = [measured.p_value(score) for measured in calibrations_of(products, name)]
    return max((value for value in values if value is not None), default=None)


def calibrations_of(products: Products, name: str) -> list[Calibration]:
    """What verdicts on a product rest on: its own calibration, or those of all products where it has none."""
    chosen = [products[name]] if name in products and products[name].calibration else products.values()
    return [product.calibration for product in chosen if product.calibration is not None]


def verdict_of(score: float, threshold: float | None, review: float | None = None) -> str:
    """Anomalous above the threshold; else review, for a person to look at, above the review threshold if there is one.

    >>> verdict_of(4.0, 3.0, 2.0), verdict_of(2.5, 3.0, 2.0), verdict_of(2.5, 3.0), verdict_of(9.0, None)
    ('anomalous', 'review', 'good', 'uncalibrated')
    """
    if threshold is None:
        return "uncalibrated"
    if calibration.exceeds(score, threshold):
        return "anomalous"
    return "review" if review is not None and calibration.exceeds(score, review) else "good"
