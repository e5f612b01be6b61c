"""mambaad eval."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli.cli import reporting, running
from mambaad_cli.cli.app import INTERRUPTED, PROVE, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    Batch,
    Device,
    Format,
    Layout,
    ModelFile,
    Precision,
    ReportFile,
    RoiDir,
    Runtime,
    Workers,
    given,
)
from mambaad_cli.cli.output import no_progress, note, publish, warn
from mambaad_cli.files import shown


@command(
    "eval",
    panel=PROVE,
    epilog=examples("mambaad eval mambaad.safetensors ./mvtec/", "mambaad eval ./mvtec/ --format csv"),
)
def evaluate(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] DATASET",
            help="Model file (or use --model), and a folder with test images, labels and masks.",
        ),
    ],
    model: ModelFile = DEFAULT_MODEL,
    layout: Layout = None,
    format: Format = "table",
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Pixel metrics at the size of the photos, not of the model's maps.")
    ] = False,
    maps: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for an overlay of each image.")] = None,
    worst: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for contact sheets of the worst mistakes.")
    ] = None,
    report: ReportFile = None,
    roi_dir: RoiDir = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Measure a model on a labelled benchmark: the seven metrics, false rejects and misses of each class."""
    from tqdm import tqdm

    from mambaad_cli.benchmark import evaluation, evaluation_sheets, evaluation_tables
    from mambaad_cli.benchmark.evaluation import EvaluationOptions
    from mambaad_cli.data import datasets
    from mambaad_cli.inspection.prediction import Prediction, PredictOptions

    *models, dataset = paths
    if len(models) > 1:
        raise typer.BadParameter(f"{len(paths)} paths: expected [MODEL] DATASET")
    if models and given(ctx, ("model",)):
        raise typer.BadParameter(f"two models: {shown(models[0])} and --model {shown(model)}")
    model = models[0] if models else model
    if worst is not None:
        evaluation_sheets.check_sheets(worst)
    unread: Counter[str] = Counter()
    samples = datasets.load(dataset, layout, unread)
    running.warn_of_unread(unread)
    regions = running.RegionOptions(roi_dir=roi_dir)
    scorer = running.open_model(model, device, None, precision, runtime, regions).scorer
    references = {sample.path: sample.defect for sample in samples if sample.split == "test"}
    collector = None if report is None else reporting.begin(report, len(references), PredictOptions(), scorer)[1]
    options = EvaluationOptions(batch, workers, full_size, maps, pictures=collector is not None)
    with tqdm(total=len(references), unit="image", leave=False, disable=no_progress(), file=sys.stderr) as progress:

        def on_result(prediction: Prediction) -> None:
            progress.update()
            if collector is not None:
                collector.add(prediction, references[prediction.file.path])

        measured = evaluation.evaluate(scorer, samples, options, on_result)
    publish(evaluation_tables, measured, format, output=None)
    for remark in evaluation_tables.notes(measured):
        warn(remark)
    if worst is not None:
        for path in evaluation_sheets.write_worst(measured, scorer, worst):
            note(f"mambaad: wrote {path}")
    if collector is not None and report is not None:
        reporting.finish(report, collector, model, scorer, title=f"Evaluation on {dataset}")
    if measured.unfinished:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(USER_CAN_MEND if any(metrics.unreadable for metrics in measured.classes) else 0)
