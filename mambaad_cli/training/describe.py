"""What is computed from good images after a training: residual statistics, the recogniser, scores for thresholds."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambaad_cli.data.augmentation import nudged
from mambaad_cli.data.loading import within
from mambaad_cli.inspection import recognition
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, residual_statistics
from mambaad_cli.training.features import Features, encoded
from mambaad_cli.training.recipe import Recipe, RunOptions
from mambaad_cli.training.splits import split

LOOKED_AT = 160  # good images of a class, including nudged views, that give its statistics
Pixels = Callable[[int], Tensor | None]  # of an image, (3, H, W) in 0 … 1, by its number; None if it no longer exists


class GoodImages(NamedTuple):
    """The images of a training, by number: first those that the model carries, then the new ones."""

    features: Features
    names: list[str]  # the product of each
    train: list[int]  # learnt from
    held_out: list[int]  # kept for the threshold
    pixels: Pixels


@torch.inference_mode()
def describe(model: FittedModel, good: GoodImages, recipe: Recipe, run: RunOptions) -> None:
    """Set what the model knows of good images besides its weights.

    If images are held out, a class without any keeps its earlier scores, which then promise nothing. If none are held
    out, the scores come from the training images, and promise nothing either.
    """
    model.detector.eval()
    model.statistics = {}
    for name in dict.fromkeys(good.names) if recipe.distance == "mahalanobis" else ():
        own = [i for i in good.train if good.names[i] == name]
        model.statistics[name] = statistics_of(model, good, own, recipe, run)
    if len(set(good.names)) > 1:
        everything = range(len(good.names))
        signatures = [recognition.signature(batch).cpu() for batch in good.features.batches(everything, run.device)]
        unseen = good.held_out or split(good.names, seed=0)[1]
        model.recogniser = recognition.learn(torch.cat(signatures), good.names, unseen)
    scores = scores_of(model, good, good.held_out or good.train, run)
    model.scores = {name: own for name, own in model.scores.items() if name not in scores} | scores
    model.held_out = set(scores) if good.held_out else set()


def statistics_of(
    model: FittedModel, good: GoodImages, chosen: Sequence[int], recipe: Recipe, run: RunOptions
) -> list[ResidualStatistics]:
    """Statistics of the residuals of good images of one class, one per scale, from about LOOKED_AT images.

    If there are fewer, nudged views of them are added. Like new photos, these were not used for training.
    """
    chosen = chosen[:: math.ceil(len(chosen) / LOOKED_AT)]
    some = chosen[: LOOKED_AT - len(chosen)]
    views = (nudged(own, i) for i in some if (own := good.pixels(i)) is not None)
    unseen = Features(encoded(model, views, len(some), run), [])
    count = len(unseen.stages[0]) if unseen.stages else 0

    def residuals() -> Iterator[list[Residual]]:
        batches = (good.features.batches(chosen, run.device), unseen.batches(range(count), run.device))
        for batch in itertools.chain(*batches):
            yield model.residuals(batch)

    return residual_statistics(residuals, recipe.expected_distance)


def scores_of(model: FittedModel, good: GoodImages, chosen: Sequence[int], run: RunOptions) -> dict[str, list[float]]:
    """Image scores of cached images by class; each image is scored as one of its class."""
    scores: dict[str, list[float]] = {}
    done = 0
    for batch in good.features.batches(chosen, run.device):
        own = chosen[done : done + len(batch[0])]
        maps = model.maps_of(batch, model.settings.size, [good.names[i] for i in own])
        for i, one in zip(own, maps, strict=True):
            scores.setdefault(good.names[i], []).append(float(within(one, good.features.boxes[i]).max()))
        done += len(own)
    return scores
