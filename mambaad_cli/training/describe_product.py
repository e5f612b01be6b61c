"""What is learnt of one product after a training: statistics, memories, fusion, tiles and its calibration."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mambaad_cli.data import photo_statistics
from mambaad_cli.data.augmentation import nudged
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import at_size, within
from mambaad_cli.inspection import recognition
from mambaad_cli.inspection.calibration import deviations, exceeds
from mambaad_cli.inspection.lessons import KEPT, Hardest
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Calibration, Learnt, Product
from mambaad_cli.inspection.recognition import Recogniser
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, residual_statistics
from mambaad_cli.model.known_defects import hardest_patches
from mambaad_cli.model.memory import looks_of
from mambaad_cli.training.features import features_of_pixels
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.memories import RememberedViews, compared_with_others
from mambaad_cli.training.sources import sources_of
from mambaad_cli.training.splits import evenly_spread, split
from mambaad_cli.training.suspects import place_of_peak
from mambaad_cli.training.tiles import TilePhotos, with_tiles
from mambaad_cli.training.trial import Decoder, Trial, fused

KEPT_BYTES = 10**9  # of residuals: more are computed again each time that they are needed
STATISTICS_IMAGES = 96  # good images of a class, including nudged views, that give its statistics
SCORED_IMAGES = 100  # of a product that give its threshold: held-out ones, and learnt ones where these are fewer


@dataclass(frozen=True)
class Trained:
    """A network after its training, and the images that it did not learn from.

    A training has one. With folds it has one more for each fold, whose images it scores.
    """

    network: Network
    train: Sequence[int]  # learnt from
    scores: frozenset[int] | None = None  # the images that it scores; None: all


@torch.inference_mode()
def describe_product(
    job: Job, good: GoodImages, name: str, views: RememberedViews | None, trained: Sequence[Trained]
) -> Product:
    """A product with all that is learnt and measured of it.

    views: the memory of its images, where there is one. trained: the networks that score its images; the first one is
    the model's own.

    Scores come from images that the network that scores them did not learn from. Where there is a memory, each is
    compared with that of the others, and where such images are few, learnt ones are scored as well. The threshold of a
    product promises nothing where all of its images were learnt from.
    """
    product = job.products[name]
    decoders = _decoders(job, good, name, trained)
    unseen, images = images_to_score(good, name, views is not None, len(trained) > 1)
    seen = compared_with_others(job, good, name, views, images) if views is not None else []
    scoring = decoders[1:] if len(trained) > 1 else decoders
    trial = Trial(job, good, product, scoring, views, images, seen)
    maps = trial.good_maps() if images else (None, None)
    fusion = trial.fusion(maps) if images else None
    memories = tuple(
        view.memory._replace(expected=_expected(compared.expected, product, place, len(images)))
        for place, (view, compared) in enumerate(zip(views or (), seen, strict=True))
    )
    statistics = decoders[0].statistics if decoders else ()
    learnt = Learnt(statistics, memories, fusion, region=product.region, sources=sources_of(job, good, product, views))
    product = replace(product, learnt=learnt, turned=name in good.turned)
    if not images or ((views is not None or len(trained) > 1) and len(images) < 2):
        return product  # there is no other image that an image could be compared with
    image_maps = fused(fusion, maps)
    scores = [image_score(good, i, image_map) for i, image_map in zip(images, image_maps, strict=True)]
    defects = trial.defects(unseen, fusion) if views is not None else ()
    if views is not None:
        product = replace(product, learnt=replace(learnt, hardest=_hardest(job, good, images, image_maps, scores)))
    measured = Calibration(
        product.conditions(job.run.precision), tuple(scores), bool(unseen), job.recipe.max_false_reject, defects,
        photos_of(good, name),
    )  # fmt: skip
    product = replace(product, calibration=measured)
    job.progress.passed_over(name, _passed_over(good, images, measured, image_maps))
    if job.network.settings.tiles is None:
        return product
    turned = product.turned and good.features.views > 1  # many photos show it any way round themselves
    photos = TilePhotos(
        name, good.paths, good.trained_of(name), good.held_out_of(name), views, turned, job.recipe.flips,
        good.features.alike,
    )  # fmt: skip
    return with_tiles(job, product, photos)


def _hardest(job: Job, good: GoodImages, images: Sequence[int], maps: Tensor, scores: Sequence[float]) -> Hardest:
    """The most unusual patches of the images that give the threshold."""
    two = job.network.settings.two_looks
    rows = []
    for i, image_map in zip(images, maps, strict=True):
        views = [view[0] for view in looks_of(good.features[torch.tensor([i])], two)]
        rows.append(hardest_patches(image_map.cpu(), views, KEPT))
    return Hardest(tuple(torch.stack(view) for view in zip(*rows, strict=True)), tuple(scores))


def _passed_over(
    good: GoodImages, images: Sequence[int], measured: Calibration, maps: Tensor
) -> list[tuple[ImageFile, float, tuple[float, float]]]:
    """The images above the threshold, the highest first: their files, how many deviations, and where."""
    found = []
    rows = zip(images, measured.scores, deviations(measured.scores), maps, strict=True)
    for i, score, oddness, image_map in rows:
        path = good.paths[i] if good.paths else None
        if exceeds(score, measured.threshold) and path is not None:
            found.append((ImageFile(path, Path(path.name), ""), oddness, place_of_peak(image_map)))
    return sorted(found, key=lambda image: -image[1])


def _expected(expected: Tensor, product: Product, view: int, images: int) -> Tensor:
    """What good images have at each position of a view, with what was expected before there were new images."""
    earlier = product.learnt.memories
    if not earlier or earlier[view].expected.shape != expected.shape:
        return expected
    known = min(product.images, SCORED_IMAGES)
    return (known * earlier[view].expected + images * expected) / (known + images)


def _decoders(job: Job, good: GoodImages, name: str, trained: Sequence[Trained]) -> list[Decoder]:
    """The networks with the statistics of their residuals for this product; none where the memory is all evidence."""
    recipe = job.recipe
    if recipe.evidence == "memory":
        return []
    decoders = []
    for training in trained:
        statistics: tuple[ResidualStatistics, ...] = ()
        if recipe.distance == "mahalanobis":
            learnt = [i for i in dict.fromkeys(training.train) if good.names[i] == name]
            statistics = tuple(statistics_of(job, training.network, good, learnt or good.of(name)))
        decoders.append(Decoder(training.network, statistics, training.scores))
    return decoders


def images_to_score(
    good: GoodImages, name: str, compared: bool, folds: bool, most: int = SCORED_IMAGES
) -> tuple[list[int], list[int]]:
    """The images of a product that no network which scores them learnt from, and all that its threshold comes from.

    compared: they are compared with a memory of the others, so that learnt ones may be scored as well.
    folds: each image is scored by the fold that did not learn from it.
    Of images that show nearly the same, one counts.
    """
    held_out = good.features.first_of_alike(good.held_out_of(name))
    known = {alike for i in held_out for alike in good.features.alike(i)}
    train = [i for i in good.features.first_of_alike(good.trained_of(name)) if i not in known]
    if folds:
        return train, train
    if compared:
        return held_out, held_out + evenly_spread(train, max(0, most - len(held_out)))
    # a decoder alone scores what it learnt from only where no product has other images
    return held_out, held_out or ([] if good.held_out else train)


def photos_of(good: GoodImages, name: str) -> tuple[photo_statistics.PhotoStatistics, ...]:
    """How good photos of a product were taken."""
    photos = [good.features.seen[i].photo for i in evenly_spread(good.of(name), photo_statistics.KEPT)]
    return tuple(photo for photo in photos if photo is not None)


def image_score(good: GoodImages, i: int, anomaly_map: Tensor) -> float:
    """The image score of one image by its map (H, W)."""
    return float(within(anomaly_map, good.features.seen[i].box).max())


@torch.inference_mode()
def recogniser_of(job: Job, good: GoodImages) -> tuple[Recogniser | None, Mapping[str, float]]:
    """What distinguishes the products, if there are several, and the largest distance of each from its own images.

    Images that were left out are no part of either.
    """
    images = sorted({*good.train, *good.held_out})
    if len({good.names[i] for i in images}) < 2:
        return None, {}
    signatures: dict[int, Tensor] = {}
    for numbers, batch in good.features.batches(images, job.run.device):
        signatures |= dict(zip(numbers, job.network.signature(batch).cpu(), strict=True))
    names = [good.names[i] for i in images]
    held_out = [place for place, i in enumerate(images) if i in set(good.held_out)] or split(names, seed=0)[1]
    return recognition.learn(torch.stack([signatures[i] for i in images]), names, held_out)


def statistics_of(job: Job, network: Network, good: GoodImages, chosen: Sequence[int]) -> list[ResidualStatistics]:
    """Statistics of the residuals of good images of one class, one per scale, from about STATISTICS_IMAGES images.

    If there are fewer, nudged views of them are added. Like new photos, these were not used for training.
    """
    chosen = chosen[:: math.ceil(len(chosen) / STATISTICS_IMAGES)]
    some = chosen[: STATISTICS_IMAGES - len(chosen)]
    present: list[int] = []

    def nudged_views() -> Iterator[Tensor]:
        for i in some:
            pixels = good.pixels(i)
            if pixels is not None:
                present.append(i)
                yield nudged(pixels, i)

    unseen = features_of_pixels(job, nudged_views(), len(some), remembered=False)
    unseen.seen = [
        seen._replace(inside=good.features.seen[i].inside) for seen, i in zip(unseen.seen, present, strict=True)
    ]
    size = job.map_size(good.names[chosen[0]])

    def residuals() -> Iterator[list[Residual]]:
        for source, numbers in ((good.features, chosen), (unseen, range(len(unseen)))):
            for members, batch in source.batches(numbers, job.run.device):
                inside = source.inside(members, size)
                scales = network.residuals(batch)
                yield scales if inside is None else [of_interest(scale, inside) for scale in scales]

    group = good.features.groups[good.features.group_of[chosen[0]]]
    values = (len(chosen) + len(some)) * sum(stage[0].numel() for stage in group.stages)
    if 2 * 4 * values > KEPT_BYTES:  # two float32 each
        return residual_statistics(residuals, job.recipe.expected_distance)
    kept = list(residuals())
    return residual_statistics(lambda: kept, job.recipe.expected_distance)


def of_interest(residual: Residual, inside: Tensor) -> Residual:
    """The residuals (b, h, w, c) of one scale that lie in regions of interest (b, H, W), as (1, 1, p, c)."""
    counting = at_size(inside, (residual.difference.shape[1], residual.difference.shape[2]))
    counting = counting.to(residual.difference.device)
    return Residual(residual.difference[counting][None, None], residual.reconstructed[counting][None, None])
