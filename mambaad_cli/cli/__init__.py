"""Every command: options in, one call, lines out. Heavy imports sit inside the commands, so that help is instant."""

import dataclasses
import errno
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mambaad_cli import MambaADError, __version__, distributed
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.benchmark.comparison import Dataset, Study, Variant
    from mambaad_cli.data.images import ImageError, ImageFile
    from mambaad_cli.inspection.model_file import Model
    from mambaad_cli.inspection.predict import Prediction

USER_CAN_MEND, ANOMALY_FOUND, INTERRUPTED = 1, 3, 130  # exit statuses; 2, wrong usage, is Typer's


class Commands(TyperGroup):
    """Turns what a user can mend into one line, in this one place."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MambaADError as error:
            warn(str(error), everyone=distributed.met)
            raise typer.Exit(USER_CAN_MEND) from None
        except KeyboardInterrupt:
            how = "; go on with the same command and --resume" if ctx.invoked_subcommand == "fit" else ""
            warn(f"interrupted{how}")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            warn(f"cannot write stdout: {error.strerror}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer
            raise typer.Exit(USER_CAN_MEND) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn what good product images look like, then score, map and explain new ones.",
)


def parse_share(text: str) -> float:
    """A share between 0 and 1, from per cent or a fraction.

    >>> parse_share("1%"), parse_share("5 %"), parse_share("0.01")
    (0.01, 0.05, 0.01)
    """
    number = str(text).strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise typer.BadParameter(f"{text!r}: expected a share such as 1% or 0.01")
    return share


DEFAULT_MODEL = Path("mambaad.safetensors")
Good = Annotated[Path, typer.Argument(help="Folder of good images; its sub-folders are product classes.")]
Paths = Annotated[list[Path], typer.Argument(help="Folders and image files.")]
ModelFile = Annotated[
    Path, typer.Option("--model", "-m", envvar="MAMBAAD_MODEL", help="Model file, written by fit.", dir_okay=True)
]
Res = Annotated[str | None, typer.Option(help="Score at this size, not the one of fit: 256, or 320x192.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option(min=1, help="Images that go through the model together.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read images.")]
OF_THE_MODEL = (
    "preset", "detector", "encoder", "encoder_weights", "res", "letterbox", "scan", "directions", "local_branches",
    "examples", "flips", "folds",
)  # fmt: skip
MaxFalseReject = Annotated[
    float | None,
    typer.Option(parser=parse_share, metavar="SHARE", help="Good images that may be rejected: 1%, or 0.01."),
]
Review = Annotated[
    float | None,
    typer.Option(parser=parse_share, metavar="SHARE", help="Verdict review above what 5% of good images exceed."),
]
MinArea = Annotated[int, typer.Option(min=0, metavar="PIXELS", help="Leave out smaller regions.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Of matrix products. bf16: faster on CPUs with AMX and on GPUs; scores move by some 2 %."),
]
WITH_DATA = "With --data"  # a panel of help
ClassName = Annotated[str | None, typer.Option("--class", help="Product class of all images, whatever their folder.")]


@app.callback(invoke_without_command=True)
def mambaad(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mambaad {__version__}")
        raise typer.Exit
    if distributed.world() > 1 and context.invoked_subcommand not in ("fit", "score"):
        raise MambaADError(f"{context.invoked_subcommand} runs in one process: only fit and score share their work")


@app.command()
def fit(
    ctx: typer.Context,
    good: Good,
    model: ModelFile = DEFAULT_MODEL,
    preset: Annotated[
        Literal["small", "paper"], typer.Option(help="small: for laptops, minutes. paper: as published, hours.")
    ] = "small",
    detector: Annotated[
        Literal["mambaad", "rd4ad", "uniad"], typer.Option(help="rd4ad and uniad: baselines with recipes of their own.")
    ] = "mambaad",
    encoder: Annotated[str | None, typer.Option(help="Any timm model with feature maps at strides 4, 8, 16.")] = None,
    encoder_weights: Annotated[Path | None, typer.Option(help="Local safetensors or pth file of its weights.")] = None,
    res: Annotated[
        str, typer.Option(help="Size of the model's input in pixels: 256 or 320x192 (width x height).")
    ] = "256",
    letterbox: Annotated[
        bool, typer.Option("--letterbox", help="Keep each image's aspect; padding is left out.")
    ] = False,
    flips: Annotated[bool, typer.Option("--flips", help="Good parts may also lie mirrored.")] = False,
    folds: Annotated[
        int, typer.Option(min=0, help="Learn from all images; the threshold comes from so many short trainings more.")
    ] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each image is seen.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="Train for about so long instead.")] = None,
    max_false_reject: MaxFalseReject = 0.01,
    scan: Annotated[
        Literal["sweep", "scan", "zorder", "zigzag", "hilbert"], typer.Option(help="Scan order.")
    ] = "hilbert",
    directions: Annotated[
        int | None, typer.Option(help="Directions of the scan: 2, 4, 8, or 6, the different ones of hilbert and scan.")
    ] = None,
    local_branches: Annotated[bool, typer.Option(help="The convolutions beside the scans.")] = True,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-9, max=1e3, help="Learning rate.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Same seed, same machine: same model.")] = 42,
    device: Device = "auto",
    precision: Precision = "auto",
    cache_dtype: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Of the encoder's cached features; bf16 takes half the room.")
    ] = "fp32",
    cache_memory: Annotated[
        float, typer.Option(min=0, help="GB of them kept in memory; more go to a file in the temporary folder.")
    ] = 4.0,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Train in less memory, but slower.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of a stopped run.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Teach the products to the model that is there.")] = False,
    examples: Annotated[bool, typer.Option(help="Keep some of the images in the model file, for --add.")] = True,
) -> None:
    """Train one model on a folder of good images, or with --add teach it new products."""
    from mambaad_cli.inspection import model_file as modelfile
    from mambaad_cli.model.scan_orders import directions as walks
    from mambaad_cli.training import fit as training

    size = parse_size(res)
    known = None
    if add:
        if fixed := given(ctx, OF_THE_MODEL):
            raise typer.BadParameter(f"{', '.join(fixed)}: the model has its own already", param_hint="--add")
        known = load_model(model, device)
    if folds == 1 or (folds and distributed.world() > 1):
        raise typer.BadParameter("expected 2 or more, and no torchrun", param_hint="--folds")
    files, classes = good_images(good)
    recipe = preset if detector == "mambaad" else detector
    choices = training.PRESETS[recipe]
    options = dict(choices["options"])
    if detector == "mambaad":
        options |= {"order": scan, "local_branches": local_branches}
        options["directions"] = directions or options["directions"]
        walks(scan, 1, 1, options["directions"])  # says now what cannot be walked
    settings = modelfile.Settings(detector, encoder or choices["encoder"], size, letterbox, options)
    if distributed.rank() == 0:
        check_writable(model)
    checkpoint = model.with_name(f".{model.name}.checkpoint")
    if resume and not checkpoint.exists():
        warn(f"no checkpoint of a stopped run beside {model}: starting anew")
    elif resume:
        too_late = {"--epochs": epochs, "--max-minutes": max_minutes, "--batch": batch, "--lr": lr}
        if ignored := [option for option, value in too_late.items() if value is not None]:
            warn(f"--resume goes on as the stopped run began: {', '.join(ignored)} not used")

    with FitProgress(len(files)) as progress:
        common: dict[str, Any] = {
            "epochs": epochs,
            "max_minutes": max_minutes,
            "batch": batch,
            "lr": lr,
            "seed": seed,
            "device": pick_device(device),
            "precision": pick_precision(precision),
            "cache_dtype": cache_dtype,
            "cache_memory": int(cache_memory * 1e9),
            "checkpoint_activations": checkpoint_activations,
            "checkpoint": checkpoint,
            "resume": resume,
            "on_image": progress.image,
            "on_unreadable": progress.unreadable,
            "on_step": progress.step,
        }
        if known is not None:
            fitted = training.add(known, files, classes, **common)
        else:
            common |= {"preset": recipe, "encoder_weights": encoder_weights, "keep_examples": examples}
            common |= {"flips": flips, "folds": folds}
            common["max_false_reject"] = max_false_reject or 0.01
            fitted = training.fit(files, classes, settings, **common)
    if distributed.rank() > 0:
        return
    modelfile.save(fitted.to("cpu"), model)
    checkpoint.unlink(missing_ok=True)
    print_fit(fitted, model, progress)
    raise typer.Exit(USER_CAN_MEND if progress.skipped else 0)


@app.command()
def score(
    paths: Paths,
    model: ModelFile = DEFAULT_MODEL,
    as_csv: Annotated[bool, typer.Option("--csv", help="One CSV row an image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an image.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the rows there, not to stdout.")] = None,
    review: Review = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="With --json: where each image is anomalous, in its own pixels.")
    ] = False,
    min_area: MinArea = 0,
    class_name: ClassName = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit status 3 if an image is anomalous.")
    ] = False,
) -> None:
    """Score images: a table for people, or with --csv or --json rows for programs, in the order of the images."""
    from rich.console import Console

    from mambaad_cli.data import images
    from mambaad_cli.inspection import rows as report

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    if regions and not as_json:
        raise typer.BadParameter("needs --json: a region is a box, an area and a peak", param_hint="--regions")
    least = parse_min_area(regions, min_area)
    files = images.find(paths)
    if output is not None and output.resolve() in {model.resolve(), *(file.path.resolve() for file in files)}:
        raise MambaADError(f"{shown(output)} would be written over: choose another --output")
    fitted = load_model(model, device, res, precision)
    check_review(fitted, review)
    predictions = running(fitted, files, class_name, batch, workers, device, review=review, min_area=least)
    if distributed.rank() > 0:
        for _ in predictions:  # none comes: all go to the first process
            pass
        return
    if not (as_csv or as_json or output):
        counts = report.print_table(predictions, Console())
    else:
        counts = report.write_rows(predictions, output, as_json, regions)
    leave(counts, fail_on_anomaly)


@app.command("map")
def map_(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the overlays.")],
    model: ModelFile = DEFAULT_MODEL,
    raw: Annotated[
        Literal["png", "npy"] | None, typer.Option(help="Also write each map itself: 16-bit PNG, or numpy floats.")
    ] = None,
    review: Review = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Number and frame what is anomalous, and list it in regions.jsonl.")
    ] = False,
    min_area: MinArea = 0,
    class_name: ClassName = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Write an overlay heatmap of each image, and a contact sheet of all, worst first."""
    from mambaad_cli.data import images
    from mambaad_cli.inspection import overlays as maps

    least = parse_min_area(regions, min_area)
    files = images.find(paths)
    fitted = load_model(model, device, res, precision)
    check_review(fitted, review)
    predictions = running(fitted, files, class_name, batch, workers, device, maps=True, review=review, min_area=least)
    counts = maps.write_maps(
        predictions,
        files,
        fitted,
        output,
        raw,
        regions=regions,
        on_unreadable=lambda one: warn(f"{one.file.path}: {one.error}"),
    )
    beside = ", contact_sheet.png and regions.jsonl" if regions else " and contact_sheet.png"
    typer.echo(f"{sum(counts.values()) - counts['error']} overlays{beside} in {shown(output)}")
    leave(counts, False)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Model file; rewritten with its new threshold.")],
    good: Annotated[
        Path | None, typer.Argument(help="Folder of good images not trained on; none: the scores that the model keeps.")
    ] = None,
    max_false_reject: MaxFalseReject = None,
    res: Annotated[str | None, typer.Option(help="Calibrate for, and from then on score at, this size.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Batch = 8,
    workers: Workers = 2,
) -> None:
    """Set the threshold anew from good images that were not trained on, without training."""
    from mambaad_cli.data import images
    from mambaad_cli.inspection import model_file as modelfile

    if good is None and (max_false_reject is None or res is not None):
        raise typer.BadParameter("give a folder of good images, or --max-false-reject alone", param_hint="GOOD")
    fitted = load_model(model, device, precision=precision)
    if max_false_reject is not None:
        fitted.max_false_reject = max_false_reject
    if good is None:
        if not fitted.scores:
            raise MambaADError(f"{model} keeps no scores of good images: give a folder of some")
        modelfile.save(fitted.to("cpu"), model)
        print_thresholds(fitted)
        return
    if res is not None:
        fitted.settings = dataclasses.replace(fitted.settings, size=parse_size(res))
    files = found(images.find([good]), good)
    scores: dict[str, list[float]] = {}
    skipped = 0
    only = next(iter(fitted.trained_on), None) if len(fitted.trained_on) == 1 else None
    for one in running(fitted, files, None, batch, workers, device):
        if one.score is None:
            warn(f"{one.file.path}: {one.error}")
            skipped += 1
            continue
        name = only or printable(one.file.group) or product_name(good)
        scores.setdefault(name, []).append(one.score)
    if not scores:
        raise MambaADError(f"no readable image in {good}: the model stays as it was")
    if fitted.held_out and res is None:
        scores = fitted.scores | scores  # classes without new images keep theirs
    fitted.scores, fitted.held_out = scores, True
    fitted.trained_on = {name: fitted.trained_on.get(name, 0) for name in {**fitted.trained_on, **fitted.scores}}
    modelfile.save(fitted.to("cpu"), model)
    print_thresholds(fitted)
    raise typer.Exit(USER_CAN_MEND if skipped else 0)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A published MambaAD checkpoint (.pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")] = DEFAULT_MODEL,
) -> None:
    """Turn a published MambaAD checkpoint into a model file, without a threshold yet."""
    from mambaad_cli.inspection import model_file as modelfile
    from mambaad_cli.inspection import published_checkpoint as published

    modelfile.save(published.import_published(checkpoint), output)
    typer.echo(f"wrote {output}; set its threshold with\n    mambaad calibrate {output} GOOD_DIR")


@app.command("eval")
def eval_(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] DATASET", help="Model file, else --model; folder with test images, labels and masks."
        ),
    ],
    model: ModelFile = DEFAULT_MODEL,
    layout: Annotated[str | None, typer.Option(help="Its layout, where it is not recognised: mvtec, visa, …")] = None,
    format: Annotated[Literal["table", "markdown", "csv", "json"], typer.Option(help="What to print.")] = "table",
    maps: Annotated[Path | None, typer.Option(help="Also write an overlay of each image there.")] = None,
    worst: Annotated[Path | None, typer.Option(help="Also write contact sheets of the worst mistakes there.")] = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure a model on a labelled benchmark: the seven metrics, false rejects and misses of each class."""
    from rich.console import Console
    from tqdm import tqdm

    from mambaad_cli.benchmark import evaluation as evaluate
    from mambaad_cli.data import datasets

    *models, dataset = paths
    if len(models) > 1:
        raise typer.BadParameter(f"{len(paths)} paths: expected [MODEL] DATASET")
    if models and given(ctx, ("model",)):
        raise typer.BadParameter(f"two models: {shown(models[0])} and --model {shown(model)}")
    model = models[0] if models else model
    samples = datasets.load(dataset, layout)
    fitted, where = load_model(model, device, precision=precision), pick_device(device)
    tested = sum(sample.split == "test" for sample in samples)
    with tqdm(total=tested, unit="image", leave=False, disable=None, file=sys.stderr) as progress:
        evaluation = evaluate.evaluate(
            fitted,
            samples,
            batch=batch,
            workers=workers,
            device=where,
            maps=maps,
            on_result=lambda _: progress.update(),
        )
    if format == "table":
        console = Console()
        console.print(evaluate.to_table(evaluation))
        console.print(evaluate.recall_table(evaluation))
    else:
        formats = {"markdown": evaluate.to_markdown, "csv": evaluate.to_csv, "json": evaluate.to_json}
        typer.echo(formats[format](evaluation), nl=False)
    for note in evaluate.notes(evaluation):
        warn(note)
    if worst is not None:
        for path in evaluate.write_worst(evaluation, fitted, worst, workers=workers, device=where):
            warn(f"wrote {path}")
    if evaluation.unfinished:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(USER_CAN_MEND if any(one.unreadable for one in evaluation.classes) else 0)


@app.command()
def bench(
    ctx: typer.Context,
    res: Annotated[str, typer.Option(help="Sizes, one or several: 256 or 256,512,1024.")] = "256",
    detectors: Annotated[str | None, typer.Option(help="Which rows, by name or kind, comma-separated.")] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="A fitted model as one more row.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a batch; else the best is looked for.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16: autocast.")] = "fp32",
    train: Annotated[bool, typer.Option("--train", help="Also time a training step of each detector.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long to time each row.")] = 12.0,
    format: Annotated[Literal["table", "markdown", "csv", "json"], typer.Option(help="What to print.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write there, not to stdout.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the times: a .png or .svg file.")] = None,
    device: Device = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled dataset: fit each detector on its good training images, measure it on its test images.",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Its layout, where it is not recognised: mvtec, visa, …", rich_help_panel=WITH_DATA),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="The steps of the paper's Table 2 and its scan orders × directions, of mambaad-small or --detectors.",
            rich_help_panel=WITH_DATA,
        ),
    ] = False,
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes", help="What each choice of the recipe is worth, beside it.", rich_help_panel=WITH_DATA
        ),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Of all detectors; else efficientnet_lite0, the one whose weights come with mambaad. "
            "own: each detector on the one it was published with.",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Local safetensors or pth file of its weights.", rich_help_panel=WITH_DATA)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="How often a fit sees each image.", rich_help_panel=WITH_DATA)
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Train each fit for about so long instead; else 2.", rich_help_panel=WITH_DATA),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Fits of each detector, for mean and deviation.", rich_help_panel=WITH_DATA)
    ] = 1,
    results: Annotated[
        Path,
        typer.Option(
            help="Where each finished fit's figures are kept: the same command goes on from there.",
            rich_help_panel=WITH_DATA,
        ),
    ] = Path("mambaad-bench.jsonl"),
) -> None:
    """Measure parameters, FLOPs, latency, throughput and memory beside RD4AD and UniAD, with random weights.

    With --data: fit them all on the same images under the same budget, and measure how well they find defects.
    """
    import torch

    from mambaad_cli.benchmark import comparison as study
    from mambaad_cli.benchmark import comparison_tables as study_report
    from mambaad_cli.benchmark import speed as benchmark
    from mambaad_cli.benchmark import speed_tables as bench_report

    for_data = (
        "layout",
        "ablation",
        "recipes",
        "encoder",
        "encoder_weights",
        "epochs",
        "max_minutes",
        "seeds",
        "results",
    )
    for_speed = ("model", "batch", "precision", "train", "seconds", "plot")
    if unfit := given(ctx, for_data if data is None else for_speed):
        raise typer.BadParameter(f"{', '.join(unfit)}: only {'with' if data is None else 'without'} --data")
    names = detectors.split(",") if detectors else []
    if output is not None:
        check_writable(output)

    if data is None:
        rows = benchmark.choose(names)
        if model is not None:
            rows.append(benchmark.fitted(model))
        if plot is not None:
            bench_report.check_plot(plot)
        measured = benchmark.run(
            rows,
            [parse_size(one) for one in res.split(",")],
            seconds=seconds,
            batch=batch,
            threads=threads,
            device=pick_device(device),
            precision=precision,
            train=train,
            on_progress=lambda doing: typer.echo(f"  {doing}", err=True) if sys.stderr.isatty() else None,
        )
        publish(bench_report, measured, format, output)
        if plot is not None:
            bench_report.plot(measured, plot)
        return

    if epochs is not None and max_minutes is not None:
        raise typer.BadParameter("choose one of --epochs and --max-minutes")
    if encoder == "own" and encoder_weights is not None:
        raise typer.BadParameter("--encoder-weights are of one encoder: name it with --encoder")
    if threads is not None:
        torch.set_num_threads(threads)
    minutes = study.DEFAULT_MINUTES if epochs is None and max_minutes is None else max_minutes
    compared = compare(
        (study.ablation if ablation else study.recipes if recipes else study.choose)(names, encoder),
        study.read_dataset(data, layout),
        size=parse_size(res),
        budget=study.Budget(epochs, minutes),
        seeds=seeds,
        results=results,
        encoder_weights=encoder_weights,
        device=pick_device(device),
    )
    publish(study_report, compared, format, output)
    raise typer.Exit(USER_CAN_MEND if any(outcome.error for outcome in compared.outcomes) else 0)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what this machine has, what is missing and what that costs."""
    import json

    from rich.console import Console
    from rich.table import Table

    from mambaad_cli.benchmark import machine as diagnosis

    facts = diagnosis.facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console().print(table)


