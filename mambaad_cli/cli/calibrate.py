"""mambaad calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running
from mambaad_cli.cli.app import INSPECT, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import (
    PHOTOS,
    AsJson,
    Batch,
    ClassName,
    Device,
    Ignore,
    MaxFalseReject,
    Precision,
    Roi,
    RoiDir,
    Runtime,
    Workers,
)
from mambaad_cli.cli.output import print_known, print_summary, print_thresholds, scores_of_defects, warn


@command(
    panel=INSPECT,
    epilog=examples(
        "mambaad calibrate mambaad.safetensors ./more_good/",
        "mambaad calibrate mambaad.safetensors --bad ./known_defects/",
    ),
)
def calibrate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Model file. It is rewritten with its new threshold, but not by --bad alone."
        ),
    ],
    good: Annotated[
        Path | None,
        typer.Argument(
            metavar="GOOD",
            help="Folder of good images not used for training. Without it, the scores that the model keeps are used.",
        ),
    ] = None,
    max_false_reject: MaxFalseReject = None,
    bad: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of known defects: tells how many are found. Nothing is trained on them."
        ),
    ] = None,
    as_json: AsJson = False,
    class_name: ClassName = None,
    res: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Image size to calibrate for; the model then scores at this size.",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    roi: Roi = None,
    ignore: Ignore = None,
    roi_dir: RoiDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    batch: Batch = 8,
    workers: Workers = 2,
) -> None:
    """Set the threshold anew from good images that were not used for training, without training.

    The product of an image is given by --class or by a parent folder named like it; otherwise it is recognised.
    """
    from mambaad_cli.inspection import store
    from mambaad_cli.inspection.findings import known_defects
    from mambaad_cli.inspection.prediction import Prediction, PredictOptions
    from mambaad_cli.inspection.recalibrate import recalibrated_record, rejecting

    if good is None and (res is not None or (max_false_reject is None and bad is None)):
        raise typer.BadParameter(
            "give a folder of good images, or --max-false-reject or --bad alone", param_hint="GOOD"
        )
    if good is None and (roi or ignore):
        raise typer.BadParameter(
            "a region needs a threshold of its own: give a folder of good images", param_hint="--roi"
        )
    if good is None and bad is None and roi_dir is not None:
        raise typer.BadParameter("masks belong to photos: give a folder of good images", param_hint="--roi-dir")
    regions = running.RegionOptions(roi, ignore, roi_dir, calibrating=good is not None)
    opened = running.open_model(model, device, res, precision, runtime, regions)
    fitted = opened.changeable(model)
    skipped: list[Prediction] = []

    def left_out(prediction: Prediction, why: str) -> None:
        skipped.append(prediction)
        warn(f"{prediction.file.path}: {why}")

    record = fitted.record
    if good is not None:
        predictions = running.running(
            fitted, running.good_files(good), PredictOptions(class_name, batch, workers, distances=True)
        )
        record = recalibrated_record(record, predictions, good, max_false_reject, on_left_out=left_out)
    elif not record.calibrated:
        raise MambaADError(f"{model} keeps no scores of good images: give a folder of some")
    elif max_false_reject is not None:
        record = rejecting(record, max_false_reject)
    known = None
    if bad is not None:
        predictions = running.running(
            fitted.with_record(record), running.good_files(bad), PredictOptions(class_name, batch, workers)
        )
        known = known_defects(record.products, scores_of_defects(predictions, left_out))
    if good is not None or max_false_reject is not None:  # a question about known defects changes no file
        store.save(record.to("cpu"), model)
    if as_json:
        print_summary(record.products, model, known)
    else:
        print_thresholds(record.products)
        print_known(record.products, known or {})
    raise typer.Exit(USER_CAN_MEND if skipped else 0)
