"""A model file or an exported one -> a scorer, as a command or a program asks for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.roi import MaskFolder, Wish, regions_of_interest
from mambaad_cli.inspection import exported_scorer, runtimes, store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Product, Size, region_digest
from mambaad_cli.inspection.recalibrate import check_region
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.inspection.torch_scorer import TorchScorer

RUNTIMES = ("auto", "torch", "onnxruntime")  # of the default encoder on a CPU


@dataclass(frozen=True)
class OpenRequest:
    """Which model scores, where, and what of its photos counts."""

    path: Path
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    runtime: str = "auto"  # of the encoder
    precision: str = "fp32"  # of matrix products
    size: Size | None = None  # that the decoder sees, in place of that of fit
    inside: tuple[Wish, ...] = ()  # regions of interest in place of those of fit
    ignored: tuple[Wish, ...] = ()  # regions that do not count
    masks: MaskFolder | None = None  # a mask for each photo
    calibrating: bool = False  # thresholds are about to be set: nothing is said of those that go


class Opened(NamedTuple):
    """A model that is ready to score."""

    scorer: Scorer
    fitted: TorchScorer | None  # the same, of a model file; None: an exported model, which cannot be changed
    notes: tuple[str, ...] = ()  # what the user should know, a line each

    def changeable(self, path: Path) -> TorchScorer:
        """The scorer of a model file. Raises MambaADError for an exported model, where only a model file will do."""
        if self.fitted is None:
            raise MambaADError(f"{path} is an exported model: take the model file that it was made from")
        return self.fitted


def open_model(request: OpenRequest) -> Opened:
    """Read a model, ready to score.

    Raises MambaADError for a file that is missing, damaged or made by a newer version, for a device or runtime that
    does not exist, and for regions that the model cannot see.
    """
    if request.runtime not in RUNTIMES:
        raise MambaADError(f"no runtime {request.runtime!r}: choose {', '.join(RUNTIMES)}")
    if request.path.suffix.lower() in runtimes.SUFFIXES:
        return Opened(_open_exported(request), None)
    record = store.load(request.path).at_precision(request.precision)
    seen, notes = under_request(record, request)
    seen = seen.to(distributed.pick_device(request.device))
    scorer = TorchScorer(seen, request.runtime, request.masks)
    return Opened(scorer, scorer, notes)


def _open_exported(request: OpenRequest) -> Scorer:
    path = request.path
    if request.size is not None or request.precision != "fp32":
        raise MambaADError(f"{path} has its size and precision inside: --res and --precision are for the model file")
    if request.inside or request.ignored:
        raise MambaADError(f"{path} has its region of interest inside: --roi and --ignore are for the model file")
    if request.device not in ("auto", "cpu"):
        raise MambaADError(f"an exported model runs on the CPU here, not on {request.device}")
    scorer = exported_scorer.load(path, request.masks)
    _check_masks(scorer.preparation)
    return scorer


def under_request(record: ModelRecord, request: OpenRequest) -> tuple[ModelRecord, tuple[str, ...]]:
    """The record at the size and with the regions that are asked for, and what that means for its thresholds."""
    notes = []
    same = request.size is None or request.size == _only_size(record)
    seen = record if same or request.size is None else record.at_size(request.size)
    if seen.calibrated != record.calibrated and not request.calibrating:
        height, width = request.size or (0, 0)
        notes.append(
            f"the threshold was set at another size than {width}x{height}, so verdicts are uncalibrated: "
            f"mambaad calibrate --res sets one"
        )
    looked = _through_regions(seen, request)
    if looked.calibrated != seen.calibrated and not request.calibrating:
        notes.append(
            "the threshold is not of this region of interest, so verdicts are uncalibrated: "
            "mambaad calibrate --roi sets both"
        )
    _check_masks(Preparation(looked.network.settings, looked.products, request.masks))
    return looked, tuple(notes)


def _only_size(record: ModelRecord) -> Size | None:
    """The size of all products; None where they have several."""
    sizes = {product.size for product in record.products.values()} or {record.network.settings.size}
    return sizes.pop() if len(sizes) == 1 else None


def _through_regions(record: ModelRecord, request: OpenRequest) -> ModelRecord:
    shapes = {name: product.photo_shape for name, product in record.products.items() if product.photo_shape}
    regions = regions_of_interest(request.inside, request.ignored, shapes) if request.inside or request.ignored else {}
    own_masks = request.masks is not None
    changed: list[Product] = []
    for name, product in record.products.items():
        region = regions.get(name)
        if region is not None and region_digest(region) != region_digest(product.region):
            check_region(product, region)
        changed.append(product.under(region=region, own_masks=own_masks))
    return record.with_products(*changed)


def _check_masks(preparation: Preparation) -> None:
    if preparation.own_masks and preparation.masks is None:
        raise MambaADError("the model was fitted with a mask for each photo: give their folder with --roi-dir")
