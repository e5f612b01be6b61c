"""Good images in, a calibrated model out."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.model_record import Example, ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model import STRIDES
from mambaad_cli.model.encoder import Encoder, pretrained_encoder
from mambaad_cli.model.settings import STEP, Settings, seen_by
from mambaad_cli.training.budget import limited, tile_passes
from mambaad_cli.training.describe_product import Trained, describe_product, recogniser_of
from mambaad_cli.training.examples import example, examples_to_keep, read_as_seen
from mambaad_cli.training.features import Features, Views, features_of_files
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.good_images import GoodFiles, good_images
from mambaad_cli.training.job import Job, planned_products
from mambaad_cli.training.loop import OnStep, TrainingLoop, fingerprint, recompute_activations
from mambaad_cli.training.memories import RememberedViews, remember
from mambaad_cli.training.near_copies import near_copies
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions, as_dict, check
from mambaad_cli.training.request import FitRequest
from mambaad_cli.training.splits import folds_of, split
from mambaad_cli.training.suspects import Suspect, suspects_of, without
from mambaad_cli.training.turns import turned_classes

MIN_IMAGES = 3


def fit(
    goods: GoodFiles,
    settings: Settings,
    recipe: Recipe,
    run: RunOptions | None = None,
    progress: Progress | None = None,
) -> ModelRecord:
    """Train one model on good images by a recipe.

    A checkpoint is written every half minute. A resumed training ends with the same weights as one that never stopped.

    With folds no image is lost to the threshold: it comes from that many shorter trainings, each of which scores the
    images that it did not see, and the model itself learns from all images (cross-conformal prediction: Vovk, Annals of
    Mathematics and Artificial Intelligence 2015). Its promise is then only nearly exact.

    Under torchrun each process trains on its share of each batch, with the same result as one process except for
    rounding. Only the first one writes checkpoints and describes products; the records of the others know nothing.

    Raises MambaADError for choices that do not go together, for fewer than three readable images, for a checkpoint of
    another training, and where the temporary folder is too small for the features.
    """
    run, progress = run or RunOptions(), progress or Progress()
    check(settings, recipe)
    state = None if run.encoder_weights is None else read_state_dict(run.encoder_weights)
    torch.manual_seed(recipe.seed)
    encoder = pretrained_encoder(settings.encoder, STRIDES[settings.detector], state)
    _check_sizes(settings, encoder)
    settings = replace(
        settings, encoder=encoder.architecture or settings.encoder
    )  # what a model file can name: a hub's name is none
    network = new_network(seen_by(settings, recipe.evidence), encoder).to(run.device)
    network = replace(network, precision=run.precision)
    products = planned_products(goods, network.settings)
    job = Job(network, products, recipe, run, progress, goods.masks)
    return _fit(job, goods)


def _check_sizes(settings: Settings, encoder: Encoder) -> None:
    """Raises MambaADError for sizes that an encoder cannot take. Own sizes are made for it, in steps of its own."""
    if not settings.own_aspect:
        encoder.check_size(settings.size)
    if settings.tiles is not None and encoder.step != STEP:
        raise MambaADError(
            f"--tiles needs an encoder with patches of {STEP} pixels or without patches; those of {settings.encoder} "
            f"have {encoder.step}"
        )


def fit_request(request: FitRequest, progress: Progress | None = None) -> ModelRecord:
    """Train a model as it is asked for. Raises MambaADError, before an image is read, for what has no meaning."""
    request.check()
    files, classes = good_images(request.good)
    goods = GoodFiles(files, classes, request.inside, request.ignored, request.masks)
    return fit(goods, request.settings(), request.recipe(), request.run(), progress)


def _fit(job: Job, goods: GoodFiles) -> ModelRecord:
    """Encode the images, split them, train, describe the products, and keep examples."""
    began = time.monotonic()
    job = with_fingerprint(job, goods)
    good, files = new_images(job, goods)
    good, memories = remembered(job, good, files)
    with distributed.joined(job.run.device):
        seconds = distributed.from_first(time.monotonic() - began)
        job = within_minutes(job, good, seconds)
        loop = train(job, good, good.train)
        trained = [Trained(job.network, good.train)]
        if loop is not None and job.recipe.folds:
            trained += _folds(job, good, loop)
    if loop is not None:
        job = job.by(replace(loop.recipe, max_false_reject=job.recipe.max_false_reject,
                             keep_examples=job.recipe.keep_examples))  # fmt: skip
    if distributed.rank() > 0:
        return ModelRecord(job.network, job.products)
    job.network.detector.eval()
    products = [
        replace(describe_product(job, good, name, memories.get(name), trained), images=learnt_from(job, good, name))
        for name in dict.fromkeys(good.names)
    ]
    record = recognising(job, good, ModelRecord(job.network, recipe=as_dict(job.recipe)).with_products(*products))
    return record if not job.recipe.keep_examples else replace(record, examples=new_examples(job, good))


def with_fingerprint(job: Job, goods: GoodFiles, known: ModelRecord | None = None) -> Job:
    """The training, ready for checkpoints, and sparing with memory where that is asked for."""
    if job.run.checkpoint_activations:
        recompute_activations(job.network.detector)
    if job.run.checkpoint is None:
        return job
    return replace(job, run=replace(job.run, fingerprint=fingerprint(job, goods, known)))


def new_images(job: Job, goods: GoodFiles, carried: int = 0) -> tuple[GoodImages, list[ImageFile]]:
    """The features of the photos, split into those that are learnt from and those that are held out; and their files.

    carried: how many images the model carries, which share the moved views.
    Raises MambaADError for too few readable images.
    """
    recipe = job.recipe
    turned = turned_classes(job, goods.files, goods.classes) if recipe.turns else frozenset()
    turned |= {name for name, product in job.products.items() if product.turned}

    def views_for(images: int) -> Views:
        number = recipe.views // max(1, carried + images)
        if recipe.evidence == "memory" and not turned:
            number = 1  # a memory gains nothing from views that are only slightly moved
        return Views(max(2 if recipe.flips else 1, number), recipe.flips, turned)

    features, readable = features_of_files(job, goods.files, goods.classes, views_for)
    if len(readable) < MIN_IMAGES:
        raise MambaADError(f"{len(readable)} readable images: at least {MIN_IMAGES} good images are needed to fit")
    files, names = [goods.files[i] for i in readable], [goods.classes[i] for i in readable]
    _group_alike(job, features, files, names)
    learnt, held_out = (list(range(len(names))), []) if recipe.folds else _split(features, names, recipe.seed)

    def pixels(i: int) -> Tensor | None:
        image = read_as_seen(files[i].path, job.preparation.wanted(names[i]))
        return None if image is None else image.pixels

    return GoodImages(features, names, learnt, held_out, pixels, turned, [file.path for file in files]), files


def _group_alike(job: Job, features: Features, files: Sequence[ImageFile], names: Sequence[str]) -> None:
    """Find the images of each product that show nearly the same, and tell of them."""
    for name in dict.fromkeys(names):
        groups = near_copies(features, [i for i, other in enumerate(names) if other == name])
        features.group(groups)
        if groups:
            job.progress.alike(name, [[files[i] for i in group] for group in groups])


def _split(features: Features, names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """The images to learn from, and those to hold out: images that show nearly the same are on one side."""
    firsts = features.first_of_alike(range(len(names)))
    sides = split([names[i] for i in firsts], seed)
    learnt, held_out = (sorted(i for place in side for i in features.alike(firsts[place])) for side in sides)
    return learnt, held_out


def remembered(
    job: Job, good: GoodImages, files: Sequence[ImageFile], carried: int = 0
) -> tuple[GoodImages, dict[str, RememberedViews]]:
    """Build the memories of the images of each class; tell which new images are least like the others, and leave out as
    many as the recipe says."""
    recipe = job.recipe
    if recipe.evidence == "decoder" and not recipe.drop_suspects:
        return good, {}
    memories = {name: _memory(job, good, name, carried) for name in _new_names(good, carried)}
    suspects = suspects_of(good.from_number(carried), memories, job.run.device)
    dropped = suspects if recipe.drop_suspects == "auto" else suspects[: recipe.drop_suspects]
    job.progress.suspects([_named(suspect, files, carried) for suspect in suspects], len(dropped))
    left = without(good, [suspect.number for suspect in dropped])
    changed = dict.fromkeys(good.names[suspect.number] for suspect in dropped)
    if recipe.evidence == "decoder":
        return left, {}  # they only told what is odd
    return left, memories | {name: _memory(job, left, name, carried) for name in changed}


def _new_names(good: GoodImages, carried: int) -> list[str]:
    new = good.from_number(carried)
    return list(dict.fromkeys(new.names[i] for i in sorted({*new.train, *new.held_out})))


def _named(suspect: Suspect, files: Sequence[ImageFile], carried: int) -> tuple[ImageFile, float, tuple[float, float]]:
    return files[suspect.number - carried], suspect.oddness, suspect.place


def _memory(job: Job, good: GoodImages, name: str, carried: int) -> RememberedViews:
    images = [i for i in good.of(name) if i >= carried]
    return remember(job, good, images, job.products[name].learnt.memories)


def within_minutes(job: Job, good: GoodImages, seconds: float) -> Job:
    """The training with what its time limit leaves, once encoding has taken some seconds."""
    run = job.run
    if run.resume and run.checkpoint is not None and run.checkpoint.exists():
        return job  # it goes on as the stopped run began
    encoded = len(good.names) * good.features.views
    return job.by(limited(job.recipe, encoded, len(set(good.names)), seconds, tile_passes(job, good)))


def train(job: Job, good: GoodImages, batches: Sequence[int]) -> TrainingLoop | None:
    """Train the decoder; nothing where the memory is all evidence."""
    if job.recipe.evidence == "memory":
        return None
    loop = TrainingLoop(job.network.detector, good.features, batches, job.recipe, job.run)
    loop.train(_on_whole(job.progress, loop, job.recipe.folds, 0))
    return loop


def _folds(job: Job, good: GoodImages, loop: TrainingLoop) -> list[Trained]:
    """A shorter training for each fold, on the others alone.

    Finished folds are in the checkpoint, so that a stopped training resumes with the next fold.
    """
    recipe, steps, run = loop.recipe, _fold_steps(loop), job.run
    parts = folds_of(good.names, recipe.folds, recipe.seed)
    folds = []
    for number, part in enumerate(parts):
        torch.manual_seed(recipe.seed + 1 + number)
        network = new_network(job.network.settings, job.network.encoder).to(run.device)
        network = replace(network, precision=run.precision)
        copies = {copy for i in part for copy in good.features.alike(i)}
        learnt = sorted(set(good.train) - copies) or sorted(set(good.train) - set(part))
        if number < len(loop.folds):
            network.detector.load_state_dict(loop.folds[number])
        else:
            if run.checkpoint is not None:
                loop.save(run.checkpoint)
            if run.checkpoint_activations:
                recompute_activations(network.detector)
            short = TrainingLoop(network.detector, good.features, learnt, recipe, replace(run, checkpoint=None))
            short.recipe, short.steps = replace(short.recipe, max_minutes=None), steps
            short.train(_on_whole(job.progress, loop, recipe.folds, loop.steps + number * steps))
            loop.folds.append({name: value.detach().cpu() for name, value in network.detector.state_dict().items()})
        network.detector.eval()
        folds.append(Trained(network, learnt, frozenset(part)))
    return folds


def _on_whole(progress: Progress, loop: TrainingLoop, folds: int, before: int) -> OnStep:
    """Reports steps of one training to `progress` as steps of the whole work: the model's own, then the folds'."""

    def on_step(step: int, steps: int, loss: float, images: int) -> None:
        progress.step(before + step, loop.steps + folds * _fold_steps(loop), loss, images)

    return on_step


def _fold_steps(loop: TrainingLoop) -> int:
    return math.ceil(loop.steps / 2)


def learnt_from(job: Job, good: GoodImages, name: str) -> int:
    """How many images a product is learnt from: a memory learns from held-out ones as well."""
    return len(good.trained_of(name) if job.recipe.evidence == "decoder" else good.of(name))


def recognising(job: Job, good: GoodImages, record: ModelRecord) -> ModelRecord:
    """The record with what distinguishes its products, and how far good images of each lie from it."""
    recogniser, farthest = recogniser_of(job, good)
    measured: list[Product] = []
    for name, distance in farthest.items():
        product = record.products[name]
        if product.calibration is not None:
            measured.append(replace(product, calibration=replace(product.calibration, farthest=distance)))
    return replace(record.with_products(*measured), recogniser=recogniser)


def new_examples(job: Job, good: GoodImages, carried: int = 0) -> tuple[Example, ...]:
    """Some of the new images, as the decoder sees them, to be carried by the model."""
    held_out = set(good.held_out)
    kept = []
    for i in examples_to_keep(good.names, good.train, good.held_out):
        path = good.paths[i]
        if i < carried or path is None:
            continue
        name = good.names[i]
        carried_image = example(path, name, i in held_out, job.preparation.wanted(name, size=job.map_size(name)))
        kept += [] if carried_image is None else [carried_image]
    return tuple(kept)
