"""What is known of one image once it is scored, and what may be wanted of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import loading
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection import heatmap
from mambaad_cli.inspection.explanation import Explanation
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.strips import strip

BATCH = 8


@dataclass(frozen=True)
class PredictOptions:
    """What is wanted besides score and verdict."""

    class_name: str | None = None  # of all images; None: named by a parent folder, else recognised
    batch: int = BATCH  # images that go through the model together
    workers: int = loading.WORKERS  # threads that read files
    maps: bool = False  # a Prediction carries its anomaly map and its picture
    review: float | None = None  # share of good images that may get the verdict review or anomalous
    min_area: float | None = None  # a Prediction carries its regions of at least this many pixels
    distances: bool = False  # a Prediction carries its distance from the mean of its product
    endless: bool = False  # more files will follow: the runtime that is worth its start is taken
    explain: bool = False  # a Prediction with regions carries their explanations
    explainable: bool = False  # or can be asked for them later; until then it keeps its image


class Prediction(NamedTuple):
    """What is known of one image. `score` is None exactly where there is an error."""

    file: ImageFile
    class_name: str
    score: float | None
    threshold: float | None
    verdict: str  # good, review, anomalous, unknown (unlike all products), uncalibrated or error
    error: str
    anomaly_map: np.ndarray | None = None  # (H, W) float32, without padding, if wanted
    picture: np.ndarray | None = None  # (h, w, 3) RGB, if the map is wanted
    p_value: float | None = None  # how often a good image scores this high, as far as the calibration can tell
    certainty: float | None = None  # 0 … 1 that it is this class, if the class was recognised
    regions: tuple[Region, ...] | None = None  # where the map exceeds the threshold, if wanted
    cold: float | None = None  # the median score of good images of its class
    inside: np.ndarray | None = None  # (H, W) bool, with the map: the region of interest; None: all of it counts
    distance: float | None = None  # squared, from the mean of its class, if wanted
    photo: PhotoStatistics | None = None  # how it was taken; None where there is an error
    warning: str = ""  # what about it no good photo shows, such as too little light: then it is never called good
    explanations: tuple[Explanation, ...] | None = None  # of its regions, if wanted
    explainer: Callable[[], tuple[Explanation, ...]] | None = None  # gives these later, if that is wanted

    @property
    def urgency(self) -> float:
        """How far the score lies above the threshold, in units that the images of all classes share.

        Without a threshold it is the score itself. Without a score it is infinite, so that such images come first.
        """
        if self.score is None:
            return math.inf
        scale = self.colour_scale
        return self.score if scale is None else scale.margin(self.score)

    @property
    def colour_scale(self) -> heatmap.ColourScale | None:
        """The colour scale that all images of its class share; None without a threshold."""
        if self.threshold is None:
            return None
        return heatmap.ColourScale(self.threshold if self.cold is None else self.cold, self.threshold)

    def overlay(self) -> np.ndarray:
        """The picture with its anomaly map glowing over it and the threshold as a line: (h, w, 3) uint8 RGB.

        Raises MambaADError where there is no map, or no threshold, which the colours need.
        """
        if self.anomaly_map is None or self.picture is None:
            raise MambaADError(f"{self.file.name} has no anomaly map: {self.error or 'ask predict for this one image'}")
        if self.verdict == "unknown":
            raise MambaADError(f"{self.file.name} looks like no product of the model: it has no threshold")
        if self.colour_scale is None:
            raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
        return heatmap.overlay(self.picture, self.anomaly_map, self.colour_scale, self.inside)

    def explain(self) -> tuple[Explanation, ...]:
        """Why each of its regions is anomalous, the highest peak first.

        Raises MambaADError for a prediction that carries no regions, and for an exported model.
        """
        if self.explanations is not None:
            return self.explanations
        if self.explainer is None:
            raise MambaADError(
                f"{self.file.path} cannot be explained: {self.error or 'ask predict for this one image'}"
            )
        return self.explainer()

    def explain_strip(self) -> np.ndarray:
        """The explanations as a picture (h, w, 3) uint8 RGB, with a row for each region.

        Raises MambaADError as `explain` does.
        """
        explanations = self.explain()
        if self.picture is None:
            raise MambaADError(f"{self.file.path} has no picture: ask predict for this one image")
        return strip(self.picture, explanations, str(self.file.relative))
