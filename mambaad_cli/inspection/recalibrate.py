"""Predictions of good images that were not used for training -> new thresholds, without training."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import KEPT, PhotoStatistics
from mambaad_cli.data.roi import scaled
from mambaad_cli.files import shown
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.product import Calibration, Conditions, Product, Products

PLAIN_NAMES = {"good", "ok", "normal", "train", "training", "images"}  # of folders; these are not products
OnLeftOut = Callable[[Prediction, str], None]


@dataclass
class Measurements:
    """What was measured of good images of one product."""

    scores: list[float] = field(default_factory=list)
    photos: list[PhotoStatistics] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)


def recalibrated_record(
    record: ModelRecord,
    predictions: Iterable[Prediction],
    folder: Path,
    max_false_reject: float | None = None,
    on_left_out: OnLeftOut = lambda prediction, why: None,
) -> ModelRecord:
    """The record with the thresholds of these good images; products without any keep theirs, if they promise something.

    A model that knows no product yet, such as an imported one, gets one for each sub-folder, or one named like
    `folder`. max_false_reject: None keeps that of each product. `on_left_out` is called for images that cannot be used.

    Raises MambaADError where no image can be used, where the product of an image cannot be determined, and for verdicts
    that were learnt at another size or region.
    """
    _check_lessons(record.products)
    measured = measurements(record.products, predictions, folder, on_left_out)
    if not measured:
        raise MambaADError(f"no readable image in {shown(folder)}: the model stays as it was")
    products = dict(record.products)
    for name, product in products.items():
        if name not in measured and not product.promising:
            products[name] = replace(product, calibration=None)  # there are better scores than those of learnt images
    known = record.with_products(*products.values())
    for name, values in measured.items():
        product = products.get(name) or Product(name, record.network.settings.size)
        known = known.with_products(recalibrated(product, values, product.conditions(record.network.precision)))
    return known if max_false_reject is None else rejecting(known, max_false_reject)


def _check_lessons(products: Products) -> None:
    """Raises MambaADError for a product that was taught under other conditions: its lessons would be lost."""
    for name, product in products.items():
        if product.learnt.taught is not None and product.untaught is None:
            raise MambaADError(
                f"{shown(name)} was taught by verdicts at another size or region: forget them first, with "
                "mambaad learn MODEL --forget NAME for each photo that --list names"
            )


def recalibrated(product: Product, measured: Measurements, conditions: Conditions) -> Product:
    """The product calibrated by good images under these conditions.

    What an earlier calibration measured besides scores is kept where its conditions were the same.
    """
    earlier = product.calibration
    if earlier is not None and not conditions.allow(earlier.conditions):
        earlier = None
    return replace(
        product,
        calibration=Calibration(
            conditions,
            tuple(measured.scores),
            max_false_reject=None if product.calibration is None else product.calibration.max_false_reject,
            simulated=earlier.simulated if earlier else (),
            photos=earlier.photos if earlier and earlier.photos else _some(measured.photos),
            farthest=earlier.farthest if earlier else max(measured.distances, default=None),
            new_photos=True,
        ),
    )


def rejecting(record: ModelRecord, max_false_reject: float) -> ModelRecord:
    """The record whose thresholds may reject this share of good images, from the scores that it keeps.

    The share holds after what a product was taught is forgotten, too.
    """

    def with_share(measured: Calibration | None) -> Calibration | None:
        return measured and replace(measured, max_false_reject=max_false_reject)

    return record.with_products(
        *(
            replace(product, calibration=with_share(product.calibration), untaught=with_share(product.untaught))
            for product in record.products.values()
        )
    )


def measurements(
    products: Products, predictions: Iterable[Prediction], folder: Path, on_left_out: OnLeftOut
) -> dict[str, Measurements]:
    """What good images of each product show. Raises MambaADError where the product of one cannot be determined."""
    measured: dict[str, Measurements] = {}
    for prediction in predictions:
        if prediction.score is None:
            on_left_out(prediction, prediction.error)
            continue
        name = _product_shown(products, prediction, folder)
        if not name:
            on_left_out(prediction, "looks like no product of the model: name it with --class")
            continue
        values = measured.setdefault(name, Measurements())
        values.scores.append(prediction.score)
        values.photos += [prediction.photo] if prediction.photo else []
        values.distances += [] if prediction.distance is None else [prediction.distance]
    return measured


def check_region(product: Product, region: np.ndarray) -> None:
    """Raises MambaADError for a region of interest with more than what was learnt: there every patch looks unusual."""
    learnt = product.learnt.region
    if learnt is None or not (product.learnt.memories or product.learnt.tiles):
        return
    beyond = region & ~scaled(learnt, (region.shape[0], region.shape[1]))
    if beyond.sum() > 0.01 * region.sum():
        raise MambaADError(
            f"{product.name}: the region reaches beyond the one that was learnt, where the model knows no good patch: "
            "fit with the larger region"
        )


def _some(photos: Sequence[PhotoStatistics]) -> tuple[PhotoStatistics, ...]:
    return tuple(photos[:: -(-len(photos) // KEPT)]) if photos else ()


def _product_shown(products: Products, prediction: Prediction, folder: Path) -> str:
    """The product of a good image: given by its folder, or recognised; its folder's name if the model knows none."""
    if not products:
        return prediction.class_name or shown(prediction.file.group) or product_name(folder)
    if not prediction.class_name and prediction.verdict != "unknown":
        raise MambaADError(
            f"cannot tell which product {shown(prediction.file.path)} shows: name it with --class, or put the images "
            f"into sub-folders named {', '.join(map(shown, products))}"
        )
    return prediction.class_name


def product_name(folder: Path) -> str:
    """The product's name for a folder of good images: the last part of its path that is not a plain name like `good`.

    A symbolic link counts by its own name, not its target's.

    >>> product_name(Path("parts/nut/train/good"))
    'nut'
    """
    names = [shown(part) for part in Path(os.path.abspath(folder)).parts[1:]]  # noqa: PTH100 (absolute keeps ..)
    return next((name for name in reversed(names) if name.lower() not in PLAIN_NAMES), "good")
