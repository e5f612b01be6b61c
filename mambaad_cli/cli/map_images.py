"""mambaad map."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mambaad_cli.cli import running
from mambaad_cli.cli.app import INSPECT, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    VERDICTS,
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


@command(
    "map",
    panel=INSPECT,
    epilog=examples("mambaad map ./incoming/ -o ./maps/", "mambaad map part.png -o ./maps/ --regions"),
)
def map_images(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the overlays.")],
    model: ModelFile = DEFAULT_MODEL,
    raw: Annotated[
        Literal["png", "npy"] | None,
        typer.Option(
            metavar="png|npy",
            help="Also write each map: as NumPy floats, or as a 16-bit PNG with the value threshold + (code − 32768) / "
            "16384 · |threshold|, so that negative values are kept.",
        ),
    ] = None,
    review: Review = None,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions",
            help="Draw a numbered frame around each anomalous region, and list the regions in regions.jsonl.",
            rich_help_panel=VERDICTS,
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
    from mambaad_cli.inspection import overlays
    from mambaad_cli.inspection.prediction import PredictOptions

    least = parse_min_area(regions, min_area)
    files = running.find(paths)
    scorer = running.open_model(
        model, device, res, precision, runtime, running.RegionOptions(roi, ignore, roi_dir)
    ).scorer
    running.check_review(scorer.products, review)
    options = PredictOptions(class_name, batch, workers, maps=True, review=review, min_area=least)
    counts = overlays.write_maps(
        running.running(scorer, files, options),
        files,
        scorer,
        output,
        overlays.MapOptions(raw, regions),
        on_unreadable=lambda prediction: warn(f"{prediction.file.path}: {prediction.error}"),
    )
    beside = ", contact_sheet.png and regions.jsonl" if regions else " and contact_sheet.png"
    typer.echo(f"{sum(counts.values()) - counts['error']} overlays{beside} in {shown(output)}")
    running.leave(counts)
