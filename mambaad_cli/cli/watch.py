"""mambaad watch."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running, sources
from mambaad_cli.cli.app import LINE, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    VERDICTS,
    Batch,
    ClassName,
    Device,
    Fps,
    Frames,
    MinArea,
    ModelFile,
    Precision,
    Res,
    Review,
    RoiDir,
    Runtime,
    Workers,
    parse_min_area,
)
from mambaad_cli.cli.output import note, warn
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.inspection.scorer import Scorer
    from mambaad_cli.line.delivery import Delivery

# What ends a watch besides Ctrl-C: a service manager's signal, and on Windows Ctrl-Break, which it sends to a group.
END_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]
PASSED_ON = "What else is done with each row"


@command(
    panel=LINE,
    epilog=examples(
        "mambaad watch ./incoming/ -o rows.jsonl",
        "mambaad watch ./incoming/ -o rows.jsonl --maps ./maps/ --move-to ./done/",
        "mambaad watch ./incoming/ -o rows.jsonl --exec 'python3 tell_plc.py'",
        "mambaad watch rtsp://line3/stream1 -o rows.jsonl --fps 2 --frames 3",
    ),
)
def watch(
    folder: Annotated[
        str,  # not Path, which takes a slash out of rtsp://
        typer.Argument(
            metavar="FOLDER",
            help="Folder in which photos arrive, sub-folders included; or a video, a camera (camera:0) or a stream "
            "(rtsp://… or http://…).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File of rows to go on with: CSV if it ends in .csv, else JSON."
        ),
    ],
    model: ModelFile = DEFAULT_MODEL,
    review: Review = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Add the anomalous regions to each JSON row.", rich_help_panel=VERDICTS)
    ] = False,
    min_area: MinArea = 0,
    fps: Fps = None,
    frames: Frames = 1,
    class_name: ClassName = None,
    roi_dir: RoiDir = None,
    settle: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time for which size and times of a file stand still before it is scored. 0: at once.",
        ),
    ] = 0.5,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time after which a file that still changes gets a row with an error, and a damaged one is moved.",
        ),
    ] = 60,
    once: Annotated[bool, typer.Option("--once", help="End when all photos that are there have a row.")] = False,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for overlays: of all photos, or of anomalous frames.",
            rich_help_panel=PASSED_ON,
        ),
    ] = None,
    move_to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to which scored photos are moved, into one for each verdict.",
            rich_help_panel=PASSED_ON,
        ),
    ] = None,
    execute: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run it with the JSON row on its stdin, without a shell.",
            rich_help_panel=PASSED_ON,
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="POST the JSON row, signed (Standard Webhooks) if MAMBAAD_WEBHOOK_SECRET is set.",
            rich_help_panel=PASSED_ON,
        ),
    ] = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Score each photo that arrives in a folder, once, and append its row to a file. Ends with SIGTERM or Ctrl-C.

    Of a video, a camera or a stream it scores the frames.
    """
    from mambaad_cli.inspection.predict import check_class
    from mambaad_cli.inspection.prediction import PredictOptions
    from mambaad_cli.line.following import Following
    from mambaad_cli.line.watching import Watch, WatchOptions

    source = next(iter(sources.sources_among([folder], sources.FrameOptions(fps, frames))), None)
    if source is not None:
        sources.refuse({"--move-to": move_to}, "moves photos, not the frames of a video")
        sources.refuse({"--once": once and source.live}, "a camera has no end")
    if regions and output.suffix.lower() == ".csv":
        raise typer.BadParameter("needs JSON rows: name an --output that does not end in .csv", param_hint="--regions")
    smallest = parse_min_area(regions, min_area)
    deliveries = _deliveries(execute, webhook)
    regions_of = running.RegionOptions(roi_dir=roi_dir)

    def opened() -> "Scorer":
        scorer = running.open_model(model, device, res, precision, runtime, regions_of).scorer
        running.check_review(scorer.products, review)
        check_class(scorer.products, class_name)
        return scorer

    renewing = Renewing(model, opened)
    scorer = opened()
    predict = PredictOptions(class_name, batch, workers, review=review, min_area=smallest)
    options = WatchOptions(predict, settle, patience, once, regions, maps, move_to, renewing.scorer, fps, frames)
    watching: Watch | Following
    if source is None:
        watching, images = Watch(scorer, Path(folder), output, options, deliveries, warn), "photos"
    else:
        watching, images = Following(scorer, source, output, options, deliveries, warn), "frames"

    def stop(number: int, frame: Any) -> None:
        watching.stopping = True

    before = {number: signal.signal(number, stop) for number in END_SIGNALS}
    try:
        if recorded := watching.journal.ledger.recorded:
            note(f"{recorded} {images} have a row already")
        counts = watching.run()
    finally:
        watching.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    note(f"{sum(counts.values())} {images}{': ' if verdicts else ''}{verdicts}; rows in {shown(output)}")


class Renewing:
    """Opens a model file again whenever it was replaced. One that cannot be opened is said once, and not used."""

    def __init__(self, path: Path, opened: "Callable[[], Scorer]") -> None:
        self.path, self.opened, self.version = path, opened, _version(path)

    def scorer(self) -> "Scorer | None":
        """The new model; None where it is the one that was there."""
        version = _version(self.path)
        if version is None or version == self.version:
            return None
        self.version = version
        try:
            return self.opened()
        except MambaADError as error:
            warn(f"going on with the model that was there: {error}")
            return None


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells one version of a file from another; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _deliveries(execute: str | None, webhook: str | None) -> "list[Delivery]":
    from mambaad_cli.line import delivery

    senders = [delivery.command(execute)] if execute is not None else []
    senders += [delivery.webhook(webhook, warn)] if webhook is not None else []
    return [delivery.Delivery(name, send, warn) for name, send in senders]
