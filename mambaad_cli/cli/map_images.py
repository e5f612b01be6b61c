"""mambaad map."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mambaad_cli import MambaADError
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
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show for each anomalous region the good patches that it was compared with, in NAME_explain.png, and "
            "list what each witness found there in explanations.jsonl.",
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
    from mambaad_cli.inspection.explaining import what_is_missing
    from mambaad_cli.inspection.prediction import PredictOptions

    least = parse_min_area(regions or explain, min_area)
    files = running.find(paths)
    opened = running.open_model(model, device, res, precision, runtime, running.RegionOptions(roi, ignore, roi_dir))
    scorer = opened.scorer
    if explain and opened.fitted is None:
        raise MambaADError("an exported model cannot explain its maps: take the model that it was made from")
    running.check_review(scorer.products, review)
    for missing in what_is_missing(scorer.products) if explain else ():
        warn(missing)
    options = PredictOptions(class_name, batch, workers, maps=True, review=review, min_area=least, explain=explain)
    counts = overlays.write_maps(
        running.running(scorer, files, options),
        files,
        scorer,
        output,
        overlays.MapOptions(raw, regions, explain),
        on_unreadable=lambda prediction: warn(f"{prediction.file.path}: {prediction.error}"),
    )
    beside = ["contact_sheet.png"]
    beside += ["regions.jsonl"] * regions + ["explanations.jsonl"] * explain
    names = ["overlays", *beside[:-1]]
    typer.echo(f"{sum(counts.values()) - counts['error']} {', '.join(names)} and {beside[-1]} in {shown(output)}")
    running.leave(counts)
