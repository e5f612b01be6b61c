"""How commands use a fitted model: load it, score with a progress bar, end with the exit status of the verdicts."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mambaad_cli import MambaADError, distributed
from mambaad_cli.cli.app import ANOMALY_FOUND, USER_CAN_MEND
from mambaad_cli.cli.options import parse_size, pick_precision
from mambaad_cli.cli.output import warn

if TYPE_CHECKING:
    import numpy as np

    from mambaad_cli.data.images import ImageFile
    from mambaad_cli.data.roi import MaskFolder, Wish
    from mambaad_cli.inspection.fitted_model import FittedModel
    from mambaad_cli.inspection.predict import Prediction, PredictOptions


def load_model(
    path: Path, device: str, res: str | None = None, precision: str = "auto", runtime: str = "auto"
) -> "FittedModel":
    """The model, ready to score on a device, at its own size or another."""
    from mambaad_cli import api
    from mambaad_cli.inspection.exported_model import ExportedModel

    model = api.load(path, device, runtime)
    if isinstance(model, ExportedModel) and (res is not None or pick_precision(precision) != "fp32"):
        raise MambaADError(f"{path} has its size and precision inside: --res and --precision are for the model file")
    model.precision = pick_precision(precision)
    if res is not None and parse_size(res) != model.settings.size:
        if model.scores:
            warn(f"the threshold was set at another size than {res}: mambaad calibrate --res {res} sets it anew")
        set_size(model, res)
    return model


def refuse_exported(model: "FittedModel", path: Path) -> None:
    """Raises MambaADError for an exported model, where only a model file will do."""
    from mambaad_cli.inspection.exported_model import ExportedModel

    if isinstance(model, ExportedModel):
        raise MambaADError(f"{path} is an exported model: take the model file that it was made from")


def set_size(model: "FittedModel", res: str) -> None:
    """Let the model score at another image size. The limit of recognition holds for one size only, so it is removed:
    until the model is calibrated, every image counts as known.

    A memory that looks twice still does, closely at images as much larger.
    """
    from mambaad_cli.model.settings import scaled_size

    size, detail = parse_size(res), model.settings.detail if model.settings.two_looks else 1.0
    size = size if detail == 1 else scaled_size(size, detail)
    model.settings = replace(model.settings, size=size, own_aspect=False, detail=detail)
    model.sizes = {}
    if model.recogniser is not None:
        model.recogniser = model.recogniser._replace(limit=math.inf)


def wishes(regions: "Sequence[str] | None") -> "tuple[Wish, ...]":
    """The regions that were typed."""
    from mambaad_cli.data.roi import parse

    return tuple(parse(text) for text in regions or ())


def masks_in(folder: Path | None) -> "MaskFolder | None":
    """A mask for each photo."""
    from mambaad_cli.data.roi import MaskFolder

    return None if folder is None else MaskFolder(folder)


def set_regions(
    model: "FittedModel",
    roi: "Sequence[str] | None",
    ignore: "Sequence[str] | None",
    roi_dir: Path | None,
    calibrating: bool = False,
) -> None:
    """Let other regions of the photos count than those of fit; where nothing is calibrated, say what that means."""
    from mambaad_cli.data.roi import regions_of_interest

    model.masks = masks_in(roi_dir)
    changed = roi_dir is not None and not model.own_masks
    if roi or ignore:
        found = regions_of_interest(wishes(roi), wishes(ignore), model.photos)
        changed = changed or any(_differ(mask, model.rois.get(name)) for name, mask in found.items())
        model.rois |= found
    model.own_masks = model.own_masks or roi_dir is not None
    if model.own_masks and model.masks is None:
        raise MambaADError("the model was fitted with a mask for each photo: give their folder with --roi-dir")
    if changed and not calibrating and model.scores:
        warn("the threshold is not of this region of interest: mambaad calibrate --roi sets both")


def _differ(one: "np.ndarray", other: "np.ndarray | None") -> bool:
    return other is None or one.tobytes() != other.tobytes()


def check_review(model: "FittedModel", review: float | None) -> None:
    """Refuse a review share that is too small, and warn where there are too few scores for a threshold of its own."""
    from mambaad_cli.inspection.calibration import USUAL, exceeds, percent

    if review is None:
        return
    strict = model.max_false_reject or USUAL
    if review <= strict:
        raise MambaADError(f"--review {percent(review)} must be more than the {percent(strict)} of the threshold")
    for name, scores in model.scores.items():
        threshold, lower = model.threshold(name), model.threshold(name, review)
        if threshold is not None and lower is not None and not exceeds(threshold, lower):
            same = f"{len(scores)} good images are too few to tell {percent(review)} from {percent(strict)}"
            warn(f"{name}: {same}: nothing is for review until mambaad calibrate has more")


def running(model: "FittedModel", files: "Sequence[ImageFile]", options: "PredictOptions") -> "Iterator[Prediction]":
    """Predictions as they come, with a progress bar on stderr if that is a terminal."""
    from tqdm import tqdm

    from mambaad_cli.inspection.predict import check_class, predict

    check_class(model, options.class_name)

    def work(files: "Sequence[ImageFile]") -> "Iterator[Prediction]":
        return predict(model, files, options)

    predictions = distributed.in_order(work, files, options.batch)
    silent = distributed.rank() > 0 or None  # None: where stderr is no terminal
    return iter(tqdm(predictions, total=len(files), unit="image", leave=False, disable=silent, file=sys.stderr))


def leave(counts: Any, fail_on_anomaly: bool = False) -> None:
    """End with the exit status that the verdicts call for."""
    if fail_on_anomaly and (counts["anomalous"] or counts["unknown"]):
        raise typer.Exit(ANOMALY_FOUND)
    raise typer.Exit(USER_CAN_MEND if counts["error"] else 0)
