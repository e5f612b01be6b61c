"""mambaad map."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mambaad_cli.cli import running
from mambaad_cli.cli.app import app, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    Batch,
    ClassName,
    Device,
    Ignore,
    MinArea,
    ModelFile,
    Paths,
    Precision,
    Res,
    Review,
    Roi,
    RoiDir,
    Runtime,
    Workers,
    parse_min_area,
)
from mambaad_cli.cli.output import warn
from mambaad_cli.files import shown


@app.command("map", epilog=examples("mambaad map ./incoming/ -o ./maps/", "mambaad map part.png -o ./maps/ --regions"))
def map_images(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the overlays.")],
    model: ModelFile = DEFAULT_MODEL,
    raw: Annotated[
        Literal["png", "npy"] | None,
        typer.Option(
            help="Also write each map: as NumPy floats, or as a 16-bit PNG with the value threshold + (code − 32768) / "
            "16384 · |threshold|, so that negative values are kept."
        ),
    ] = None,
    review: Review = None,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions",
            help="Draw a numbered frame around each anomalous region, and list the regions in regions.jsonl.",
        ),
    ] = False,
    min_area: MinArea = 0,
    class_name: ClassName = None,
    roi: Roi = None,
    ignore: Ignore = None,
    roi_dir: RoiDir = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Write an overlay heatmap of each image, and a contact sheet of all of them, worst first."""
    from mambaad_cli.data import images
    from mambaad_cli.inspection import overlays
    from mambaad_cli.inspection.predict import PredictOptions

    least = parse_min_area(regions, min_area)
    files = images.find(paths)
    fitted = running.load_model(model, device, res, precision, runtime)
    running.set_regions(fitted, roi, ignore, roi_dir)
    running.check_review(fitted, review)
    options = PredictOptions(class_name, batch, workers, maps=True, review=review, min_area=least)
    counts = overlays.write_maps(
        running.running(fitted, files, options),
        files,
        fitted,
        output,
        raw,
        regions=regions,
        on_unreadable=lambda one: warn(f"{one.file.path}: {one.error}"),
    )
    beside = ", contact_sheet.png and regions.jsonl" if regions else " and contact_sheet.png"
    typer.echo(f"{sum(counts.values()) - counts['error']} overlays{beside} in {shown(output)}")
    running.leave(counts)
