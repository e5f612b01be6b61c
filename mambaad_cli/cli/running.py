"""How commands use a model: open it, score with a progress bar, end with the exit status of the verdicts."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from mambaad_cli import MambaADError, distributed
from mambaad_cli.cli.app import ANOMALY_FOUND, USER_CAN_MEND
from mambaad_cli.cli.options import parse_size, pick_precision
from mambaad_cli.cli.output import no_progress, warn

if TYPE_CHECKING:
    from mambaad_cli.data.images import ImageFile
    from mambaad_cli.data.roi import MaskFolder, Wish
    from mambaad_cli.inspection.opening import Opened
    from mambaad_cli.inspection.prediction import Prediction, PredictOptions
    from mambaad_cli.inspection.product import Products
    from mambaad_cli.inspection.scorer import Scorer


class RegionOptions(NamedTuple):
    """Which part of the photos counts, as it was typed."""

    roi: "Sequence[str] | None" = None
    ignore: "Sequence[str] | None" = None
    roi_dir: Path | None = None
    calibrating: bool = False  # thresholds are about to be set: nothing is said of those that go


def open_model(
    path: Path,
    device: str,
    res: str | None = None,
    precision: str = "auto",
    runtime: str = "auto",
    regions: RegionOptions | None = None,
) -> "Opened":
    """The model, ready to score on a device, at its own size or another; what that means for thresholds is warned of,
    unless they are about to be set."""
    from mambaad_cli.inspection import opening

    regions = regions or RegionOptions()
    opened = opening.open_model(
        opening.OpenRequest(
            path,
            device,
            runtime,
            pick_precision(precision),
            None if res is None else parse_size(res),
            wishes(regions.roi),
            wishes(regions.ignore),
            masks_in(regions.roi_dir),
            regions.calibrating,
        )
    )
    for note in opened.notes:
        warn(note)
    return opened


def find(paths: "Sequence[Path]") -> "list[ImageFile]":
    """The images in folders and those named themselves; pictures of kinds that are not read are counted on stderr."""
    from mambaad_cli.data import images

    unread: Counter[str] = Counter()
    files = images.find(paths, unread)
    warn_of_unread(unread)
    return files


def good_files(folder: Path) -> "list[ImageFile]":
    """The images in a folder. Raises MambaADError where it is none."""
    from mambaad_cli.training import good_images

    unread: Counter[str] = Counter()
    files = good_images.good_files(folder, unread)
    warn_of_unread(unread)
    return files


def warn_of_unread(unread: "Counter[str]") -> None:
    """Say how many pictures were left out, and of which kinds: a photo that was not inspected is not a good one."""
    from mambaad_cli.data.image_files import describe_unread

    if unread:
        warn(f"left out {describe_unread(unread)}")


def wishes(regions: "Sequence[str] | None") -> "tuple[Wish, ...]":
    """The regions that were typed."""
    from mambaad_cli.data.roi import parse

    return tuple(parse(text) for text in regions or ())


def masks_in(folder: Path | None) -> "MaskFolder | None":
    """A mask for each photo."""
    from mambaad_cli.data.roi import MaskFolder

    return None if folder is None else MaskFolder(folder)


def check_review(products: "Products", review: float | None) -> None:
    """Refuse a review share that is too small, and warn where there are too few scores for a threshold of its own."""
    from mambaad_cli.inspection.calibration import exceeds, percent

    if review is None:
        return
    for product in products.values():
        measured = product.calibration
        if measured is None:
            continue
        share = measured.share
        if review <= share:
            raise MambaADError(f"--review {percent(review)} must be more than the {percent(share)} of the threshold")
        if not exceeds(measured.threshold, measured.threshold_for(review)):
            same = f"{len(measured.scores)} good images are too few to tell {percent(review)} from {percent(share)}"
            warn(f"{product.name}: {same}: no image will be marked for review; calibrate with more good images")


def check_calibrated(products: "Products", path: Path) -> None:
    """Raises MambaADError where no image could be anomalous, for commands whose exit status depends on it."""
    if all(product.calibration is None for product in products.values()):
        raise MambaADError(f"{path} has no threshold here, so nothing can fail: mambaad calibrate {path} GOOD_DIR")


def running(scorer: "Scorer", files: "Sequence[ImageFile]", options: "PredictOptions") -> "Iterator[Prediction]":
    """Predictions as they come, with a progress bar on stderr if that is a terminal."""
    from tqdm import tqdm

    from mambaad_cli.inspection.predict import check_class, predict

    check_class(scorer.products, options.class_name)

    def work(files: "Sequence[ImageFile]") -> "Iterator[Prediction]":
        return predict(scorer, files, options)

    predictions = distributed.in_order(work, files, options.batch)
    return iter(tqdm(predictions, total=len(files), unit="image", leave=False, disable=no_progress(), file=sys.stderr))


def leave(counts: Any, fail_on_anomaly: bool = False) -> None:
    """End with the exit status that the verdicts call for."""
    if fail_on_anomaly and (counts["anomalous"] or counts["unknown"]):
        raise typer.Exit(ANOMALY_FOUND)
    raise typer.Exit(USER_CAN_MEND if counts["error"] else 0)
