"""mambaad msa."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli.cli import running
from mambaad_cli.cli.app import PROVE, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import DEFAULT_MODEL, Batch, ClassName, Device, ModelFile, Precision, Res, RoiDir, Workers
from mambaad_cli.cli.output import warn


@command(panel=PROVE, epilog=examples("mambaad msa ./study/", "mambaad msa study.csv --json > msa.json"))
def msa(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            help="CSV with the columns part,trial,reference,path (and appraiser, or score and verdict), or a folder "
            "with good/PART/ and DEFECT/PART/, several photos each.",
        ),
    ],
    model: ModelFile = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
    class_name: ClassName = None,
    roi_dir: RoiDir = None,
    res: Res = None,
    batch: Batch = 8,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Study the inspection as a gauge: from repeated photos of known parts, how right and how repeatable it is.

    Prints effectiveness, misses, false alarms and kappa, %GRR of the scores, and which parts flip.
    """
    from rich.console import Console

    from mambaad_cli.gauge import study as studies
    from mambaad_cli.gauge import tables

    readings = studies.load(study)
    photos = studies.to_score(readings)
    if roi_dir is not None and not photos:
        raise typer.BadParameter("the study has no photos to score", param_hint="--roi-dir")
    if photos:
        from mambaad_cli.data.images import ImageFile
        from mambaad_cli.inspection.prediction import PredictOptions

        regions = running.RegionOptions(roi_dir=roi_dir)
        scorer = running.open_model(model, device, res, precision, regions=regions).scorer
        files = [ImageFile(path, Path(path.name), "") for path in photos]
        predictions = running.running(scorer, files, PredictOptions(class_name, batch, workers))
        readings = list(studies.scored(readings, predictions))
    results = studies.analyse(readings)
    if as_json:
        typer.echo(tables.to_json(results), nl=False)
    else:
        Console().print(tables.to_table(results))
    for note in results.notes:
        warn(note)
    raise typer.Exit(USER_CAN_MEND if results.unreadable else 0)