# What the commands share


def warn(line: str, everyone: bool = False) -> None:
    """One line on stderr, whatever file names it holds; of several processes the first speaks, or `everyone`."""
    if distributed.rank() == 0 or everyone:
        typer.echo(f"mambaad: {shown(line)}", err=True)


def given(ctx: typer.Context, names: "tuple[str, ...]") -> list[str]:
    """Those of some options that stand on the command line, as they are typed."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in typed]


def compare(variants: "list[Variant]", data: "Dataset", **how: Any) -> "Study":
    """study.run with a line on stderr for what it does and one for each fit that it has finished."""
    from tqdm import tqdm

    from mambaad_cli.benchmark import comparison as study

    progress = tqdm(bar_format="{desc}", leave=False, disable=None, file=sys.stderr)

    def finished(variant: "Variant", cell: dict[str, Any]) -> None:
        auroc = cell["mean"]["image_auroc"]
        found = "" if auroc is None else f"image AU-ROC {100 * auroc:.1f}, "
        progress.clear()
        typer.echo(f"{variant.name}, seed {cell['seed']}: {found}fitted in {duration(cell['fit_seconds'])}", err=True)

    try:
        with progress:
            return study.run(variants, data, on_progress=progress.set_description_str, on_cell=finished, **how)
    except KeyboardInterrupt:
        warn(f"interrupted; what was finished is kept in {how['results']}: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None


def publish(report: Any, found: Any, format: str, output: Path | None) -> None:
    """What a report module makes of its findings, on stdout or in a file; there a table is Markdown."""
    from rich.console import Console

    from mambaad_cli.files import written_whole

    formats = {"markdown": report.to_markdown, "csv": report.to_csv, "json": report.to_json}
    if format == "table" and output is None:
        Console().print(report.to_table(found))
    elif output is None:
        typer.echo(formats[format](found), nl=False)
    else:
        with written_whole(output) as half:
            half.write_text(formats.get(format, report.to_markdown)(found), encoding="utf-8")


def check_writable(path: Path) -> None:
    """Say before an hour of training, not after it, that a file cannot be written."""
    from mambaad_cli.files import written_whole

    if path.is_dir():
        raise MambaADError(f"cannot write {path}: it is a folder")
    probe = path.with_name(f".{path.name}.probe")
    try:
        with written_whole(probe):
            pass
    except MambaADError as error:
        raise MambaADError(f"cannot write {path}: {error.__cause__}") from error
    probe.unlink()


def parse_size(res: str) -> tuple[int, int]:
    """(height, width) of "256" or "320x192", which is width x height.

    >>> parse_size("256"), parse_size("320x192")
    ((256, 256), (192, 320))
    """
    sides = res.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise typer.BadParameter(
            f"{res!r}: expected pixels such as 256, or 320x192 for width x height", param_hint="--res"
        )
    width, height = int(sides[0]), int(sides[-1])
    if min(width, height) < 32:
        raise typer.BadParameter(f"{res!r}: the model needs at least 32 pixels a side", param_hint="--res")
    return height, width


def parse_min_area(regions: bool, min_area: int) -> int | None:
    """The least area of a region, None where none are asked for."""
    if min_area and not regions:
        raise typer.BadParameter("needs --regions", param_hint="--min-area")
    return min_area if regions else None


def check_review(model: "Model", review: float | None) -> None:
    """Say where a review band cannot be, or is empty because too few scores set both its ends."""
    from mambaad_cli.inspection.calibration import exceeds, percent

    if review is None:
        return
    strict = model.max_false_reject
    if review <= strict:
        raise MambaADError(f"--review {percent(review)} must be more than the {percent(strict)} of the threshold")
    for name, scores in model.scores.items():
        threshold, lower = model.threshold(name), model.threshold(name, review)
        if threshold is not None and lower is not None and not exceeds(threshold, lower):
            same = f"{len(scores)} good images are too few to tell {percent(review)} from {percent(strict)}"
            warn(f"{name}: {same}: nothing is for review until mambaad calibrate has more")


def pick_device(device: str) -> str:
    import torch

    if device == "auto" and distributed.world() > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise MambaADError(f"no device {device!r} on this machine: leave out --device, or use cpu")
    return device


def product_name(folder: Path) -> str:
    """What a folder of good images is called: the nearest name on its path that says more than `good`.

    >>> product_name(Path("parts/nut/train/good"))
    'nut'
    """
    plain = {"good", "ok", "normal", "train", "training", "images"}
    names = [printable(part) for part in folder.resolve().parts[1:]]
    return next((name for name in reversed(names) if name.lower() not in plain), "good")


def printable(name: str) -> str:
    """A folder's name as text that any file and terminal can hold, whatever bytes it is made of."""
    return shown(name)


