"""The gate: an exported file must score as the model that it was made from, or it is not written.

Differences are relative to the image's score or its threshold, whichever is larger in size, because scores may lie
around zero. The tolerance holds for each score, and for the mean over each map. A single value of a map may differ by
LOCAL times as much: where two patches of the memory are equally near, the last digit decides which of them counts, and
the model's own map would differ as much on another processor.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import roi
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input, blank_outside, placed
from mambaad_cli.inspection.exported_model import ExportedModel
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import Given, Prediction, PredictOptions, judged, predict
from mambaad_cli.training.examples import box_of, pixels_of

TOLERANCE = 1e-3
LOCAL = 30
ON_THE_THRESHOLD = 1e-5  # relative; so near, the last of six digits decides, and a verdict that differs means nothing


@dataclass
class Agreement:
    """How a model and its exported file agree. Differences are relative, of the image where they are largest."""

    images: int = 0
    score: float = 0.0
    map: float = 0.0  # the mean over its values
    map_value: float = 0.0  # a single value
    verdicts: int = 0  # images whose verdicts differ
    on_threshold: int = 0  # other images whose verdicts differ, with scores that equal the threshold but for rounding
    products: int = 0  # images that are recognised as another product

    def add(self, one: Prediction, other: Prediction) -> None:
        """Compare what the model and the file say of an image; images that cannot be read do not count."""
        if one.score is None and one.anomaly_map is None and other.anomaly_map is None:
            return
        self.images += 1
        if one.score is None or other.score is None or one.anomaly_map is None or other.anomaly_map is None:
            self.score = self.map = self.map_value = math.inf
            self.verdicts += 1
            return
        scale = max(abs(one.score), abs(one.threshold or 0.0), 1e-12)
        self.score = max(self.score, abs(one.score - other.score) / scale)
        away = np.abs(one.anomaly_map - other.anomaly_map)
        self.map = max(self.map, float(away.mean()) / scale)
        self.map_value = max(self.map_value, float(away.max()) / scale)
        self.products += one.class_name != other.class_name
        if one.verdict != other.verdict:
            near = one.threshold is not None and abs(one.score - one.threshold) <= ON_THE_THRESHOLD * scale
            self.on_threshold += near
            self.verdicts += not near

    def within(self, tolerance: float) -> bool:
        return max(self.score, self.map_needs) <= tolerance and not self.verdicts and not self.products

    @property
    def map_needs(self) -> float:
        """The tolerance that accepts the maps."""
        return max(self.map, self.map_value / LOCAL)

    @property
    def line(self) -> str:
        """
        >>> Agreement(44, 2.13e-6, 3e-6, 4e-4).line.split(";")
        ['on 44 images scores differ by at most 2.1e-06, maps by 3.0e-06, single values by 4.0e-04 (relative)', \
' no verdict differs']
        """
        said = f"on {self.images} images scores differ by at most {self.score:.1e}, maps by {self.map:.1e}"
        said += f", single values by {self.map_value:.1e} (relative)"
        said += f"; {self.verdicts or 'no'} verdict{'s differ' if self.verdicts > 1 else ' differs'}"
        if self.on_threshold:
            said += f" but for {self.on_threshold} where the score equals the threshold"
        return f"{said}, {self.products} are taken for another product" if self.products else said

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(model: FittedModel, exported: ExportedModel, files: Sequence[ImageFile]) -> Agreement:
    """Both on the examples that the model keeps of the file's products, and on image files.

    Raises MambaADError where there is neither, or no file can be read.
    """
    several = len(exported.products) > 1
    own = [one for one in model.examples if one.class_name in exported.products]
    told = ["" if several else one.class_name for one in own]  # so that recognition is compared as well
    options = PredictOptions(None if several else exported.products[0] or None, maps=True)
    found = Agreement()

    def examples() -> Iterator[Given]:
        for one, name in zip(own, told, strict=True):
            size = exported.settings.size
            pixels = pixels_of(one, size)
            region = model.rois.get(one.class_name)
            if model.own_masks and one.inside is not None:
                region = roi.decoded(one.inside.numpy())
            inside = None if region is None else placed(region, size, None)
            if inside is not None:  # which may be another than that of fit
                pixels = blank_outside(pixels, inside)
            pixels = (pixels * 255).round().clamp(0, 255)
            picture = pixels.byte().permute(1, 2, 0).contiguous().numpy()  # where there are tiles, they are cut from it
            one_input = Input(pixels / 255, box_of(one, size), picture, size, picture, inside, region)
            yield ImageFile(Path(), Path(), ""), name, one_input

    pairs: list[tuple[Iterable[Prediction], Iterable[Prediction]]] = [
        (judged(model.for_inference(), examples(), options), judged(exported, examples(), options)),
        (predict(model, files, options), predict(exported, files, options)),
    ]
    for ours, theirs in pairs:
        for one, other in zip(ours, theirs, strict=True):
            found.add(one, other)
    if not found.images:
        what = "no image in --check can be read" if files else "the model keeps no examples"
        raise MambaADError(f"{what}, so nothing can be compared: give a folder of photos with --check, or --no-check")
    return found
