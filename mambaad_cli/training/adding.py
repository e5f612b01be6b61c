"""New products, or more images of known ones, taught to a model that is there.

What is known of a product that gets no new images stays as it is: its memory, its photos, its threshold. Only what
depends on the decoder is measured again, from the images that the model carries.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.photo_statistics import KEPT
from mambaad_cli.inspection.lessons import Hardest
from mambaad_cli.inspection.model_record import Example, ModelRecord
from mambaad_cli.inspection.product import Calibration, Learnt, Product
from mambaad_cli.inspection.teaching import taught_record, untaught
from mambaad_cli.model.fusion import fuse_witnesses, witness_of
from mambaad_cli.training.describe_product import Trained, describe_product, image_score, statistics_of
from mambaad_cli.training.examples import examples_to_keep, pixels_of
from mambaad_cli.training.features import Views, features_of_examples
from mambaad_cli.training.fit import (
    learnt_from,
    new_examples,
    new_images,
    recognising,
    remembered,
    train,
    with_fingerprint,
)
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.job import Job, planned_products
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions, as_dict, check, recipe_of
from mambaad_cli.training.suspects import without
from mambaad_cli.training.trial import Decoder, Trial


def add(
    record: ModelRecord,
    goods: GoodFiles,
    recipe: Recipe | None = None,
    run: RunOptions | None = None,
    progress: Progress | None = None,
) -> ModelRecord:
    """Teach a fitted model new products, or more images of those it knows, by its own recipe unless one is given.

    Half of what it trains on are the images of the other products that it carries, so that these are not forgotten
    (rehearsal: Robins, Connection Science 1995). The scores of known products move with what the decoder finds in the
    images that the model carries; new images of a known product join its memory and its scores. What the model was
    taught by verdicts is taught again.

    Raises MambaADError for a model without examples, and for fewer than three readable images.
    """
    if not record.examples:
        raise MambaADError("the model carries no examples of what it knows (--no-examples): fit all products anew")
    if record.network.settings.tiles:
        raise MambaADError("a model with tiles keeps no photos at their own resolution: fit all products anew")
    if distributed.world() > 1:
        raise MambaADError("--add runs in one process: leave out torchrun")
    run, progress, trained_by = run or RunOptions(), progress or Progress(), recipe_of(record)
    recipe = recipe or trained_by.for_adding()
    check(record.network.settings, recipe)
    torch.manual_seed(recipe.seed)
    lessons = {name: one.learnt.taught.lessons for name, one in record.products.items() if one.learnt.taught}
    record = record.with_products(*map(untaught, record.products.values()))
    record = record.to(run.device).at_precision(run.precision)
    products = planned_products(goods, record.network.settings, record.products)
    network = replace(record.network, detector=copy.deepcopy(record.network.detector))  # the record stays as it was
    job = Job(network, products, recipe, run, progress, goods.masks)
    kept = replace(trained_by, flips=recipe.flips, max_false_reject=recipe.max_false_reject)
    grown = replace(_add(job, goods, record), recipe=as_dict(kept))
    return taught_record(grown.to("cpu"), lessons)[0].to(run.device) if lessons else grown


def _add(job: Job, goods: GoodFiles, record: ModelRecord) -> ModelRecord:
    carried = len(record.examples)
    job = with_fingerprint(job, goods, record)
    new, files = new_images(job, goods, carried)
    new = _unknown(record, new)
    good, memories = remembered(job, _with_examples(job, record, new), files, carried)
    before = {name: _decoder_scores(job, good, record.products[name]) for name in record.products}
    train(job, good, balanced(good.train, carried))
    job.network.detector.eval()
    only_new = good.from_number(carried)
    trained = [Trained(job.network, good.train)]
    products = []
    for name in dict.fromkeys([*record.products, *good.names[carried:]]):
        known, images = record.products.get(name), only_new.of(name)
        described = describe_product(job, only_new, name, memories.get(name), trained) if images else known
        assert described is not None
        if known is not None:
            described = _rejoined(job, good, known, described, before[name])
        count = learnt_from(job, only_new, name)
        products.append(replace(described, images=count if known is None else known.images + count))
    grown = recognising(job, good, ModelRecord(job.network).with_products(*products))
    return replace(grown, examples=_examples(job, good, record, carried))


def _unknown(record: ModelRecord, new: GoodImages) -> GoodImages:
    """The new images without photos that the model has learnt from already: compared with its memory, they would set a
    threshold that no new photo keeps.

    A photo is told by its statistics, which the model keeps in full precision. Raises MambaADError if nothing is new.
    """
    photos = {
        name: {photo[:3] for photo in product.calibration.photos}  # earlier models keep no more
        for name, product in record.products.items()
        if product.calibration
    }
    taken = [seen.photo and seen.photo[:3] for seen in new.features.seen]
    known = [i for i, name in enumerate(new.names) if taken[i] in photos.get(name, ())]
    if len(known) == len(new.names):
        raise MambaADError("the model has learnt from all of these photos already: add others")
    return without(new, known)


def _with_examples(job: Job, record: ModelRecord, new: GoodImages) -> GoodImages:
    """The images that the model carries, then the new ones."""
    carried = len(record.examples)
    examples = features_of_examples(
        job, record.examples, Views(new.features.views, job.recipe.flips, new.turned)
    ).and_those_of(new.features)
    unseen = [i for i, example in enumerate(record.examples) if example.held_out]
    learnt = sorted(set(range(carried)) - set(unseen))

    def pixels(i: int) -> Tensor | None:
        if i >= carried:
            return new.pixels(i - carried)
        example = record.examples[i]
        return pixels_of(example, job.input_size(example.class_name))

    return GoodImages(
        examples,
        [example.class_name for example in record.examples] + new.names,
        learnt + [carried + i for i in new.train],
        unseen + [carried + i for i in new.held_out],
        pixels,
        new.turned,
        [None] * carried + list(new.paths),
    )


def balanced(train: Sequence[int], carried: int) -> list[int]:
    """The images to train on, where the first `carried` are old: as many old as new, so the fewer are repeated.

    >>> balanced([0, 1, 2, 3, 4], 3)
    [0, 1, 2, 3, 4, 3]
    """
    old, new = [i for i in train if i < carried], [i for i in train if i >= carried]
    longest = max(len(old), len(new))
    return [group[i % len(group)] for group in (old, new) if group for i in range(longest)]


@torch.inference_mode()
def _decoder_maps(job: Job, good: GoodImages, product: Product) -> tuple[list[int], Tensor] | None:
    """The images of a product that the model carries, and the decoder's maps (n, H, W) of them; None without either."""
    images = [i for i, path in enumerate(good.paths) if path is None and good.names[i] == product.name]
    if job.recipe.evidence == "memory" or not images:
        return None
    trial = Trial(job, good, product, [Decoder(job.network, product.learnt.statistics)], None, images, [])
    maps = trial.good_maps()[0]
    assert maps is not None
    return images, maps


