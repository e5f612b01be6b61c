"""mambaad bench: speed and size with random weights; with --data how well each detector finds defects."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mambaad_cli import distributed
from mambaad_cli.cli.app import INTERRUPTED, RESEARCH, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import Device, Format, given, parse_size
from mambaad_cli.cli.output import check_writable, duration, no_progress, note, publish, warn

if TYPE_CHECKING:
    from mambaad_cli.benchmark.comparison import Comparison, ComparisonOptions, Dataset
    from mambaad_cli.benchmark.comparison_variants import Variant
    from mambaad_cli.benchmark.detectors import DetectorSpec
    from mambaad_cli.benchmark.speed import Benchmark, Size, Timing

WITH_DATA = "With --data"  # a panel of help
FOR_DATA = (
    "layout", "ablation", "recipes", "presets", "peers", "encoder", "encoder_weights", "epochs", "max_minutes",
    "seeds", "results",
)  # fmt: skip
FOR_SPEED = ("model", "batch", "precision", "runtime", "train", "seconds", "plot")


@command(
    panel=RESEARCH,
    epilog=examples(
        "mambaad bench --res 256", "mambaad bench --res 256,512 --plot scaling.png", "mambaad bench --data ./mvtec/"
    ),
)
def bench(
    ctx: typer.Context,
    res: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="One or several image sizes: 256 or 256,512,1024. Default: 256; with --data, each detector's own.",
        ),
    ] = None,
    detectors: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Detectors to compare, by name or kind, separated by commas.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="Also compare a fitted model, or an exported one at its size; repeatable.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per batch. By default the fastest is searched.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.")] = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(metavar="fp32|bf16", help="Precision; bf16 uses autocast.")
    ] = "fp32",
    runtime: Annotated[
        Literal["torch", "onnxruntime"],
        typer.Option(
            metavar="NAME", help="What runs the default encoder on a CPU, torch or onnxruntime; all others: torch."
        ),
    ] = "torch",
    train: Annotated[bool, typer.Option("--train", help="Also time a training step of each detector.")] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Approximate time to measure each row.")
    ] = 12.0,
    format: Format = "table",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write instead of stdout.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the times: a .png or .svg file.")] = None,
    device: Device = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Labelled dataset: fit each detector on its good training images and measure it on its test images.",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layout of the dataset, if it is not recognised: mvtec, visa, …",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="Compare the steps of the paper's Table 2, and its scan orders and directions, for one MambaAD: "
            "mambaad-small or the one in --detectors.",
            rich_help_panel=WITH_DATA,
        ),
    ] = False,
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes", help="Compare the recipe with variants that change one choice each.", rich_help_panel=WITH_DATA
        ),
    ] = False,
    presets: Annotated[
        bool,
        typer.Option(
            "--presets",
            help="Compare what fit offers, each by its own recipe, with RD4AD and UniAD.",
            rich_help_panel=WITH_DATA,
        ),
    ] = False,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Also compare PatchCore of anomalib, where that is installed.", rich_help_panel=WITH_DATA
        ),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoder of all detectors; by default efficientnet_lite0, whose weights come with mambaad. "
            "own: each detector uses the encoder it was published with.",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Local safetensors or pth file with the encoder's weights.", rich_help_panel=WITH_DATA
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How often a fit sees each image.", rich_help_panel=WITH_DATA)
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="N",
            help="Approximate minutes of each fit, instead of epochs. Default: 2.",
            rich_help_panel=WITH_DATA,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of fits of each detector, for mean and deviation.",
            rich_help_panel=WITH_DATA,
        ),
    ] = 1,
    results: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File that keeps the results of each finished fit, so that the same command can continue.",
            rich_help_panel=WITH_DATA,
        ),
    ] = Path("mambaad-bench.jsonl"),
) -> None:
    """Measure parameters, FLOPs, latency, throughput and memory of MambaAD, RD4AD and UniAD with random weights.

    With --data, fit all of them on the same images with the same budget, and measure how well they find defects.
    """
    from mambaad_cli.benchmark import comparison, comparison_tables, speed, speed_tables
    from mambaad_cli.benchmark import detectors as detector_specs

    if unfit := given(ctx, FOR_DATA if data is None else FOR_SPEED):
        raise typer.BadParameter(f"{', '.join(unfit)}: only {'with' if data is None else 'without'} --data")
    names = detectors.split(",") if detectors else []
    if output is not None:
        check_writable(output)
    if data is None:
        specs = [*detector_specs.choose(names), *(detector_specs.fitted(path) for path in model or [])]
        if plot is not None:
            speed_tables.check_plot(plot)
        timing = speed.Timing(seconds, batch, threads, distributed.pick_device(device), precision, train, runtime)
        measured = timed(specs, [parse_size(size) for size in (res or "256").split(",")], timing)
        publish(speed_tables, measured, format, output)
        if plot is not None:
            speed_tables.plot(measured, plot)
        return
    if epochs is not None and max_minutes is not None:
        raise typer.BadParameter("choose one of --epochs and --max-minutes")
    if encoder == "own" and encoder_weights is not None:
        raise typer.BadParameter("--encoder-weights are of one encoder: name it with --encoder")
    if ablation + recipes + presets > 1:
        raise typer.BadParameter("choose one of --ablation, --recipes and --presets")
    which = "ablation" if ablation else "recipes" if recipes else "as_fitted" if presets else "choose"
    variants = chosen_variants(which, names, encoder, peers)
    minutes = comparison.DEFAULT_MINUTES if epochs is None and max_minutes is None else max_minutes
    size = None if res is None else parse_size(res)
    options = comparison.ComparisonOptions(
        comparison.Budget(epochs, minutes, own=presets), size, seeds, encoder_weights, distributed.pick_device(device)
    )
    set_threads(threads)
    compared = compare(variants, comparison.read_dataset(data, layout), options, results)
    publish(comparison_tables, compared, format, output)
    raise typer.Exit(USER_CAN_MEND if any(outcome.error for outcome in compared.outcomes) else 0)


def chosen_variants(which: str, names: list[str], encoder: str | None, peers: bool) -> "list[Variant]":
    """The rows of the table. which: the function of comparison_variants that makes them."""
    from mambaad_cli.benchmark import comparison_variants
    from mambaad_cli.benchmark.peers import peers as peers_of_anomalib

    variants: list[Variant] = getattr(comparison_variants, which)(names, encoder)
    return variants + (peers_of_anomalib(encoder) if peers else [])


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads of torch; None keeps its default."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def timed(specs: "list[DetectorSpec]", sizes: "list[Size]", timing: "Timing") -> "Benchmark":
    """speed.run with a line on stderr for each step, if that is a terminal."""
    from mambaad_cli.benchmark import speed

    def on_progress(step: str) -> None:
        if sys.stderr.isatty():
            note(f"  {step}")

    return speed.run(specs, sizes, timing, on_progress)


def compare(variants: "list[Variant]", data: "Dataset", options: "ComparisonOptions", results: Path) -> "Comparison":
    """comparison.run with a line on stderr for its current work and one for each finished fit."""
    from tqdm import tqdm

    from mambaad_cli.benchmark import comparison

    progress = tqdm(bar_format="{desc}", leave=False, disable=no_progress(), file=sys.stderr)

    def finished(variant: "Variant", cell: dict[str, Any]) -> None:
        auroc = cell["mean"]["image_auroc"]
        measured = "" if auroc is None else f"image AU-ROC {100 * auroc:.1f}, "
        progress.clear()
        line = f"{variant.name}, seed {cell['seed']}: {measured}fitted in {duration(cell['fit_seconds'])}"
        note(line)

    try:
        with progress:
            return comparison.run(variants, data, options, results, progress.set_description_str, finished)
    except KeyboardInterrupt:
        warn(f"interrupted; finished fits are kept in {results}: repeat the command to continue")
        raise typer.Exit(INTERRUPTED) from None
