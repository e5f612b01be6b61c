"""mambaad fit."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mambaad_cli import distributed
from mambaad_cli.cli import running
from mambaad_cli.cli.app import USER_CAN_MEND, app, examples
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
from mambaad_cli.cli.output import check_writable, duration, print_summary, print_thresholds, warn, warn_of_squeezing
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.cli.fit_progress import FitProgress
    from mambaad_cli.inspection.fitted_model import FittedModel
    from mambaad_cli.model.settings import Settings
    from mambaad_cli.training.recipe import Recipe, RunOptions

OF_THE_MODEL = (
    "preset", "detector", "encoder", "encoder_weights", "res", "pixels", "detail", "evidence", "letterbox", "scan",
    "directions", "local_branches", "tiles", "tile_size", "scale",
)  # fmt: skip
NOT_TO_ADD = {
    "folds": "--folds: a product is added by one training, and its threshold comes from held-out images",
    "keep_examples": "--no-examples: without its images a product would be forgotten when the next one is added",
}
MOST_NAMED = 5  # suspects that are named without --suspects
FROM_THE_STOPPED_RUN = ("epochs", "max_minutes", "batch", "lr")


@app.command(epilog=examples("mambaad fit ./good/", "mambaad fit ./good/ --max-minutes 2 --model parts.safetensors"))
def fit(
    ctx: typer.Context,
    good: Annotated[Path, typer.Argument(help="Folder of good images; its sub-folders are product classes.")],
    model: ModelFile = DEFAULT_MODEL,
    preset: Annotated[
        Literal["small", "paper"],
        typer.Option(help="small: for laptops, takes minutes. paper: as published, takes hours."),
    ] = "small",
    detector: Annotated[
        Literal["mambaad", "rd4ad", "uniad", "memory"],
        typer.Option(help="rd4ad, uniad and memory (PatchCore-style, no training): baselines with their own recipes."),
    ] = "mambaad",
    encoder: Annotated[
        str | None, typer.Option(help="Any timm model with feature maps at strides 4, 8 and 16.")
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Local safetensors or pth file with its weights.")
    ] = None,
    res: Annotated[
        str | None,
        typer.Option(
            help="One size for all products in pixels: 256 or 320x192 (width x height). Else each has its own."
        ),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            min=64, help="Budget of a product's own size: as many pixels as a square of this side, in its aspect."
        ),
    ] = None,
    detail: Annotated[
        float | None,
        typer.Option(min=1, max=4, help="The memory also looks closely: at images so many times larger, along a side."),
    ] = None,
    evidence: Annotated[
        Literal["decoder", "memory", "both"] | None,
        typer.Option(help="What finds defects: the Mamba decoder, a memory of good patches, or both (small)."),
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Also look at photos in tiles, at their own resolution: for small defects.")
    ] = False,
    tile_size: Annotated[
        str | None, typer.Option(help="Size of the tiles in pixels: 384 (default), or 512x256 (width x height).")
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.01, max=4, help="Photos are scaled by this factor before tiles are cut from them.")
    ] = 1.0,
    letterbox: Annotated[
        bool, typer.Option("--letterbox", help="Keep each image's aspect ratio; the padding does not count.")
    ] = False,
    roi: Roi = None,
    ignore: Ignore = None,
    roi_dir: RoiDir = None,
    flips: Annotated[bool, typer.Option("--flips", help="Good parts may also be mirrored.")] = False,
    folds: Annotated[
        int,
        typer.Option(
            min=0, help="Learn from all images; the threshold comes from this many additional, shorter trainings."
        ),
    ] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each image is seen.")] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes that the whole fit takes, about. Too few to train: the memory alone."),
    ] = None,
    max_false_reject: MaxFalseReject = None,
    scan: Annotated[
        Literal["sweep", "scan", "zorder", "zigzag", "hilbert"],
        typer.Option(help="Order in which the selective scan visits the positions; scan is the boustrophedon."),
    ] = "hilbert",
    directions: Annotated[
        int | None,
        typer.Option(help="Directions of that order: 2, 4 or 8; or 6, the distinct ones of hilbert and scan."),
    ] = None,
    local_branches: Annotated[bool, typer.Option(help="Use the convolutions beside the selective scans.")] = True,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-9, max=1e3, help="Learning rate.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="The same seed on the same machine gives the same model.")
    ] = 42,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    cache_dtype: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Type of the encoder's cached features; bf16 takes half the space.")
    ] = "fp32",
    cache_memory: Annotated[
        float,
        typer.Option(min=0, help="GB of features kept in memory; larger ones go to a file in the temporary folder."),
    ] = 4.0,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Train in less memory, but slower.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint of a stopped run.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Teach the products to the existing model.")] = False,
    suspects: Annotated[
        Path | None, typer.Option(help="Folder for a contact sheet of the images that are least like the others.")
    ] = None,
    drop_suspects: Annotated[
        str, typer.Option(metavar="N|auto", help="Leave out so many of them, or all that look odd.")
    ] = "0",
    keep_examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Keep some of the images in the model file, for --add.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train one model on a folder of good images, or with --add teach it new products."""
    from mambaad_cli.cli.fit_progress import FitProgress
    from mambaad_cli.training import fit as training
    from mambaad_cli.training.good_images import good_images
    from mambaad_cli.training.recipe import RunOptions

    if res is not None and (unfit := given(ctx, ("pixels", "detail"))):
        raise typer.BadParameter(f"{', '.join(unfit)}: only without --res")
    size = None if res is None else parse_size(res)
    if folds == 1 or (folds and distributed.world() > 1):
        raise typer.BadParameter("expected 2 or more, and no torchrun", param_hint="--folds")
    known = _known(ctx, model, device) if add else None
    files, classes = good_images(good)
    asked: dict[str, Any] = {
        name: value
        for name, value in {"epochs": epochs, "max_minutes": max_minutes, "batch": batch, "lr": lr}.items()
        if value is not None
    }
    asked |= {"seed": seed, "drop_suspects": parse_drop(drop_suspects)}
    if known is None:
        asked |= {"flips": flips, "folds": folds, "keep_examples": keep_examples, "max_false_reject": max_false_reject}
    else:
        asked |= {"flips": True} if flips else {}
        asked |= {"max_false_reject": max_false_reject} if given(ctx, ("max_false_reject",)) else {}
    if distributed.rank() == 0:
        check_writable(model)
    run = RunOptions(
        distributed.pick_device(device),
        pick_precision(precision),
        encoder_weights,
        cache_dtype,
        int(cache_memory * 1e9),
        checkpoint_activations,
        checkpoint=model.with_name(f".{model.name}.checkpoint"),
        resume=resume,
        inside=running.wishes(roi),
        ignored=running.wishes(ignore),
        masks=running.masks_in(roi_dir),
        runtime=runtime,
    )
    name = preset if detector == "mambaad" else detector
    network = {"order": scan, "directions": directions, "local_branches": local_branches}
    settings, recipe = _chosen(name, network if detector == "mambaad" else {})
    settings = replace(settings, encoder=encoder or settings.encoder, letterbox=letterbox)
    if evidence is not None:
        recipe = recipe.showing(evidence)
    settings = _sized(settings, size, pixels, detail)
    if tiles or tile_size is not None or given(ctx, ("scale",)):
        settings = replace(settings, tiles=parse_tile(tile_size or "384"), scale=scale)
    _say_what_resume_does(ctx, run, model)
    with FitProgress(len(files)) as progress:
        if known is None:
            fitted = training.fit(files, classes, settings, replace(recipe, **asked), run, progress)
        else:
            own = training.recipe_of(known).for_adding()
            fitted = training.add(known, files, classes, replace(own, **asked), run, progress)
    _tell_suspects(progress, suspects)
    if recipe.evidence == "both" and fitted.recipe.get("evidence") == "memory":
        warn(f"{max_minutes:g} minutes leave no time to train the decoder: the memory alone finds the defects")
    _finish(fitted, model, run, progress, as_json)