def _decoder_scores(job: Job, good: GoodImages, product: Product) -> list[float]:
    """What the decoder adds to the scores of the images of a product that the model carries."""
    found = _decoder_maps(job, good, product)
    if found is None:
        return []
    images, maps = found
    if product.learnt.fusion is not None:
        maps = fuse_witnesses(product.learnt.fusion, maps, None)
    return [image_score(good, i, one) for i, one in zip(images, maps, strict=True)]


def _rejoined(job: Job, good: GoodImages, known: Product, described: Product, before: Sequence[float]) -> Product:
    """A known product beside a decoder that has learnt since.

    described: what its new images show, or the product as it was. before: what the decoder added to its scores.
    """
    learnt = described.learnt
    if described is known and job.recipe.evidence != "memory":
        learnt = _with_new_decoder(job, good, known)
    product = replace(described, learnt=learnt, images=known.images, photo_shape=known.photo_shape)
    after = _decoder_scores(job, good, product)
    shift = float(np.median(after) - np.median(before)) if after and before else 0.0
    if known.calibration is None or not known.conditions().allow(product.conditions()):
        return product
    moved = _moved(known.calibration, shift)
    new = None if described is known else described.calibration
    hardest = _hardest(known.learnt.hardest, None if described is known else learnt.hardest, shift)
    product = replace(product, learnt=replace(learnt, hardest=hardest))
    return replace(product, calibration=moved if new is None else _pooled(moved, new))


def _hardest(earlier: Hardest | None, new: Hardest | None, shift: float) -> Hardest | None:
    """The hardest patches of earlier good images, whose scores are higher by so much, and of new ones."""
    if earlier is None:
        return new
    scores = tuple(score + shift for score in earlier.scores)
    if new is None or new.patches[0].shape[1] != earlier.patches[0].shape[1]:  # at another size there are fewer
        return replace(earlier, scores=scores)
    joined = (torch.cat(pair) for pair in zip(earlier.patches, new.patches, strict=True))
    return Hardest(tuple(joined), scores + new.scores)


def _with_new_decoder(job: Job, good: GoodImages, known: Product) -> Learnt:
    """What was learnt of a product, with the residuals of the decoder as they are now."""
    learnt, images = known.learnt, good.trained_of(known.name) or good.of(known.name)
    if not images:
        return learnt
    if job.recipe.distance == "mahalanobis":
        learnt = replace(learnt, statistics=tuple(statistics_of(job, job.network, good, images)))
    found = _decoder_maps(job, good, replace(known, learnt=learnt))
    if learnt.fusion is None or found is None:
        return learnt
    numbers, maps = found
    inside = good.features.inside(numbers, (maps.shape[1], maps.shape[2]))
    values = maps if inside is None else maps[inside.to(maps.device)]
    decoder = witness_of(values, learnt.fusion.decoder.weight)
    return replace(learnt, fusion=learnt.fusion._replace(decoder=decoder))


def _moved(calibration: Calibration, shift: float) -> Calibration:
    """A calibration whose scores are higher by so much."""
    return replace(
        calibration,
        scores=tuple(score + shift for score in calibration.scores),
        simulated=tuple(defect._replace(score=defect.score + shift) for defect in calibration.simulated),
    )


def _pooled(earlier: Calibration, new: Calibration) -> Calibration:
    """Scores of earlier and of new good images."""
    return replace(
        earlier,
        scores=earlier.scores + new.scores,
        promising=earlier.promising or new.promising,
        max_false_reject=new.max_false_reject or earlier.max_false_reject,
        simulated=new.simulated or earlier.simulated,
        photos=(earlier.photos + new.photos)[:: -(-len(earlier.photos + new.photos) // KEPT) or 1],
    )


def _examples(job: Job, good: GoodImages, record: ModelRecord, carried: int) -> tuple[Example, ...]:
    """The images that the model carries from now on: no more of a product than before, old and new ones."""
    kept = set(examples_to_keep(good.names, good.train, good.held_out))
    old = tuple(example for i, example in enumerate(record.examples) if i in kept)
    return old + (new_examples(job, good, carried) if job.recipe.keep_examples else ())
