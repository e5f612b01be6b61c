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
from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics
from mambaad_cli.data.roi import scaled
from mambaad_cli.inspection import heatmap
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.exported_model import ExportedModel, Judged
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.inspection.regions import Region, find_regions
from mambaad_cli.inspection.tiles import photo_map

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
    inside: np.ndarray | None = None  # (H, W) bool, with the map: the region of interest; None: all of it counts
    distance: float | None = None  # squared, from the mean of its class, if wanted
    photo: PhotoStatistics | None = None  # how it was taken; None where there is an error

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
        if self.verdict == "unknown":
            raise MambaADError(f"{self.file.path} looks like no product of the model: it has no threshold")
        if self.colour_scale is None:
            raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
        return heatmap.overlay(self.picture, self.anomaly_map, self.colour_scale, self.inside)


def predict(
    model: FittedModel, files: Sequence[ImageFile], options: PredictOptions | None = None, endless: bool = False
) -> Iterator[Prediction]:
    """Score files in their order. A file that cannot be read gives a Prediction with its error.

    endless: whether more files follow in later calls, so that what is slow to start and then fast is worth it.

    Raises MambaADError for a class that the model does not know.
    """
    options = options or PredictOptions()
    check_class(model, options.class_name)
    told = [options.class_name or class_of(file, model) for file in files]

    def size(place: int, shape: tuple[int, int]) -> tuple[int, int]:
        return size_for(model, told[place], shape)

    sources = bool(model.tiles) or ((_several_sizes(model) or model.has_regions) and not all(told))
    wanted = model.wanted(size, told, options.maps, sources)
    inputs = loading.read_ahead([file.path for file in files], wanted, options.workers)
    yield from judged(
        model.for_inference(None if endless else len(files)), zip(files, told, inputs, strict=True), options
    )


def predict_images(model: FittedModel, pictures: Sequence[Image], options: PredictOptions) -> list[Prediction]:
    """Score pictures that are in memory already, and files by their paths, in this thread."""
    check_class(model, options.class_name)
    given = []
    for picture in pictures:
        path = Path(picture) if isinstance(picture, str | Path) else Path()
        file = ImageFile(path, Path(path.name), "")
        told = options.class_name or class_of(file, model)
        given.append((file, told, _input(model, picture, told)))
    return list(judged(model.for_inference(), iter(given), options))


