"""Predictions of good images not used for training -> new thresholds of a fitted model, without training."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import KEPT, PhotoStatistics
from mambaad_cli.files import shown
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import Prediction

PLAIN_NAMES = {"good", "ok", "normal", "train", "training", "images"}  # of folders; these are not products


def recalibrate(
    model: FittedModel,
    predictions: Iterable[Prediction],
    folder: Path,
    new_size: bool = False,
    on_left_out: Callable[[Prediction, str], None] = lambda one, why: None,
) -> None:
    """Take the thresholds of `model` from the scores of these good images; products without any keep theirs.

    `new_size` says that the model was fitted at another image size. Then all earlier scores are dropped, and the limit
    beyond which an image is unknown is set anew as well, and so is how good photos were taken. That is also learnt of
    products of which it is not known yet. A model that knows no product yet, such as an imported one,
    gets one for each sub-folder, or one named like `folder`. `on_left_out` is called for images that cannot be used.

    Raises MambaADError, and leaves the model as it was, where no image can be used, and where the product of an image
    cannot be determined.
    """
    scores: dict[str, list[float]] = {}
    photos: dict[str, list[PhotoStatistics]] = {}
    distances: list[float] = []
    for one in predictions:
        if one.score is None:
            on_left_out(one, one.error)
            continue
        name = _product(model, one, folder)
        if not name:
            on_left_out(one, "looks like no product of the model: name it with --class")
            continue
        scores.setdefault(name, []).append(one.score)
        photos.setdefault(name, []).extend([one.photo] if one.photo else [])
        distances += [] if one.distance is None else [one.distance]
    if not scores:
        raise MambaADError(f"no readable image in {shown(folder)}: the model stays as it was")
    if not new_size:  # scores of training images are dropped, because there are better ones now
        scores = {name: own for name, own in model.scores.items() if name in model.held_out} | scores
    model.scores, model.held_out = scores, set(scores)
    model.trained_on = {name: model.trained_on.get(name, 0) for name in {**model.trained_on, **scores}}
    known = {} if new_size else model.photo_statistics
    model.photo_statistics = {name: own[:: math.ceil(len(own) / KEPT)] for name, own in photos.items() if own} | known
    if new_size and model.recogniser is not None and distances:
        model.recogniser = model.recogniser.with_limit_of(distances)


def _product(model: FittedModel, one: Prediction, folder: Path) -> str:
    """The product of a good image: given by its folder, or recognised; its folder's name if the model knows none."""
    if not model.trained_on:
        return one.class_name or shown(one.file.group) or product_name(folder)
    if not one.class_name and one.verdict != "unknown":
        raise MambaADError(
            f"cannot tell which product {shown(one.file.path)} shows: name it with --class, or put the images into "
            f"sub-folders named {', '.join(map(shown, model.trained_on))}"
        )
    return one.class_name


def product_name(folder: Path) -> str:
    """The product's name for a folder of good images: the last part of its path that is not a plain name like `good`.

    A symbolic link counts by its own name, not its target's.

    >>> product_name(Path("parts/nut/train/good"))
    'nut'
    """
    names = [shown(part) for part in Path(os.path.abspath(folder)).parts[1:]]  # noqa: PTH100 (absolute keeps ..)
    return next((name for name in reversed(names) if name.lower() not in PLAIN_NAMES), "good")