def good_images(good: Path) -> "tuple[list[ImageFile], list[str]]":
    """The images to learn from and the class of each: a folder of good ones, or a benchmark's training images."""
    from mambaad_cli.data import datasets, images

    if good.is_dir() and datasets.is_dataset(good):
        samples = datasets.training_images(datasets.load(good))
        if not samples:
            raise MambaADError(f"{good} is laid out as {datasets.recognise(good)} but has no good training images")
        files = [images.ImageFile(one.path, one.path.relative_to(good), one.class_name) for one in samples]
        return files, [one.class_name for one in samples]
    files = found(images.find([good]), good)
    return files, [printable(file.group) or product_name(good) for file in files]


def found(files: "list[ImageFile]", folder: Path) -> "list[ImageFile]":
    """The files, unless `folder` was no folder with images."""
    if not folder.is_dir():
        raise MambaADError(f"no folder {folder}: expected a folder of good images")
    return files


def pick_precision(precision: str) -> str:
    """auto is fp32: bf16 moves scores by more than 1 %, and that is for the user to decide."""
    return "fp32" if precision == "auto" else precision


def load_model(path: Path, device: str, res: str | None = None, precision: str = "auto") -> "Model":
    """The model, ready to score on a device, at its own size or another."""
    from mambaad_cli.inspection import model_file as modelfile

    model = modelfile.load(path).to(pick_device(device))
    model.precision = pick_precision(precision)
    if res is not None and parse_size(res) != model.settings.size:
        if model.scores:
            warn(f"the threshold was set at another size than {res}: mambaad calibrate --res {res} sets it anew")
        model.settings = dataclasses.replace(model.settings, size=parse_size(res))
        if model.recogniser is not None:
            model.recogniser = model.recogniser._replace(limit=math.inf)  # how far is far depends on the size
    return model


