"""mambaad map."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running, sources
from mambaad_cli.cli.app import INSPECT, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    VERDICTS,
    Batch,
    ClassName,
    Device,
    Fps,
    Frames,
    Ignore,
    Inputs,
    MinArea,
    ModelFile,
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

if TYPE_CHECKING:
    from mambaad_cli.inspection.prediction import Prediction


@command(
    "map",
    panel=INSPECT,
    epilog=examples(
        "mambaad map ./incoming/ -o ./maps/",
        "mambaad map part.png -o ./maps/ --regions",
        "mambaad map belt.mp4 -o ./maps/ --fps 5",
    ),
)
def map_images(
    paths: Inputs,
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
            rich_help_panel=VERDICTS,
        ),
    ] = False,
    min_area: MinArea = 0,
    fps: Fps = None,
    frames: Frames = 1,
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
    """Write an overlay heatmap of each image, and a contact sheet of all of them, worst first.

    Of a video, a camera or a stream it writes one overlay video.
    """
    from mambaad_cli.inspection import overlay_video, overlays
    from mambaad_cli.inspection.explaining import what_is_missing
    from mambaad_cli.inspection.prediction import PredictOptions

    least = parse_min_area(regions or explain, min_area)
    which = sources.FrameOptions(fps, frames)
    videos = sources.sources_among(paths, which)
    if videos:
        why = "writes a file for each image: the frames of a video are too many"
        sources.refuse({"--raw": raw, "--explain": explain}, why)
    files = [] if videos else running.find([Path(path) for path in paths])
    opened = running.open_model(model, device, res, precision, runtime, running.RegionOptions(roi, ignore, roi_dir))
    scorer = opened.scorer
    if explain and opened.fitted is None:
        raise MambaADError("an exported model cannot explain its maps: take the model that it was made from")
    running.check_review(scorer.products, review)
    for missing in what_is_missing(scorer.products) if explain else ():
        warn(missing)
    options = PredictOptions(class_name, batch, workers, maps=True, review=review, min_area=least, explain=explain)

    def unreadable(prediction: "Prediction") -> None:
        warn(f"{prediction.file.name}: {prediction.error}")

    if videos:
        wanted = overlay_video.VideoOptions(fps, regions)
        overlays.colour_scale(scorer.products, "")  # refuses a model without a threshold
        predictions = sources.running(scorer, videos, options, which)
        counts = overlay_video.write_overlay_videos(predictions, videos, scorer, output, wanted, unreadable)
        typer.echo(f"{sum(counts.values()) - counts['error']} frames with their overlay in {shown(output)}")
        running.leave(counts)
    counts = overlays.write_maps(
        running.running(scorer, files, options),
        files,
        scorer,
        output,
        overlays.MapOptions(raw, regions, explain),
        on_unreadable=unreadable,
    )
    beside = ["contact_sheet.png"]
    beside += ["regions.jsonl"] * regions + ["explanations.jsonl"] * explain
    names = ["overlays", *beside[:-1]]
    typer.echo(f"{sum(counts.values()) - counts['error']} {', '.join(names)} and {beside[-1]} in {shown(output)}")
    running.leave(counts)
