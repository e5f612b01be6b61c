"""mambaad fit."""

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from mambaad_cli import MambaADError, distributed
from mambaad_cli.cli import fit_options as of
from mambaad_cli.cli import running
from mambaad_cli.cli.app import INSPECT, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Device,
    Ignore,
    MaxFalseReject,
    ModelFile,
    Precision,
    Roi,
    RoiDir,
    Runtime,
    given,
    parse_size,
    pick_precision,
)
from mambaad_cli.cli.output import (
    check_writable,
    duration,
    note,
    print_summary,
    print_thresholds,
    warn,
    warn_of_squeezing,
)
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.cli.fit_progress import FitProgress
    from mambaad_cli.inspection.model_record import ModelRecord
    from mambaad_cli.inspection.teaching import Lectured
    from mambaad_cli.training.request import FitRequest

OF_THE_MODEL = (
    "preset", "fast", "detector", "encoder", "encoder_weights", "res", "pixels", "detail", "evidence", "letterbox",
    "scan", "directions", "ssm", "local_branches", "tiles", "tile_size", "scale",
)  # fmt: skip
NOT_TO_ADD = {
    "folds": "--folds: a product is added by one training, and its threshold comes from held-out images",
    "keep_examples": "--no-examples: without its images a product would be forgotten when the next one is added",
}
DEFAULT_TILE = "384"
MOST_NAMED = 5  # suspects that are named without --suspects
FROM_THE_STOPPED_RUN = ("epochs", "max_minutes", "batch", "lr")


@command(
    panel=INSPECT, epilog=examples("mambaad fit ./good/", "mambaad fit ./good/ --max-minutes 2 -m parts.safetensors")
)
def fit(
    ctx: typer.Context,
    good: of.Good,
    model: ModelFile = DEFAULT_MODEL,
    preset: of.Preset = "small",
    fast: of.Fast = False,
    max_minutes: of.MaxMinutes = None,
    resume: of.Resume = False,
    add: of.Add = False,
    overwrite: of.Overwrite = False,
    as_json: AsJson = False,
    res: of.Res = None,
    pixels: of.Pixels = None,
    letterbox: of.Letterbox = False,
    roi: Roi = None,
    ignore: Ignore = None,
    roi_dir: RoiDir = None,
    flips: of.Flips = False,
    suspects: of.Suspects = None,
    drop_suspects: of.DropSuspects = "0",
    max_false_reject: MaxFalseReject = None,
    folds: of.Folds = 0,
    bad: of.Bad = None,
    masks: of.Masks = None,
    tiles: of.Tiles = False,
    tile_size: of.TileSize = None,
    scale: of.Scale = None,
    detail: of.Detail = None,
    epochs: of.Epochs = None,
    batch: of.Batch = None,
    lr: of.LearningRate = None,
    seed: of.Seed = 42,
    keep_examples: of.KeepExamples = True,
    detector: of.Detector = "mambaad",
    encoder: of.Encoder = None,
    encoder_weights: of.EncoderWeights = None,
    evidence: of.Evidence = None,
    scan: of.Scan = None,
    directions: of.Directions = None,
    ssm: of.Ssm = None,
    local_branches: of.LocalBranches = None,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    cache_dtype: of.CacheDtype = "auto",
    cache_memory: of.CacheMemory = 4.0,
    checkpoint_activations: of.CheckpointActivations = False,
) -> None:
    """Train one model on a folder of good images, or with --add teach it new products."""
    from mambaad_cli.cli.fit_progress import FitProgress
    from mambaad_cli.cli.learn import tell
    from mambaad_cli.training import adding
    from mambaad_cli.training import fit as training
    from mambaad_cli.training.good_images import GoodFiles, good_images
    from mambaad_cli.training.recipe import recipe_of
    from mambaad_cli.training.request import FitRequest

    request = FitRequest(
        good,
        preset=_preset(ctx, preset, fast, detector),
        encoder=encoder,
        encoder_weights=encoder_weights,
        size=None if res is None else parse_size(res),
        pixels=pixels,
        detail=detail,
        letterbox=letterbox,
        tile_size=parse_size(tile_size or DEFAULT_TILE, "--tile-size") if tiles or tile_size is not None else None,
        scale=scale,
        inside=running.wishes(roi),
        ignored=running.wishes(ignore),
        masks=running.masks_in(roi_dir),
        evidence=evidence,
        scan=scan,
        directions=directions,
        ssm=ssm,
        local_branches=local_branches,
        flips=flips or None,
        folds=folds,
        epochs=epochs,
        max_minutes=max_minutes,
        max_false_reject=max_false_reject,
        batch=batch,
        lr=lr,
        seed=seed,
        drop_suspects=parse_drop(drop_suspects),
        keep_examples=keep_examples,
        device=device,
        precision=pick_precision(precision),
        runtime=runtime,
        cache_dtype=cache_dtype,
        cache_gigabytes=cache_memory,
        checkpoint_activations=checkpoint_activations,
        checkpoint=model.parent / f".{model.name}.checkpoint",  # with_name fails for the folder ".", refused below
        resume=resume,
    )
    known = _known(ctx, model, device) if add else None
    if known is None:
        _check_usage(request)
    _check_bad(request, bad, masks, adding=known is not None)
    if distributed.rank() == 0:
        check_writable(model)
    unread: Counter[str] = Counter()
    files, classes = good_images(good, unread)
    running.warn_of_unread(unread)
    if known is None and not overwrite and distributed.rank() == 0:
        _check_products(model, set(classes))
    goods = GoodFiles(files, classes, request.inside, request.ignored, request.masks)
    _say_what_resume_does(ctx, request, model)
    with FitProgress(len(files)) as progress:
        if known is None:
            record = training.fit(goods, request.settings(), request.recipe(), request.run(), progress)
        else:
            recipe = request.recipe_for_adding(recipe_of(known))
            record = adding.add(known, goods, recipe, request.run(), progress)
    _tell_alike(progress, record)
    _tell_suspects(progress, suspects)
    if known is None and request.recipe().evidence == "both" and record.recipe.get("evidence") == "memory":
        warn(f"{max_minutes:g} minutes leave no time to train the decoder: the memory alone finds the defects")
    if bad is not None and distributed.rank() == 0:
        record, lectured = _taught(record, request, bad, masks)
        if not as_json:
            tell(lectured)
    _finish(record, model, request, progress, as_json)


