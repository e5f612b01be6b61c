"""Images in, one Prediction for each out, in order. Files are decoded in worker threads while the model works."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images, loading
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import Input, within
from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics, unlike
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Products, cold_of, p_value_of, threshold_of, verdict_of
from mambaad_cli.inspection.regions import find_regions
from mambaad_cli.inspection.scorer import Judgement, Scorer
from mambaad_cli.side_by_side import in_order

Image: TypeAlias = "str | Path | np.ndarray | Any"  # any: a PIL image, which need not be installed
Reading: TypeAlias = "tuple[ImageFile, str, Input | ImageError]"  # a file, its product if that is told, what was read


def predict(scorer: Scorer, files: Sequence[ImageFile], options: PredictOptions | None = None) -> Iterator[Prediction]:
    """Score files in their order. A file that cannot be read gives a Prediction with its error.

    Raises MambaADError for a product that the model does not know.
    """
    options = options or PredictOptions()
    check_class(scorer.products, options.class_name)
    told = [options.class_name or product_of(file, scorer.products) for file in files]
    wanted = scorer.preparation.wanted(told, options.maps)
    prepared = loading.read_ahead([file.path for file in files], wanted, options.workers)
    ready = scorer.expecting(None if options.endless else len(files))
    yield from predictions(ready, zip(files, told, prepared, strict=True), options)


def predict_images(scorer: Scorer, pictures: Sequence[Image], options: PredictOptions) -> list[Prediction]:
    """Score pictures that are in memory already, and files by their paths, in this thread."""
    check_class(scorer.products, options.class_name)
    readings: list[Reading] = []
    for picture in pictures:
        path = Path(picture) if isinstance(picture, str | Path) else Path()
        file = ImageFile(path, Path(path.name), "")
        told = options.class_name or product_of(file, scorer.products)
        readings.append((file, told, _read(scorer, picture, told)))
    return list(predictions(scorer.expecting(None), iter(readings), options))


def _read(scorer: Scorer, picture: Image, told: str) -> Input | ImageError:
    """A picture, or the file of one, as the scorer takes it."""
    preparation = scorer.preparation
    if not isinstance(picture, str | Path):
        return preparation.of_picture(images.as_rgb(picture), told)
    try:
        return preparation.wanted(told, pictures=True).of_file(0, Path(picture))[0]
    except ImageError as error:
        return error


def predictions(scorer: Scorer, readings: Iterator[Reading], options: PredictOptions) -> Iterator[Prediction]:
    """One Prediction for each image that was read.

    Where there are several images, a CPU judges as many batches side by side as it has threads, each by one thread: no
    thread then waits for others. All together hold no more than a batch.
    """
    side_by_side = min(scorer.side_by_side, options.batch)
    groups = _batches(readings, options.batch // side_by_side)
    first = list(itertools.islice(groups, 2 if side_by_side > 1 else 0))
    groups, work = itertools.chain(first, groups), functools.partial(_judged, scorer, options)
    several = len(first) > 1
    threads = scorer.side_by_side // side_by_side
    for group in in_order(work, groups, side_by_side, threads) if several else map(work, groups):
        yield from group


def _judged(scorer: Scorer, options: PredictOptions, group: Sequence[Reading]) -> list[Prediction]:
    readable = [(image, told) for _, told, image in group if isinstance(image, Input)]
    judged = scorer.judge([image for image, _ in readable], [told for _, told in readable], options.distances)
    judgements = iter(judged)
    predictions = []
    for file, told, image in group:
        if isinstance(image, ImageError):
            predictions.append(Prediction(file, told, None, None, "error", image.reason))
            continue
        judgement = next(judgements)
        prediction = _prediction(scorer.products, file, judgement, options)
        predictions.append(_explained(scorer, prediction, judgement, options))
    return predictions


def _batches(readings: Iterator[Reading], batch: int) -> Iterator[list[Reading]]:
    """Batches of the images, smaller ones where the pictures that they keep are large."""
    group: list[Reading] = []
    kept = 0
    for reading in readings:
        group.append(reading)
        kept += loading.bytes_kept(reading[2])
        if len(group) == batch or kept > loading.BYTES_AHEAD // 2:
            yield group
            group, kept = [], 0
    if group:
        yield group


def _prediction(products: Products, file: ImageFile, judgement: Judgement, options: PredictOptions) -> Prediction:
    """The verdict on an image, and what else is wanted of it."""
    score = float(judgement.anomaly_map.max())
    if not math.isfinite(score):  # NaN exceeds no threshold, but the image must not count as good
        return Prediction(file, judgement.product, None, None, "error", "the model gives no finite score: fit it again")
    prediction = _with_verdict(products, Prediction(file, "", score, None, "unknown", ""), judgement, options.review)
    image = judgement.image
    photo = photo_statistics(within(image.pixels, image.box))
    prediction = prediction._replace(
        certainty=judgement.recognised and judgement.recognised.certainty,
        photo=photo,
        warning=_warning(products, prediction.class_name, photo),
    )
    if prediction.warning and prediction.verdict == "good":  # what the camera did not show nobody has seen
        prediction = prediction._replace(verdict="review")
    anomaly_map = judgement.anomaly_map.numpy()
    inside = None if judgement.inside is None else judgement.inside.numpy()
    if options.maps:
        prediction = prediction._replace(anomaly_map=anomaly_map, picture=image.picture, inside=inside)
    if options.min_area is not None and prediction.threshold is not None:
        regions = find_regions(anomaly_map, prediction.threshold, image.shape, options.min_area, inside)
        prediction = prediction._replace(regions=regions)
    return prediction


def _explained(scorer: Scorer, prediction: Prediction, judgement: Judgement, options: PredictOptions) -> Prediction:
    """The prediction with explanations of its regions, or with what gives them later."""
    if prediction.regions is None or not (options.explain or options.explainable):
        return prediction
    explainer = functools.partial(scorer.explain, judgement, prediction.regions)
    if options.explainable:
        return prediction._replace(explainer=explainer)
    return prediction._replace(explanations=explainer() if prediction.regions else ())


def _warning(products: Products, name: str, photo: PhotoStatistics) -> str:
    """What about a photo no good photo of its product shows; empty where nothing is known of these."""
    product = products.get(name)
    return unlike(photo, product.calibration.photos) if product is not None and product.calibration is not None else ""


def _with_verdict(products: Products, unknown: Prediction, judgement: Judgement, review: float | None) -> Prediction:
    """The prediction with the verdict of its product; one that looks like no product stays unknown."""
    name, score, recognised = judgement.product, unknown.score, judgement.recognised
    assert score is not None
    if recognised is not None and not recognised.known:
        return unknown
    threshold = threshold_of(products, name)
    verdict = verdict_of(score, threshold, None if review is None else threshold_of(products, name, review))
    p_value = p_value_of(products, name, score)
    if stated := judgement.stated:
        verdict = "review" if (stated.verdict, verdict) == ("good", "review") else stated.verdict
        threshold, p_value = stated.threshold, stated.p_value
    return unknown._replace(
        class_name=name,
        threshold=threshold,
        verdict=verdict,
        p_value=p_value,
        cold=cold_of(products, name),
        distance=judgement.distance,
    )


def check_class(products: Products, class_name: str | None) -> None:
    """Raises MambaADError for a product that is not known."""
    if class_name is not None and products and class_name not in products:
        raise MambaADError(f"the model knows no class {class_name!r}: choose {', '.join(products)}")


def product_of(file: ImageFile, products: Products) -> str:
    """The product of a file: that of the folder it was found in that is named like one, or the only product there is.

    A folder above the one that was given never names a product, nor does any above that of a file named itself.
    """
    if len(products) == 1:
        return next(iter(products))
    if not file.path.name:  # a picture without a file
        return ""
    below, above = file.relative.parts[:-1], file.path.absolute().parents
    given = above[min(len(below), len(above) - 1)].name
    return next((part for part in reversed((given, *below)) if part in products), "")
