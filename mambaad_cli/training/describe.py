"""What is computed from good images after a training: residual statistics, the recogniser, scores for thresholds."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mambaad_cli.data import photo_statistics
from mambaad_cli.data.augmentation import nudged
from mambaad_cli.data.loading import at_size, within
from mambaad_cli.inspection import recognition
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, residual_statistics
from mambaad_cli.training.features import features_of_pixels
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.memories import FEW, SCORED, Looks, compare, fusion_of, images_to_score, remember, trial_of
from mambaad_cli.training.recipe import Recipe, RunOptions
from mambaad_cli.training.splits import evenly_spread, split
from mambaad_cli.training.tiles import Photos, describe_tiles

KEPT_BYTES = 10**9  # of residuals: more are computed again each time that they are needed
LOOKED_AT = 96  # good images of a class, including nudged views, that give its statistics


@torch.inference_mode()
def describe(
    model: FittedModel,
    good: GoodImages,
    recipe: Recipe,
    run: RunOptions,
    memories: Mapping[str, Looks],
    scored: int = SCORED,
) -> None:
    """Set what the model knows of good images besides its weights.

    Scores come from held-out images. Where there is a memory, and a class has fewer of these than `scored`, they also
    come from training images, each compared with the memory of the others. Scores of a class of which no image is held
    out promise nothing. memories: of the images of each class; empty: the decoder alone.
    """
    model.detector.eval()
    model.statistics, model.memories, model.fusion, model.simulated = {}, {}, {}, {}
    model.photo_statistics = {}
    scores: dict[str, list[float]] = {}
    for name in dict.fromkeys(good.names):
        scores |= _describe_class(model, good, name, recipe, run, memories.get(name), scored)
        own = [i for i in sorted({*good.train, *good.held_out}) if good.names[i] == name]
        model.photo_statistics[name] = [good.features.photos[i] for i in evenly_spread(own, photo_statistics.KEPT)]
    if len(set(good.names)) > 1:
        signatures: dict[int, Tensor] = {}
        for own, batch in good.features.batches(range(len(good.names)), run.device):
            signatures |= dict(zip(own, model.signature(batch).cpu(), strict=True))
        known = torch.stack([signatures[i] for i in range(len(good.names))])
        model.recogniser = recognition.learn(known, good.names, good.held_out or split(good.names, seed=0)[1])
    scores |= scores_of(model, good, [i for i in good.held_out or good.train if good.names[i] not in scores], run)
    model.scores = {name: own for name, own in model.scores.items() if name not in scores} | scores
    model.held_out = {good.names[i] for i in good.held_out}
    if model.settings.tiles:
        for name in dict.fromkeys(good.names):
            train, held_out = ([i for i in part if good.names[i] == name] for part in good.parts)
            turned = name in good.turned and good.features.views > 1  # many photos show it any way round themselves
            photos = Photos(name, good.paths, train, held_out, memories.get(name), turned, recipe.flips)
            describe_tiles(model, photos, recipe)


def _describe_class(
    model: FittedModel,
    good: GoodImages,
    name: str,
    recipe: Recipe,
    run: RunOptions,
    looks: Looks | None,
    scored: int,
) -> dict[str, list[float]]:
    """What good images of one class are like to each witness, and how their maps are fused.

    Returns scores of some of them, where the memory has others to compare each with.
    """
    if recipe.distance == "mahalanobis" and recipe.evidence != "memory":
        own = [i for i in good.train if good.names[i] == name]
        model.statistics[name] = statistics_of(model, good, own, recipe, run)
    if recipe.evidence == "decoder" or looks is None:
        return {}
    wanted = images_to_score(good, name, scored)
    images = wanted or images_to_score(good, name)
    own = sorted({*good.train, *good.held_out})
    known = [i for i in own if good.names[i] == name]

    def anew(without: int) -> Looks:
        return remember(good, [i for i in known if i != without], len(looks) > 1, recipe, run)

    compared = compare(looks, good, images, run, anew if 1 < len(known) < FEW else None)
    pairs = zip(looks, compared, strict=True)
    model.memories[name] = tuple(own.memory._replace(expected=one.expected) for own, one in pairs)
    trial = trial_of(model, good, images, looks, compared, recipe, run)
    if recipe.evidence == "both":
        model.fusion[name] = fusion_of(trial)
    model.simulated[name] = trial.scored(model.fusion.get(name), model.photo_scale(name))
    if not wanted or len(images) < 2:
        return {}
    fused = trial.of_good(model.fusion.get(name))
    return {name: [_score(good, i, one) for i, one in zip(images, fused, strict=True)]}


def statistics_of(
    model: FittedModel, good: GoodImages, chosen: Sequence[int], recipe: Recipe, run: RunOptions
) -> list[ResidualStatistics]:
    """Statistics of the residuals of good images of one class, one per scale, from about LOOKED_AT images.

    If there are fewer, nudged views of them are added. Like new photos, these were not used for training.
    """
    chosen = chosen[:: math.ceil(len(chosen) / LOOKED_AT)]
    some = chosen[: LOOKED_AT - len(chosen)]
    present: list[int] = []

    def views() -> Iterator[Tensor]:
        for i in some:
            pixels = good.pixels(i)
            if pixels is not None:
                present.append(i)
                yield nudged(pixels, i)

    unseen = features_of_pixels(model, views(), len(some), run, for_memory=False)
    unseen.insides = [good.features.insides[i] for i in present]
    size = model.map_size(model.size_of(good.names[chosen[0]]))

    def residuals() -> Iterator[list[Residual]]:
        for source, numbers in ((good.features, chosen), (unseen, range(len(unseen.boxes)))):
            for own, batch in source.batches(numbers, run.device):
                inside = source.inside(own, size)
                found = model.residuals(batch)
                yield found if inside is None else [of_interest(one, inside) for one in found]

    group = good.features.groups[good.features.group_of[chosen[0]]]
    values = (len(chosen) + len(some)) * sum(stage[0].numel() for stage in group.stages)
    if 2 * 4 * values > KEPT_BYTES:  # two float32 each
        return residual_statistics(residuals, recipe.expected_distance)
    kept = list(residuals())
    return residual_statistics(lambda: kept, recipe.expected_distance)


def of_interest(one: Residual, inside: Tensor) -> Residual:
    """The residuals (b, h, w, c) of one scale that lie in regions of interest (b, H, W), as (1, 1, p, c)."""
    own = at_size(inside, (one.difference.shape[1], one.difference.shape[2])).to(one.difference.device)
    return Residual(one.difference[own][None, None], one.reconstructed[own][None, None])


def scores_of(model: FittedModel, good: GoodImages, chosen: Sequence[int], run: RunOptions) -> dict[str, list[float]]:
    """Image scores of cached images by class; each image is scored as one of its class."""
    scores: dict[str, list[float]] = {}
    for own, batch in good.features.batches(chosen, run.device):
        size = model.map_size(model.size_of(good.names[own[0]]))
        maps = model.maps_of(batch, size, [good.names[i] for i in own])
        for i, one in zip(own, maps, strict=True):
            scores.setdefault(good.names[i], []).append(_score(good, i, one))
    return scores


def _score(good: GoodImages, i: int, anomaly_map: Tensor) -> float:
    """The image score of one image by its map (H, W)."""
    return float(within(anomaly_map, good.features.boxes[i], good.features.insides[i]).max())
