"""mambaad export."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mambaad_cli.cli import running
from mambaad_cli.cli.app import LINE, command, examples
from mambaad_cli.cli.options import DEFAULT_MODEL, ClassName, RoiDir
from mambaad_cli.cli.output import check_writable, note, warn
from mambaad_cli.files import shown


@command(
    panel=LINE,
    epilog=examples(
        "mambaad export mambaad.safetensors -o model.onnx", "mambaad export MODEL -o model.onnx --check ./photos/"
    ),
)
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file.")] = DEFAULT_MODEL,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: model.onnx, or model.xml."),
    ] = None,
    format: Annotated[
        Literal["onnx", "openvino"],
        typer.Option(metavar="onnx|openvino", help="onnx: one file. openvino: an .xml file with a .bin beside it."),
    ] = "onnx",
    class_name: ClassName = None,
    image: Annotated[
        Literal["uint8", "float32"],
        typer.Option(metavar="TYPE", help="Type of the input images, RGB in 0 … 255: uint8 or float32."),
    ] = "uint8",
    check: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of photos to compare on, besides the examples in the model file."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, metavar="SHARE", help="Largest relative difference of scores and maps that is accepted."),
    ] = 1e-3,
    roi_dir: RoiDir = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Compare nothing. The file may score differently.")
    ] = False,
) -> None:
    """Write the model for another runtime, and prove that it scores the same; otherwise no file is left.

    Where the products have several sizes, regions of interest or tiles, each gets a file of its own; --class chooses
    one of them.
    """
    from mambaad_cli.export import write

    suffix = ".onnx" if format == "onnx" else ".xml"
    output = output or Path(f"model{suffix}")
    if output.suffix.lower() != suffix:
        raise typer.BadParameter(f"{shown(output)}: expected a name that ends in {suffix}", param_hint="--output")
    if no_check and check is not None:
        raise typer.BadParameter("choose one of --check and --no-check")
    check_writable(output)
    regions = running.RegionOptions(roi_dir=roi_dir)
    opened = running.open_model(model, "cpu", precision="fp32", runtime="torch", regions=regions)
    scorer = opened.changeable(model)
    options = write.ExportOptions(class_name, image, check, not no_check, tolerance, format)

    def on_step(step: str) -> None:
        if sys.stderr.isatty():
            note(f"  {step}")

    for path, products, (height, width), agreement in write.export(scorer, model, output, options, on_step):
        endings = write.endings(scorer.record, format)
        megabytes = sum(path.with_suffix(ending).stat().st_size for ending in endings) / 1e6
        typer.echo(
            f"{shown(path)}: {', '.join(products) or 'any product'}, images {width}x{height}, {megabytes:.1f} MB"
        )
        if agreement is None:
            warn(f"{shown(path)} WAS NOT COMPARED with the model: it may give other scores and verdicts")
        else:
            typer.echo(f"    {agreement.line}")
    if not scorer.record.calibrated:
        warn("the model has no threshold yet, so every verdict is uncalibrated: mambaad calibrate MODEL GOOD_DIR")
