"""Good images in, a calibrated model out: the same steps for a new model and for products added to a model."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.roi import regions_of_interest
from mambaad_cli.inspection.fitted_model import FittedModel, new_model
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model import STRIDES
from mambaad_cli.model.encoder import pretrained_encoder
from mambaad_cli.model.settings import Settings, scaled_size, seen_by
from mambaad_cli.training.budget import limited
from mambaad_cli.training.describe import describe
from mambaad_cli.training.examples import example, examples_to_keep, pixels_of, read_as_seen
from mambaad_cli.training.features import Features, Views, features_of_examples, features_of_files
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.loop import OnStep, TrainingLoop, fingerprint, recompute_activations
from mambaad_cli.training.memories import Looks, remember
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions, as_dict, recipe_of
from mambaad_cli.training.sizes import median_shape, own_size, shapes_of
from mambaad_cli.training.splits import folds_of, split
from mambaad_cli.training.suspects import suspects_of, without
from mambaad_cli.training.turns import turned_classes

LEAST_IMAGES = 3


def fit(
    files: Sequence[ImageFile],
    classes: Sequence[str],
    settings: Settings,
    recipe: Recipe,
    run: RunOptions | None = None,
    progress: Progress | None = None,
) -> FittedModel:
    """Train one model on good images by a recipe; `classes` holds one class name for each file.

    A checkpoint is written every half minute. A resumed training ends with the same weights as one that never stopped.

    With folds no image is lost to the threshold: it comes from that many shorter trainings, each of which scores the
    images that it did not see, and the model itself learns from all images (cross-conformal prediction: Vovk, Annals of
    Mathematics and Artificial Intelligence 2015). Its promise is then only nearly exact.

    Under torchrun each process trains on its share of each batch, with the same result as one process except for
    rounding. Only the first one writes checkpoints and calibrates; the models of the others have no scores.

    Raises MambaADError for fewer than three readable images, for a checkpoint of another training, and where the
    temporary folder is too small for the features.
    """
    run = run or RunOptions()
    if recipe.folds and settings.tiles:
        raise MambaADError("--folds and --tiles do not go together: tiles hold photos out for the threshold")
    if recipe.folds and recipe.evidence == "memory":
        raise MambaADError("--folds are for what is trained: a memory alone compares each image with the others")
    state = None if run.encoder_weights is None else read_state_dict(run.encoder_weights)
    torch.manual_seed(recipe.seed)
    encoder = pretrained_encoder(settings.encoder, STRIDES[settings.detector], state)
    model = new_model(seen_by(settings, recipe.evidence), encoder).to(run.device)
    return _teach(model, files, classes, recipe, run, progress or Progress())


def add(
    model: FittedModel,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    recipe: Recipe | None = None,
    run: RunOptions | None = None,
    progress: Progress | None = None,
) -> FittedModel:
    """Teach a fitted model new products, or more images of those it knows, by its own recipe unless one is given.

    Half of what it trains on are the images of the other products that it carries, so that these are not forgotten
    (rehearsal: Robins, Connection Science 1995). Thresholds are set anew from images that it carries. A product
    of which it carries none that it was never trained on, because it was fitted with folds or from very few images,
    has a threshold that promises nothing; a decoder alone keeps the earlier one.

    Raises MambaADError for a model without examples, and for fewer than three readable images.
    """
    if not model.examples:
        raise MambaADError("the model carries no examples of what it knows (--no-examples): fit all products anew")
    if model.settings.tiles:
        raise MambaADError("a model with tiles keeps no photos at their own resolution: fit all products anew")
    if distributed.world() > 1:
        raise MambaADError("--add runs in one process: leave out torchrun")
    run, own = run or RunOptions(), recipe_of(model)
    recipe = recipe or own.for_adding()
    torch.manual_seed(recipe.seed)
    grown = _teach(model.to(run.device), files, classes, recipe, run, progress or Progress())
    grown.recipe = as_dict(replace(own, flips=recipe.flips, max_false_reject=recipe.max_false_reject))
    return grown


def _teach(
    model: FittedModel,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    recipe: Recipe,
    run: RunOptions,
    progress: Progress,
) -> FittedModel:
    """Encode the images, split them, train, compute what describes good images, and keep examples."""
    began = time.monotonic()
    model.precision, model.encoder_runtime = run.precision, run.runtime
    found = shapes_of(files, classes)
    photos = {name: median_shape(shapes) for name, shapes in found.items()}
    model.rois |= regions_of_interest(run.inside, run.ignored, photos)
    model.masks, model.own_masks = run.masks, model.own_masks or run.masks is not None
    for name, shapes in found.items():
        model.photos.setdefault(name, photos[name])
        if model.settings.own_aspect:
            size = own_size(shapes, math.prod(model.settings.size))
            model.sizes.setdefault(name, scaled_size(size, model.settings.detail))
    if run.checkpoint_activations:
        recompute_activations(model.detector)
    mark = "" if run.checkpoint is None else fingerprint(model, files, classes, recipe)
    good, readable = _good_images(model, files, classes, recipe, run, progress)
    rehearsed = len(model.examples)
    two = model.settings.two_looks
    good, memories = _remembered(good, [files[i] for i in readable], rehearsed, two, recipe, run, progress)
    stopped_before = run.resume and run.checkpoint is not None and run.checkpoint.exists()
    if not stopped_before:
        encoded = len(good.names) * good.features.views
        recipe = limited(recipe, encoded, len(set(good.names)), time.monotonic() - began)
    loop = None
    if recipe.evidence != "memory":
        batches = _balanced(good.train, rehearsed) if rehearsed else good.train
        loop = TrainingLoop(model.detector, good.features, batches, recipe, run, mark)
        with distributed.joined(run.device):
            loop.train(_on_whole(progress, loop, recipe.folds, 0))
    if distributed.rank() > 0:
        return model

    model.max_false_reject = recipe.max_false_reject
    trained = recipe if loop is None else loop.recipe
    free = replace(trained, max_false_reject=recipe.max_false_reject, keep_examples=recipe.keep_examples)
    model.recipe = as_dict(free)
    learnt = good.train if recipe.evidence == "decoder" else [*good.train, *good.held_out]
    model.trained_on = dict(Counter(model.trained_on) + Counter(good.names[i] for i in learnt if i >= rehearsed))
    describe(model, good, recipe, run, memories)
    if recipe.folds and loop is not None:
        model.scores = _cross_fitted_scores(model, good, loop, run, progress, memories)
        model.held_out = set(model.scores)
    if recipe.keep_examples:
        _keep_examples(model, good, [files[i] for i in readable])
    return model


def _good_images(
    model: FittedModel,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    recipe: Recipe,
    run: RunOptions,
    progress: Progress,
) -> tuple[GoodImages, list[int]]:
    """The images that the model carries and the new ones, split; and the indices of the files that could be read."""
    carried = len(model.examples)

    turned = turned_classes(model, files, classes, recipe.seed) if recipe.turns else frozenset()

    def views_for(images: int) -> Views:
        number = recipe.views // max(1, carried + images)
        if recipe.evidence == "memory" and not turned:
            number = 1  # a memory gains nothing from views that are only slightly moved
        return Views(max(2 if recipe.flips else 1, number), recipe.flips, turned)

    new, readable = features_of_files(model, files, classes, run, progress, views_for)
    if len(readable) < LEAST_IMAGES:
        raise MambaADError(f"{len(readable)} readable images: at least {LEAST_IMAGES} good images are needed to fit")
    names = [classes[i] for i in readable]
    train, held_out = (list(range(len(names))), []) if recipe.folds else split(names, recipe.seed)
    if not carried:
        features: Features = new
    else:
        features = features_of_examples(model, run, Views(new.views, recipe.flips, turned)).and_those_of(new)
        names = [one.class_name for one in model.examples] + names
        unseen = [i for i, one in enumerate(model.examples) if one.held_out]
        train = sorted(set(range(carried)) - set(unseen)) + [carried + i for i in train]
        held_out = unseen + [carried + i for i in held_out]

    def pixels(i: int) -> Tensor | None:
        if i < carried:
            return pixels_of(model.examples[i], model.size_of(names[i]))
        one = read_as_seen(files[readable[i - carried]].path, model.wanted(model.size_of(names[i]), names[i]))
        return None if one is None else one.pixels

    paths = [files[i].path for i in readable] if not carried else ()
    return GoodImages(features, names, train, held_out, pixels, turned, paths), readable


def _remembered(
    good: GoodImages,
    files: Sequence[ImageFile],
    carried: int,
    two: bool,
    recipe: Recipe,
    run: RunOptions,
    progress: Progress,
) -> tuple[GoodImages, dict[str, Looks]]:
    """Build the memories of the images of each class; tell which new images are least like the others, and leave out as
    many as the recipe says."""
    if recipe.evidence == "decoder" and not recipe.drop_suspects:
        return good, {}
    memories = {name: _memory(good, name, two, recipe, run) for name in dict.fromkeys(good.names)}
    found = [one for one in suspects_of(good, memories, run) if one.number >= carried]
    dropped = found if recipe.drop_suspects == "auto" else found[: recipe.drop_suspects]
    progress.suspects([(files[one.number - carried], one.oddness, one.place) for one in found], len(dropped))
    left = without(good, [one.number for one in dropped])
    changed = dict.fromkeys(good.names[one.number] for one in dropped)
    return left, memories | {name: _memory(left, name, two, recipe, run) for name in changed}


def _memory(good: GoodImages, name: str, two: bool, recipe: Recipe, run: RunOptions) -> Looks:
    own = [i for i in sorted({*good.train, *good.held_out}) if good.names[i] == name]
    return remember(good, own, two, recipe, run)


def _balanced(train: Sequence[int], carried: int) -> list[int]:
    """The images to train on, where the first `carried` are old: as many old as new, so the fewer are repeated.

    >>> _balanced([0, 1, 2, 3, 4], 3)
    [0, 1, 2, 3, 4, 3]
    """
    old, new = [i for i in train if i < carried], [i for i in train if i >= carried]
    longest = max(len(old), len(new))
    return [group[i % len(group)] for group in (old, new) for i in range(longest)]


def _on_whole(progress: Progress, loop: TrainingLoop, folds: int, before: int) -> OnStep:
    """Reports steps of one training to `progress` as steps of the whole work: the model's own, then the folds'."""

    def on_step(step: int, steps: int, loss: float, images: int) -> None:
        progress.step(before + step, loop.steps + folds * _fold_steps(loop), loss, images)

    return on_step


def _fold_steps(loop: TrainingLoop) -> int:
    return math.ceil(loop.steps / 2)


def _cross_fitted_scores(
    model: FittedModel,
    good: GoodImages,
    loop: TrainingLoop,
    run: RunOptions,
    progress: Progress,
    memories: Mapping[str, Looks],
) -> dict[str, list[float]]:
    """Scores of all images, by class, each from a model that was trained on the other folds alone.

    Finished folds are in the checkpoint, so that a stopped training resumes with the next fold.
    """
    recipe, steps = loop.recipe, _fold_steps(loop)
    parts = folds_of(good.names, recipe.folds, recipe.seed)
    for fold in range(len(loop.fold_scores), len(parts)):
        if run.checkpoint is not None:
            loop.save(run.checkpoint)
        torch.manual_seed(recipe.seed + 1 + fold)
        train = sorted(set(range(len(good.names))) - set(parts[fold]))
        detector = new_model(model.settings, model.encoder).detector.to(run.device)
        other = replace(model, detector=detector, scores={}, statistics={})
        short = TrainingLoop(detector, good.features, train, recipe, replace(run, checkpoint=None))
        short.recipe, short.steps = replace(short.recipe, max_minutes=None), steps
        short.train(_on_whole(progress, loop, recipe.folds, loop.steps + fold * steps))
        describe(other, good._replace(train=train, held_out=parts[fold]), recipe, run, memories, scored=0)
        loop.fold_scores.append(other.scores)
    scores: dict[str, list[float]] = {}
    for found in loop.fold_scores:
        for name, own in found.items():
            scores.setdefault(name, []).extend(own)
    return scores


def _keep_examples(model: FittedModel, good: GoodImages, files: Sequence[ImageFile]) -> None:
    """Add some of the new images to those that the model carries."""
    carried, held_out = len(model.examples), set(good.held_out)
    for i in examples_to_keep(good.names, good.train, good.held_out):
        if i < carried:
            continue
        name = good.names[i]
        one = example(files[i - carried].path, name, i in held_out, model.wanted(model.size_of(name), name))
        if one is not None:
            model.examples.append(one)