def parse_drop(text: str) -> int | Literal["auto"]:
    """
    >>> parse_drop("auto"), parse_drop("3")
    ('auto', 3)
    """
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdecimal()):
        raise typer.BadParameter(f"{text!r}: expected a number of images, or auto", param_hint="--drop-suspects")
    return int(text)


def _tell_suspects(progress: "FitProgress", sheet: Path | None) -> None:
    """Name the good images that are least like the others, and draw a contact sheet of them where it is asked for."""
    if distributed.rank() > 0:
        return
    for number, (file, oddness, _) in enumerate(progress.odd):
        done = "left out" if number < progress.dropped else "look at it"
        if number < MOST_NAMED or number < progress.dropped:
            warn(f"{file.path}: unlike the other good images ({oddness:.1f} deviations): {done}")
    if len(progress.odd) > max(MOST_NAMED, progress.dropped):
        warn(f"and {len(progress.odd) - max(MOST_NAMED, progress.dropped)} more: --suspects DIR shows all")
    for name, images in progress.not_setting.items():
        if images:
            files = ", ".join(f"{file.path} ({oddness:.1f} deviations)" for file, oddness, _ in images)
            warn(f"{name}: these images lie above the threshold, look at them: {files}")
    seen = {file.path for file, _, _ in progress.odd}
    passed_over = [image for images in progress.not_setting.values() for image in images if image[0].path not in seen]
    if sheet is not None and (progress.odd or passed_over):
        from mambaad_cli.inspection.overlays import write_suspects

        note(f"mambaad: wrote {shown(write_suspects([*progress.odd, *passed_over], sheet))}")


def _tell_alike(progress: "FitProgress", record: "ModelRecord") -> None:
    """Say which good photos show nearly the same, and how they count."""
    for name, groups in progress.same.items():
        largest, photos = max(groups, key=len), sum(map(len, groups))
        if len(largest) == record.products[name].images:
            warn(
                f"{name}: all {photos} photos show nearly the same: nothing tells how good parts vary; add photos of "
                "other good parts"
            )
        else:
            pair = " and ".join(str(file.path) for file in largest[:2])
            warn(f"{name}: {photos} photos show nearly the same, such as {pair}: they count as {len(groups)}")


def _taught(
    record: "ModelRecord", request: "FitRequest", bad: Path, masks: Path | None
) -> "tuple[ModelRecord, dict[str, Lectured]]":
    """The record that knows the defects of a folder, and what that does."""
    from mambaad_cli.cli.learn import lessons_in
    from mambaad_cli.inspection.teaching import taught_record
    from mambaad_cli.inspection.torch_scorer import TorchScorer

    scorer = TorchScorer(record, request.runtime, request.masks)
    lessons = lessons_in(scorer, bad, None, masks, None, lambda file, why: warn(f"{file.path}: {why}"))
    return taught_record(record.to("cpu"), lessons)


