"""Images in, one Prediction for each out, in order. Files are decoded in worker threads while the model works.

Letters: b batch, H × W pixels of the model's input, h × w pixels of a picture.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import images, loading
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import Input, within
from mambaad_cli.inspection import heatmap
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.recognition import Recognised, signature
from mambaad_cli.inspection.regions import Region, find_regions

BATCH = 8
Image: TypeAlias = "str | Path | np.ndarray | Any"  # any: a PIL image, which need not be installed


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
    distance: float | None = None  # squared, from the mean of its class, if wanted

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
            raise MambaADError(f"{self.file.path} has no anomaly map: {self.error or 'ask predict for this one image'}")
        if self.colour_scale is None:
            raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
        return heatmap.overlay(self.picture, self.anomaly_map, self.colour_scale)


def predict(
    model: FittedModel, files: Sequence[ImageFile], options: PredictOptions | None = None
) -> Iterator[Prediction]:
    """Score files in their order. A file that cannot be read gives a Prediction with its error.

    Raises MambaADError for a class that the model does not know.
    """
    options = options or PredictOptions()
    check_class(model, options.class_name)
    size, letterbox = model.settings.size, model.settings.letterbox
    inputs = loading.read_ahead([file.path for file in files], size, letterbox, options.workers, options.maps)
    yield from _judged(model.for_inference(), zip(files, inputs, strict=True), options)


def predict_images(model: FittedModel, pictures: Sequence[Image], options: PredictOptions) -> list[Prediction]:
    """Score pictures that are in memory, or files given by their paths, in this thread."""
    check_class(model, options.class_name)
    pairs = []
    for picture in pictures:
        path = Path(picture) if isinstance(picture, str | Path) else Path()
        pairs.append((ImageFile(path, Path(path.name), ""), _input(model, picture, options.maps)))
    return list(_judged(model.for_inference(), iter(pairs), options))


def check_class(model: FittedModel, class_name: str | None) -> None:
    """Raises MambaADError for a class that the model does not know."""
    if class_name is not None and model.trained_on and class_name not in model.trained_on:
        raise MambaADError(f"the model knows no class {class_name!r}: choose {', '.join(model.trained_on)}")


def _input(model: FittedModel, picture: Image, keep: bool) -> Input | ImageError:
    """A picture, or the file of one, as the model's input."""
    try:
        pixels = images.read(Path(picture)) if isinstance(picture, str | Path) else images.as_rgb(picture)
    except ImageError as error:
        return error
    return loading.prepared(pixels, model.settings.size, model.settings.letterbox, keep)


def _judged(
    model: FittedModel, pairs: Iterator[tuple[ImageFile, Input | ImageError]], options: PredictOptions
) -> Iterator[Prediction]:
    """One Prediction per image, a batch at a time."""
    for group in _grouped(pairs, options.batch):
        told = [options.class_name or class_of(file, model) for file, _ in group]
        readable = [i for i, (_, one) in enumerate(group) if isinstance(one, Input)]
        inputs = [one for _, one in group if isinstance(one, Input)]
        looks = iter(_looked_at(model, inputs, [told[i] for i in readable], options.distances))
        for (file, one), name in zip(group, told, strict=True):
            if isinstance(one, ImageError):
                yield Prediction(file, name, None, None, "error", one.reason)
            else:
                yield _prediction(model, file, one, next(looks), options)


def _grouped(
    pairs: Iterator[tuple[ImageFile, Input | ImageError]], batch: int
) -> Iterator[list[tuple[ImageFile, Input | ImageError]]]:
    """Batches of the images, smaller ones where the pictures that they keep are large."""
    group, kept = [], 0
    for file, one in pairs:
        group.append((file, one))
        kept += one.picture.nbytes if isinstance(one, Input) and one.picture is not None else 0
        if len(group) == batch or kept > loading.BYTES_AHEAD // 2:
            yield group
            group, kept = [], 0
    if group:
        yield group


class _Look(NamedTuple):
    """What the model finds in one image."""

    anomaly_map: Tensor  # (H, W), without the padding of a letterboxed image
    class_name: str  # given, or recognised
    recognised: Recognised | None  # if the class was not given
    distance: float | None


@torch.inference_mode()
def _looked_at(model: FittedModel, inputs: Sequence[Input], told: Sequence[str], distances: bool) -> list[_Look]:
    if not inputs:
        return []
    stacked = torch.stack([one.pixels for one in inputs]).to(model.device)
    features = model.features(stacked)
    looks: list[Recognised | None] = [None] * len(inputs)
    if model.recogniser is not None and not all(told):
        looks[:] = model.recognised(features)
    classes = [name or (look.name if look else "") for name, look in zip(told, looks, strict=True)]
    far: list[float | None] = [None] * len(inputs)
    if model.recogniser is not None and distances:
        known = model.recogniser.distances(signature(features).cpu())
        names = model.recogniser.names
        far[:] = [
            float(row[names.index(name)]) if name in names else None for row, name in zip(known, classes, strict=True)
        ]
    maps = model.maps_of(features, (stacked.shape[2], stacked.shape[3]), classes).float().cpu()
    return [
        _Look(within(anomaly_map, one.box), name, None if own else look, distance)
        for one, anomaly_map, name, own, look, distance in zip(inputs, maps, classes, told, looks, far, strict=True)
    ]


def _prediction(model: FittedModel, file: ImageFile, one: Input, look: _Look, options: PredictOptions) -> Prediction:
    """The verdict on an image that was read."""
    score, recognised = float(look.anomaly_map.max()), look.recognised
    if not math.isfinite(score):  # NaN exceeds no threshold, but the image must not count as good
        return Prediction(file, look.class_name, None, None, "error", "the model gives no finite score: fit it anew")
    certainty = recognised.certainty if recognised else None
    if recognised is not None and not recognised.known:
        found = Prediction(file, "", score, None, "unknown", "", certainty=certainty)
    else:
        name = look.class_name
        threshold, review = model.threshold(name), options.review
        verdict = verdict_of(score, threshold, None if review is None else model.threshold(name, review))
        found = Prediction(file, name, score, threshold, verdict, "", p_value=model.p_value(name, score))
        found = found._replace(certainty=certainty, cold=model.cold(name), distance=look.distance)
    if options.maps:
        found = found._replace(anomaly_map=look.anomaly_map.numpy(), picture=one.picture)
    if options.min_area is not None and found.threshold is not None:
        regions = find_regions(look.anomaly_map.numpy(), found.threshold, one.shape, options.min_area)
        found = found._replace(regions=regions)
    return found


def verdict_of(score: float, threshold: float | None, review: float | None = None) -> str:
    """Anomalous above the threshold; else review, for a person to look at, above the review threshold if there is one.

    >>> verdict_of(4.0, 3.0, 2.0), verdict_of(2.5, 3.0, 2.0), verdict_of(2.5, 3.0), verdict_of(9.0, None)
    ('anomalous', 'review', 'good', 'uncalibrated')
    """
    if threshold is None:
        return "uncalibrated"
    if exceeds(score, threshold):
        return "anomalous"
    return "review" if review is not None and exceeds(score, review) else "good"


def class_of(file: ImageFile, model: FittedModel) -> str:
    """The product of a file: that of a parent folder named like a known product, or the only product there is."""
    known = list(model.trained_on)
    if len(known) == 1:
        return known[0]
    if not file.path.name:  # a picture without a file
        return ""
    return next((part for part in reversed(file.path.absolute().parts[:-1]) if part in known), "")