def parse_tile(text: str) -> tuple[int, int]:
    """Height and width of tiles, multiples of the encoder's coarsest stride.

    >>> parse_tile("384"), parse_tile("500x256")
    ((384, 384), (256, 496))
    """
    from mambaad_cli.inspection.tiles import OVERLAP
    from mambaad_cli.model.settings import scaled_size

    size = scaled_size(parse_size(text), 1)
    if min(size) < 2 * OVERLAP:
        raise typer.BadParameter(f"{text!r}: expected at least {2 * OVERLAP} pixels a side", param_hint="--tile-size")
    return size


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
    if distributed.rank() > 0 or not progress.odd:
        return
    for number, (file, oddness, _) in enumerate(progress.odd):
        done = "left out" if number < progress.dropped else "look at it"
        if number < MOST_NAMED or number < progress.dropped:
            warn(f"{file.path}: unlike the other good images ({oddness:.1f} deviations): {done}")
    if len(progress.odd) > max(MOST_NAMED, progress.dropped):
        warn(f"and {len(progress.odd) - max(MOST_NAMED, progress.dropped)} more: --suspects DIR shows all")
    if sheet is not None:
        from mambaad_cli.inspection.overlays import write_suspects

        warn(f"wrote {shown(write_suspects(progress.odd, sheet))}")