def _known(ctx: typer.Context, model: Path, device: str) -> "ModelRecord":
    """The model that products are to be added to. Refuses options that would have no effect."""
    if fixed := given(ctx, OF_THE_MODEL):
        raise typer.BadParameter(f"{', '.join(fixed)}: the model has its own already", param_hint="--add")
    for name, why in NOT_TO_ADD.items():
        if given(ctx, (name,)):
            raise typer.BadParameter(why, param_hint="--add")
    return running.open_model(model, device).changeable(model).record


def _check_usage(request: "FitRequest") -> None:
    """Raises BadParameter for options that do not go together, or would have no effect."""
    try:
        request.check()
    except MambaADError as error:
        raise typer.BadParameter(str(error)) from None


def _check_bad(request: "FitRequest", bad: Path | None, masks: Path | None, adding: bool) -> None:
    """Raises BadParameter where known defects could not be learnt: before the training, not after it."""
    if bad is None:
        if masks is not None:
            raise typer.BadParameter("masks mark defects: give their folder with --bad", param_hint="--masks")
        return
    if not adding and request.recipe().evidence == "decoder":
        raise typer.BadParameter("a decoder alone learns no defects: leave out --evidence decoder", param_hint="--bad")
    if not adding and request.tile_size is not None:
        raise typer.BadParameter("a model with tiles learns no defects: leave out --tiles", param_hint="--bad")
    running.find([bad])
    running.masks_in(masks)


def _check_products(model: Path, new: set[str]) -> None:
    """Raises MambaADError where the model file knows products, and none of the new ones."""
    from mambaad_cli.inspection import store

    try:
        known = [product.name for product in store.read_facts(model).products] if model.exists() else []
    except MambaADError:
        return  # no model that could be lost
    if known and not new & set(known):
        names = ", ".join(map(shown, known[:3])) + (" …" if len(known) > 3 else "")
        raise MambaADError(
            f"{shown(model)} knows other products ({names}): name another file with --model, add to it with --add, or "
            "replace it with --overwrite"
        )


def _preset(ctx: typer.Context, preset: str, fast: bool, detector: str) -> Any:
    """The preset of the network and its recipe: a baseline has its own."""
    if fast and given(ctx, ("preset", "detector")):
        raise typer.BadParameter("it is a preset of its own: leave out --preset and --detector", param_hint="--fast")
    if detector == "mambaad":
        return "fast" if fast else preset
    if given(ctx, ("preset",)):
        raise typer.BadParameter(f"--detector {detector} has a recipe of its own", param_hint="--preset")
    return detector


def _say_what_resume_does(ctx: typer.Context, request: "FitRequest", model: Path) -> None:
    if not request.resume or request.checkpoint is None:
        return
    if not request.checkpoint.exists():
        warn(f"no checkpoint of a stopped run beside {model}: starting anew")
    elif ignored := given(ctx, FROM_THE_STOPPED_RUN):
        warn(f"--resume goes on as the stopped run began: {', '.join(ignored)} not used")


def _finish(record: "ModelRecord", path: Path, request: "FitRequest", progress: "FitProgress", as_json: bool) -> None:
    """Write the model and say what was done, in the first process."""
    from mambaad_cli.inspection import store

    if distributed.rank() > 0:
        return
    store.save(record.to("cpu"), path)
    if request.checkpoint is not None:
        request.checkpoint.unlink(missing_ok=True)
    skipped = USER_CAN_MEND if progress.skipped else 0
    if as_json:
        print_summary(record.products, path)
        raise typer.Exit(skipped)
    for name, product in record.products.items():
        unseen = len(product.scores) if product.promising and not product.learnt.memories else 0
        held_out = f", {unseen} held out for the threshold" if unseen else ""
        typer.echo(f"{name}: learnt from {product.images} good images{held_out}")
    if progress.losses:
        first, last = progress.losses[0], progress.losses[-1]
        typer.echo(f"{len(progress.losses)} steps in {duration(progress.seconds)}, loss {first:.3f} → {last:.3f}")
    print_thresholds(record.products)
    warn_of_squeezing(record)
    typer.echo(f"wrote {shown(path)} ({path.stat().st_size / 1e6:.1f} MB); score images with")
    typer.echo(f"    mambaad score FOLDER{'' if path == DEFAULT_MODEL else f' --model {shlex.quote(shown(path))}'}")
    raise typer.Exit(skipped)