def size_for(model: FittedModel, class_name: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image (h, w) of this class is scaled to.

    Of an unknown class: the size whose aspect is nearest to the image's.
    """
    if class_name or not _several_sizes(model):
        return model.size_of(class_name or next(iter(model.sizes), ""))
    aspect = math.log(shape[1] / shape[0])
    return min(model.sizes.values(), key=lambda size: abs(math.log(size[1] / size[0]) - aspect))


def _several_sizes(model: FittedModel) -> bool:
    return len(set(model.sizes.values())) > 1


def check_class(model: FittedModel, class_name: str | None) -> None:
    """Raises MambaADError for a class that the model does not know."""
    if class_name is not None and model.trained_on and class_name not in model.trained_on:
        raise MambaADError(f"the model knows no class {class_name!r}: choose {', '.join(model.trained_on)}")


def _input(model: FittedModel, picture: Image, told: str) -> Input | ImageError:
    """A picture, or the file of one, as the model takes it."""
    if isinstance(picture, str | Path):
        wanted = model.wanted(lambda _, shape: size_for(model, told, shape), told, pictures=True, sources=True)
        try:
            return wanted.of_file(0, Path(picture))[0]
        except ImageError as error:
            return error
    pixels = images.as_rgb(picture)
    shape = (pixels.shape[0], pixels.shape[1])
    region = model.region(told, Path(), shape) if model.has_regions else None
    return loading.prepared(pixels, size_for(model, told, shape), model.settings.letterbox, keep=True, region=region)


Given: TypeAlias = "tuple[ImageFile, str, Input | ImageError]"  # a file, its class if that is told, what was read


def judged(model: FittedModel, given: Iterator[Given], options: PredictOptions) -> Iterator[Prediction]:
    """One Prediction an image that was read, a batch at a time."""
    for group in _grouped(given, options.batch):
        inputs = [one for _, _, one in group if isinstance(one, Input)]
        told = [name for _, name, one in group if isinstance(one, Input)]
        looks = iter(_looks(model, inputs, told, options.distances))
        for file, name, one in group:
            if isinstance(one, ImageError):
                yield Prediction(file, name, None, None, "error", one.reason)
            else:
                yield _prediction(model, file, one, next(looks), options)


def _grouped(given: Iterator[Given], batch: int) -> Iterator[list[Given]]:
    """Batches of the images, smaller ones where the pictures that they keep are large."""
    group: list[Given] = []
    kept = 0
    for file, name, one in given:
        group.append((file, name, one))
        kept += loading.bytes_kept(one)
        if len(group) == batch or kept > loading.BYTES_AHEAD // 2:
            yield group
            group, kept = [], 0
    if group:
        yield group


class _Look(NamedTuple):
    """What the model finds in one image."""

    anomaly_map: Tensor  # (H, W), without the padding of a letterboxed image
    inside: Tensor | None  # (H, W) bool, the region of interest in it
    class_name: str  # given, or recognised
    recognised: Recognised | None  # if the class was not given
    distance: float | None
    judged: Judged | None = None  # by an exported model, which has its thresholds inside


@torch.inference_mode()
def _looks(model: FittedModel, inputs: Sequence[Input], told: Sequence[str], distances: bool) -> list[_Look]:
    """What the model makes of a batch; images of the same size go through it together."""
    if isinstance(model, ExportedModel):
        found = model.judged(inputs, told) if inputs else []
        return [_look_of_exported(model, given, one) for given, one in zip(inputs, found, strict=True)]
    looks: dict[int, _Look] = {}
    waiting = list(enumerate(zip(inputs, told, strict=True)))
    if model.rois and model.recogniser is not None:
        for i, (one, name) in enumerate(zip(inputs, told, strict=True)):
            if not name:
                looks[i] = _look_of_untold(model, one, distances)
        waiting = [pair for pair in waiting if pair[0] not in looks]
    while waiting:
        size = waiting[0][1][0].pixels.shape
        together = [(i, one, name) for i, (one, name) in waiting if one.pixels.shape == size]
        waiting = [pair for pair in waiting if pair[1][0].pixels.shape != size]
        features = model.features(torch.stack([one.pixels for _, one, _ in together]).to(model.device))
        recognised = _recognised(model, features, [name for _, _, name in together])
        names = [name or (look.name if look else "") for (_, _, name), look in zip(together, recognised, strict=True)]
        maps = model.maps_of(features, model.map_size((size[1], size[2])), names).float().cpu()
        far = _distances(model, features, names) if distances else [None] * len(names)
        for (i, one, _), name, look, distance, anomaly_map in zip(together, names, recognised, far, maps, strict=True):
            wanted = model.size_of(name)
            if look is not None and look.known and one.source is not None and tuple(size[1:]) != wanted:
                looks[i] = _looks(model, [seen_as(model, one, name)], [name], distances)[0]._replace(recognised=look)
            else:
                looks[i] = _Look(*_visible(model, anomaly_map, one, name), name, look, distance)
    return [looks[i] for i in range(len(inputs))]


def _look_of_exported(model: ExportedModel, given: Input, found: Judged) -> _Look:
    """What an exported model makes of an image. Its graph judges whole photos, not those with tiles."""
    seen = _visible(model, found.anomaly_map, given, found.class_name)
    return _Look(*seen, found.class_name, found.recognised, None, None if model.tiles else found)


def _visible(model: FittedModel, anomaly_map: Tensor, one: Input, name: str) -> tuple[Tensor, Tensor | None]:
    """The part of a map that lies on the image, with its tiles' where there are some, and the region of interest."""
    padded = None if isinstance(model, ExportedModel) else one.box  # its maps come without padding
    found = within(anomaly_map, padded, one.inside)
    if name in model.tiles and one.source is not None:
        found = photo_map(model, found, name, one.source, one.region)
    if one.region is None:
        return found, None
    return found, loading.at_size(torch.from_numpy(one.region), (found.shape[0], found.shape[1]))


def _look_of_untold(model: FittedModel, one: Input, distances: bool) -> _Look:
    """What the model makes of an image whose product is to be recognised, where products have regions of interest.

    Each product's signature is of its own region alone, so the image is looked at through the region of each.
    """
    assert model.recogniser is not None
    far = {}
    for place, name in enumerate(model.recogniser.names):
        seen = seen_as(model, one, name)
        own = model.recogniser.distances(model.signature(model.features(seen.pixels[None].to(model.device))).cpu())
        far[name] = float(own[0, place])
    nearest, second = sorted(far, key=lambda name: far[name])[:2]
    certainty = 1 - far[nearest] / max(far[second], 1e-12)
    look = Recognised(nearest, certainty, far[nearest] <= model.recogniser.limit)
    return _looks(model, [seen_as(model, one, nearest)], [nearest], distances)[0]._replace(recognised=look)


def seen_as(model: FittedModel, one: Input, name: str) -> Input:
    """An image, read without knowing its product, as the model sees it if it shows a certain one.

    Its region of interest is that of the product, as far as it lies in the image's own mask, if there is one.
    """
    assert one.source is not None
    region, own = model.rois.get(name), one.region
    if region is None or own is None:
        region = own if region is None else region
    else:
        region = own & scaled(region, (own.shape[0], own.shape[1]))
    return loading.prepared(one.source, model.size_of(name), model.settings.letterbox, keep=True, region=region)


def _recognised(model: FittedModel, features: list[Tensor], told: Sequence[str]) -> list[Recognised | None]:
    """The product of each image whose class is not told, where the model tells several apart."""
    if model.recogniser is None or all(told):
        return [None] * len(told)
    return [None if name else look for name, look in zip(told, model.recognised(features), strict=True)]


def _distances(model: FittedModel, features: list[Tensor], names: Sequence[str]) -> list[float | None]:
    """Squared distance of each image from what its product looks like."""
    if model.recogniser is None:
        return [None] * len(names)
    known = model.recogniser.names
    rows = model.recogniser.distances(model.signature(features).cpu())
    return [float(row[known.index(name)]) if name in known else None for row, name in zip(rows, names, strict=True)]


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
        if look.judged is not None:
            stated = "review" if (look.judged.verdict, verdict) == ("good", "review") else look.judged.verdict
            found = found._replace(threshold=look.judged.threshold, verdict=stated, p_value=look.judged.p_value)
    found = found._replace(photo=photo_statistics(within(one.pixels, one.box)))
    if options.maps:
        inside = None if look.inside is None else look.inside.numpy()
        found = found._replace(anomaly_map=look.anomaly_map.numpy(), picture=one.picture, inside=inside)
    if options.min_area is not None and found.threshold is not None:
        inside = None if look.inside is None else look.inside.numpy()
        regions = find_regions(look.anomaly_map.numpy(), found.threshold, one.shape, options.min_area, inside)
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
