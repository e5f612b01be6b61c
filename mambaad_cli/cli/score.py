"""mambaad score."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli import distributed
from mambaad_cli.cli import reporting, running, sources
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
    ReportFile,
    Res,
    Review,
    Roi,
    RoiDir,
    Runtime,
    Workers,
    parse_min_area,
    parse_shard,
)
from mambaad_cli.cli.output import check_apart


@command(
    panel=INSPECT,
    epilog=examples(
        "mambaad score ./incoming/",
        "mambaad score ./incoming/ --csv > scores.csv",
        "mambaad score camera:0 --csv --fps 5 --frames 3",
    ),
)
def score(
    paths: Inputs,
    model: ModelFile = DEFAULT_MODEL,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV row per image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File for the rows, instead of stdout.")
    ] = None,
    review: Review = None,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions",
            help="With --json: add the anomalous regions of each image, in its pixels.",
            rich_help_panel=VERDICTS,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Score the files of shard K of N, such as 3/100, where K is from 1 to N; see `mambaad merge`.",
        ),
    ] = None,
    min_area: MinArea = 0,
    report: ReportFile = None,
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
    fail_on_anomaly: Annotated[
        bool,
        typer.Option("--fail-on-anomaly", help="Exit status 3 if an image is anomalous.", rich_help_panel=VERDICTS),
    ] = False,
) -> None:
    """Score images: a table for people, or with --csv or --json rows for programs, in the order of the images.

    Of videos, cameras and streams each frame is an image.
    """
    from rich.console import Console

    from mambaad_cli.inspection import rows, shards
    from mambaad_cli.inspection.prediction import PredictOptions

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    if regions and not as_json:
        raise typer.BadParameter("needs --json: a region is a box, an area and a peak", param_hint="--regions")
    least = parse_min_area(regions, min_area)
    wanted = None if shard is None else parse_shard(shard)
    which = sources.FrameOptions(fps, frames)
    videos = sources.sources_among(paths, which)
    if videos:
        sources.refuse({"--shard": wanted}, "shares photos between machines, not the frames of videos")
    if sources.is_live(videos):
        rows_wanted = as_csv or as_json or output
        sources.refuse(
            {"PATHS": not rows_wanted}, "a camera has no end, and so no table: add --csv, --json or --output"
        )
        sources.refuse({"--report": report}, "a camera has no end: write the report from rows, with mambaad report")
    files = [] if videos else running.find([Path(path) for path in paths])
    share = None if wanted is None else shards.share(files, wanted)
    files = files if share is None else share.files
    inputs = [model, *(file.path for file in files), *(video.path for video in videos if not video.live)]
    check_apart(output, inputs)
    check_apart(report, inputs, "--report")
    scorer = running.open_model(
        model, device, res, precision, runtime, running.RegionOptions(roi, ignore, roi_dir)
    ).scorer
    running.check_review(scorer.products, review)
    if fail_on_anomaly:
        running.check_calibrated(scorer.products, model)
    options = PredictOptions(class_name, batch, workers, review=review, min_area=least)
    kept = None
    if report is not None:
        options, kept = reporting.begin(report, len(files) or reporting.MAX_PICTURES, options, scorer)
    predictions = sources.running(scorer, videos, options, which) if videos else running.running(scorer, files, options)
    if distributed.rank() > 0:
        for _ in predictions:  # there are none: all go to the first process
            pass
        return
    if kept is not None:
        predictions = kept.passing(predictions)
    if not (as_csv or as_json or output):
        counts = rows.print_table(predictions, Console())
    else:
        counts = rows.write_rows(predictions, output, as_json, regions, scorer.sha256, share)
    if kept is not None and report is not None:
        reporting.finish(report, kept, model, scorer)
    running.leave(counts, fail_on_anomaly)