class FitProgress:
    """Bars on stderr for reading images and for training; silent where stderr is no terminal."""

    def __init__(self, images: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm
        self.silent = distributed.rank() > 0 or None  # None: where stderr is no terminal
        self.reading = tqdm(total=images, desc="encode", unit="image", leave=False, disable=self.silent)
        self.training: Any = None
        self.skipped = 0
        self.losses: list[float] = []
        self.start = time.monotonic()

    def __enter__(self) -> "FitProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.close()
        if self.training is not None:
            self.training.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def image(self) -> None:
        self.reading.update()

    def unreadable(self, error: "ImageError") -> None:
        self.skipped += 1
        self.reading.clear()
        warn(f"left out {error}")

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        self.losses.append(loss)
        if self.training is None:
            self.reading.close()
            self.training = self.bar(
                total=steps, initial=step - 1, desc="train", unit="step", leave=False, disable=self.silent
            )
        self.training.update()
        rate = self.training.format_dict["rate"] or 0.0
        self.training.set_postfix_str(f"loss {loss:.4f}, {rate * images:.0f} images/s", refresh=False)


def print_fit(model: "Model", path: Path, progress: FitProgress) -> None:
    """What fit did, in a few lines."""
    held_out = {name: len(scores) for name, scores in model.scores.items()} if model.held_out else {}
    for name, images in model.trained_on.items():
        typer.echo(f"{name}: learnt from {images} good images, {held_out.get(name, 0)} held out for the threshold")
    if progress.losses:
        first, last = progress.losses[0], progress.losses[-1]
        typer.echo(f"{len(progress.losses)} steps in {duration(progress.seconds)}, loss {first:.3f} → {last:.3f}")
    print_thresholds(model)
    typer.echo(f"wrote {shown(path)} ({path.stat().st_size / 1e6:.1f} MB); score images with")
    typer.echo(f"    mambaad score FOLDER{'' if path == DEFAULT_MODEL else f' --model {shlex.quote(shown(path))}'}")


def print_thresholds(model: "Model") -> None:
    """Each class's threshold, what lies above it, what it promises and, where that is too little, what it takes."""
    from mambaad_cli.inspection.calibration import ceiling, exceeds, images_for, percent, promise

    wanted = model.max_false_reject
    for name in model.trained_on:
        if name not in model.scores:
            warn(f"{name}: too few images to hold some out: it gets the highest threshold of the others")
    for name, scores in model.scores.items():
        threshold = model.threshold(name) or 0.0
        above, n = sum(exceeds(score, threshold) for score in scores), len(scores)
        kind = "held-out" if model.held_out else "training"
        typer.echo(f"{name}: threshold {threshold:.4g}; above it {above} of {n} {kind} good images")
        if not model.held_out:
            warn(
                f"{name}: too few images to hold some out: the threshold promises nothing, new good ones may well lie "
                f"above it; set it with others that are good: mambaad calibrate MODEL GOOD_DIR"
            )
            continue
        promised = promise(n, wanted)
        typer.echo(
            f"    promises at most {percent(promised)} false rejects on average, "
            f"{percent(ceiling(n, wanted))} with 95% confidence"
        )
        if promised > wanted:
            more = f"{images_for(wanted)} do: mambaad calibrate MODEL GOOD_DIR"
            images = f"{n} held-out image{'s' if n > 1 else ''}"
            warn(f"{name}: {images} cannot promise {percent(wanted)}, only 1 in {n + 1}; {more}")


def duration(seconds: float) -> str:
    """
    >>> duration(9.4), duration(133)
    ('9 s', '2 min 13 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def running(
    model: "Model",
    files: "list[ImageFile]",
    class_name: str | None,
    batch: int,
    workers: int,
    device: str,
    maps: bool = False,
    review: float | None = None,
    min_area: int | None = None,
) -> "Iterator[Prediction]":
    """Predictions as they come, with a progress bar on stderr where that is a terminal and stdout is not filling it."""
    from tqdm import tqdm

    from mambaad_cli.inspection.predict import predict

    if class_name is not None and class_name not in model.trained_on:
        raise MambaADError(f"the model knows no class {class_name!r}: choose {', '.join(model.trained_on)}")

    def work(files: "Sequence[ImageFile]") -> "Iterator[Prediction]":
        return predict(
            model,
            files,
            class_name=class_name,
            batch=batch,
            workers=workers,
            device=pick_device(device),
            maps=maps,
            review=review,
            min_area=min_area,
        )

    predictions = distributed.in_order(work, files, batch)
    silent = distributed.rank() > 0 or None  # None: where stderr is no terminal
    return iter(tqdm(predictions, total=len(files), unit="image", leave=False, disable=silent, file=sys.stderr))


def leave(counts: Any, fail_on_anomaly: bool) -> None:
    """End with the exit status that the verdicts call for."""
    if fail_on_anomaly and (counts["anomalous"] or counts["unknown"]):
        raise typer.Exit(ANOMALY_FOUND)
    raise typer.Exit(USER_CAN_MEND if counts["error"] else 0)
