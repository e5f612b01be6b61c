"""mambaad report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import reporting, running
from mambaad_cli.cli.app import PROVE, command, examples
from mambaad_cli.cli.options import Batch, Device, Precision, Res, RoiDir, Workers, given
from mambaad_cli.cli.output import check_apart, check_writable, warn
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.data.images import ImageFile
    from mambaad_cli.inspection.prediction import Prediction
    from mambaad_cli.inspection.row_files import Row
    from mambaad_cli.inspection.scorer import Scorer


OF_A_MODEL = ("roi_dir", "res", "batch", "device", "precision", "explain")  # options that need --model


@command(
    panel=PROVE,
    epilog=examples(
        "mambaad report rows.jsonl -o report.html --model mambaad.safetensors",
        "mambaad score ./incoming/ --report report.html",
    ),
)
def report(
    ctx: typer.Context,
    rows: Annotated[
        list[Path], typer.Argument(metavar="ROWS", help="Files of rows, from mambaad score --json or --csv, or watch.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            envvar="MAMBAAD_MODEL",
            metavar="FILE",
            help="Model file, for overlays of the photos and the record.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Title of the report.")] = reporting.TITLE,
    link: Annotated[
        bool, typer.Option("--link", help="Link each image to its photo, as seen from the report.")
    ] = False,
    pictures: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many images, the worst ones, are shown with pictures.")
    ] = reporting.MAX_PICTURES,
    explain: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="How many images, the worst ones, tell on a click why a region is anomalous; only with --model.",
        ),
    ] = reporting.EXPLAINED,
    msa: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also show a gauge study, written by mambaad msa --json.")
    ] = None,
    roi_dir: RoiDir = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Write rows as one HTML page: yields, scores, the images worst first, and a record for auditors.

    The file needs no network: photos and, with --model, overlays are inside it.
    """
    from mambaad_cli.inspection.row_files import read_file
    from mambaad_cli.report import collect, page
    from mambaad_cli.report.content import Report
    from mambaad_cli.report.record import record

    if model is None and (unfit := given(ctx, OF_A_MODEL)):
        raise typer.BadParameter(f"{', '.join(unfit)}: only with --model")
    files = [read_file(path) for path in rows]
    check_apart(output, [path for path in (*rows, model, msa) if path is not None])
    check_writable(output)
    study = None if msa is None else _study(msa)
    all_rows = [row for file in files for row in file.rows]
    notes = [f"{file.path}: left out damaged lines: {_some(file.damaged)}" for file in files if file.damaged]
    if model is None:
        entries, used = collect.with_photos(all_rows, output, pictures, workers, link), None
    else:
        regions = running.RegionOptions(roi_dir=roi_dir)
        opened = running.open_model(model, device, res, precision, regions=regions)
        used = model, opened.scorer
        wanted = collect.Shown(pictures, 0 if opened.fitted is None else explain, link)
        entries, differ = collect.with_overlays(all_rows, _predicting(used[1], batch, workers), output, wanted)
        notes += _doubts(all_rows, used[1].sha256, differ)
    if lost := sum(entry.pictures is None for entry in entries[:pictures]):
        notes.append(f"photos that could not be read, shown without pictures: {lost}")
    page.write(Report(title, entries, record(all_rows, files, used), notes, study), output)
    for note in notes:
        warn(note)
    typer.echo(f"{len(entries)} images in {shown(output)} ({output.stat().st_size / 1e6:.1f} MB)")


def _predicting(
    scorer: "Scorer", batch: int, workers: int
) -> "Callable[[str, Sequence[ImageFile]], Iterator[Prediction]]":
    """A function that scores files of a product, with maps and regions, for `collect.with_overlays`."""
    from mambaad_cli.inspection.prediction import PredictOptions

    options = PredictOptions(batch=batch, workers=workers, maps=True, min_area=0, explainable=True)

    def predicted(name: str, files: "Sequence[ImageFile]") -> "Iterator[Prediction]":
        class_name = name if name in scorer.products else None
        return running.running(scorer, files, replace(options, class_name=class_name))

    return predicted


def _doubts(rows: "Sequence[Row]", model: str, differ: int) -> list[str]:
    """Why the overlays, which `model` made, may not be those of the rows."""
    lines = []
    if others := sorted({row.model for row in rows if row.model and row.model != model}):
        lines.append(f"rows of another model than {model}, whose overlays are shown: {', '.join(others)}")
    if differ:
        lines.append(f"photos whose score is not that of their row: {differ}; another model, or other photos")
    return lines


def _study(path: Path) -> dict[str, Any]:
    """What `mambaad msa --json` wrote."""
    from mambaad_cli.data.lists import json_object

    study = json_object(path)
    if not {"agreement", "scores", "flips", "parts", "photos"} <= set(study):
        raise MambaADError(f"{shown(path)} is no gauge study: expected what mambaad msa --json writes")
    return study


def _some(numbers: Sequence[int]) -> str:
    """
    >>> _some([13]), _some(range(100))
    ('13', '0, 1, 2, 3, 4 and 95 more')
    """
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, numbers[:5])) + more