def _known(ctx: typer.Context, model: Path, device: str) -> "FittedModel":
    """The model that products are to be added to. Refuses options that would have no effect."""
    if fixed := given(ctx, OF_THE_MODEL):
        raise typer.BadParameter(f"{', '.join(fixed)}: the model has its own already", param_hint="--add")
    for name, why in NOT_TO_ADD.items():
        if given(ctx, (name,)):
            raise typer.BadParameter(why, param_hint="--add")
    return running.load_model(model, device)


def _chosen(preset: str, network: dict[str, Any]) -> "tuple[Settings, Recipe]":
    """The preset's settings and recipe; for a MambaAD with the options of the network that were given."""
    from mambaad_cli.model.scan_orders import directions as walks
    from mambaad_cli.training.recipe import preset as preset_of

    settings, recipe = preset_of(preset)
    if not network:
        return settings, recipe
    options = settings.options | network | {"directions": network["directions"] or settings.options["directions"]}
    walks(
        options["order"], 1, 1, options["directions"]
    )  # refuses now a number of directions that the order does not have
    return replace(settings, options=options), recipe


def _sized(settings: "Settings", res: tuple[int, int] | None, pixels: int | None, detail: float | None) -> "Settings":
    """One size for all products where it was given, and for letterboxes; else as the preset says."""
    if res is not None or settings.letterbox:
        return replace(settings, size=res or (256, 256), own_aspect=False, detail=1.0)
    size = settings.size if pixels is None else (pixels, pixels)
    return replace(settings, size=size, detail=detail or settings.detail)


def _say_what_resume_does(ctx: typer.Context, run: "RunOptions", model: Path) -> None:
    if not run.resume or run.checkpoint is None:
        return
    if not run.checkpoint.exists():
        warn(f"no checkpoint of a stopped run beside {model}: starting anew")
    elif ignored := given(ctx, FROM_THE_STOPPED_RUN):
        warn(f"--resume goes on as the stopped run began: {', '.join(ignored)} not used")


def _finish(fitted: "FittedModel", path: Path, run: "RunOptions", progress: "FitProgress", as_json: bool) -> None:
    """Write the model and say what was done, in the first process."""
    from mambaad_cli.inspection import model_file

    if distributed.rank() > 0:
        return
    model_file.save(fitted.to("cpu"), path)
    if run.checkpoint is not None:
        run.checkpoint.unlink(missing_ok=True)
    skipped = USER_CAN_MEND if progress.skipped else 0
    if as_json:
        print_summary(fitted, path)
        raise typer.Exit(skipped)
    for name, images in fitted.trained_on.items():
        unseen = len(fitted.scores[name]) if name in fitted.held_out and not fitted.memories else 0
        held_out = f", {unseen} held out for the threshold" if unseen else ""
        typer.echo(f"{name}: learnt from {images} good images{held_out}")
    if progress.losses:
        first, last = progress.losses[0], progress.losses[-1]
        typer.echo(f"{len(progress.losses)} steps in {duration(progress.seconds)}, loss {first:.3f} → {last:.3f}")
    print_thresholds(fitted)
    warn_of_squeezing(fitted)
    typer.echo(f"wrote {shown(path)} ({path.stat().st_size / 1e6:.1f} MB); score images with")
    typer.echo(f"    mambaad score FOLDER{'' if path == DEFAULT_MODEL else f' --model {shlex.quote(shown(path))}'}")
    raise typer.Exit(skipped)
