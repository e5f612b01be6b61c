"""mambaad calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running
from mambaad_cli.cli.app import USER_CAN_MEND, app, examples
from mambaad_cli.cli.options import (
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


@app.command(
    epilog=examples(
        "mambaad calibrate mambaad.safetensors ./more_good/",
        "mambaad calibrate mambaad.safetensors --bad ./known_defects/",
    )
)
def calibrate(
    model: Annotated[Path, typer.Argument(help="Model file. It is rewritten with its new threshold.")],
    good: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of good images not used for training. Without it, the scores that the model keeps are used."
        ),
    ] = None,
    max_false_reject: MaxFalseReject = None,
    bad: Annotated[
        Path | None, typer.Option(help="Folder of known defects: tells how many are found. Nothing is trained on them.")
    ] = None,
    as_json: AsJson = False,
    class_name: ClassName = None,
    res: Annotated[
        str | None, typer.Option(help="Image size to calibrate for; the model then scores at this size.")
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
    from mambaad_cli.inspection import model_file
    from mambaad_cli.inspection.findings import known_defects
    from mambaad_cli.inspection.predict import Prediction, PredictOptions
    from mambaad_cli.inspection.recalibration import recalibrate
    from mambaad_cli.training.good_images import good_files

    if good is None and (res is not None or (max_false_reject is None and bad is None)):
        raise typer.BadParameter(
            "give a folder of good images, or --max-false-reject or --bad alone", param_hint="GOOD"
        )
    fitted = running.load_model(model, device, precision=precision, runtime=runtime)
    running.refuse_exported(fitted, model)
    fitted.max_false_reject = max_false_reject or fitted.max_false_reject
    if good is None and (roi or ignore):
        raise typer.BadParameter(
            "a region needs a threshold of its own: give a folder of good images", param_hint="--roi"
        )
    if good is not None or bad is not None:
        running.set_regions(fitted, roi, ignore, roi_dir, calibrating=good is not None)
    skipped: list[Prediction] = []

    def left_out(one: Prediction, why: str) -> None:
        skipped.append(one)
        warn(f"{one.file.path}: {why}")

    if good is not None:
        if res is not None:
            running.set_size(fitted, res)
        files = good_files(good)
        found = running.running(fitted, files, PredictOptions(class_name, batch, workers, distances=True))
        recalibrate(fitted, found, good, new_size=res is not None, on_left_out=left_out)
    elif not fitted.scores:
        raise MambaADError(f"{model} keeps no scores of good images: give a folder of some")
    known = None
    if bad is not None:
        found = running.running(fitted, good_files(bad), PredictOptions(class_name, batch, workers))
        known = known_defects(fitted, scores_of_defects(found, left_out))
    model_file.save(fitted.to("cpu"), model)
    if as_json:
        print_summary(fitted, model, known)
    else:
        print_thresholds(fitted)
        print_known(fitted, known or {})
    raise typer.Exit(USER_CAN_MEND if skipped else 0)
