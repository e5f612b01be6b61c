"""A model -> files that other runtimes score with: written, compared with the model, and only then kept."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.export.gate import TOLERANCE, Agreement, compare
from mambaad_cli.export.onnx_file import check_installed, onnx_bytes, tile_onnx_bytes
from mambaad_cli.export.openvino_files import openvino_files
from mambaad_cli.files import shown, written_whole
from mambaad_cli.inspection import exported_scorer
from mambaad_cli.inspection.exported_scorer import TILE_PART, ExportedScorer
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.predict import check_class, product_of
from mambaad_cli.inspection.product import Size
from mambaad_cli.inspection.torch_scorer import TorchScorer

NOT_IN_FILE_NAMES = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')  # on any system; %, because it marks those that are replaced


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is checked."""

    class_name: str | None = None  # the only product; None: all, in one file or, where they differ in size, one each
    image: str = "uint8"  # type of the input: uint8 or float32
    check: Path | None = None  # photos that are compared besides the model's own examples
    compare: bool = True  # False: nothing is compared
    tolerance: float = TOLERANCE  # of the largest relative difference
    format: Literal["onnx", "openvino"] = "onnx"


class Exported(NamedTuple):
    """One file that was written."""

    path: Path
    products: list[str]
    size: Size  # of its images
    agreement: Agreement | None  # None: it was not compared


class Target(NamedTuple):
    """One file that will be written."""

    class_name: str | None  # the only product; None: all
    path: Path


def export(
    scorer: TorchScorer,
    source: Path,
    output: Path,
    options: ExportOptions,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Exported]:
    """Write `output`, or one file for each product beside it where products have several sizes; all of them or none.

    source: the file that the model was read from. on_step: called with what is about to take time.

    Raises MambaADError where a file does not score as the model does, by how much, and for what cannot be exported.
    """
    check_installed()
    record = scorer.record
    if scorer.preparation.has_regions and record.network.settings.letterbox:
        raise MambaADError("a region of interest in a letterbox cannot be exported: fit without --letterbox")
    check_class(scorer.products, options.class_name)
    files = images.find([options.check]) if options.check is not None else []
    written = []
    with ExitStack() as kept:
        for target in targets(record, output, options.class_name):
            on_step(f"{target.path.name}: exporting")
            half = kept.enter_context(written_whole(target.path))
            kept.enter_context(written_beside(half, target.path, contents_of(record, source, target, options)))
            exported = exported_scorer.load(half, scorer.masks)
            agreement = None
            if options.compare:
                on_step(f"{target.path.name}: comparing")
                agreement = compare(scorer, exported, _files_of(target, files, scorer, options))
                report = kept.enter_context(written_whole(report_path(target.path)))
                report.write_text(report_of(target.path, exported, agreement, options), encoding="utf-8")
                if not agreement.within(options.tolerance):
                    raise MambaADError(refusal(target.path, agreement, options.tolerance))
            written.append(Exported(target.path, exported.names, exported.input_size, agreement))
    for file in written:
        if file.agreement is None:
            report_path(file.path).unlink(missing_ok=True)  # the numbers of an earlier file
    return written


def _files_of(target: Target, files: list[ImageFile], scorer: TorchScorer, options: ExportOptions) -> list[ImageFile]:
    """The photos to compare a file on: all where one product was chosen, else those of the file's product."""
    if options.class_name or target.class_name is None:
        return files
    return [file for file in files if product_of(file, scorer.products) == target.class_name]


def contents_of(record: ModelRecord, source: Path, target: Target, options: ExportOptions) -> dict[str, bytes]:
    """The files of one exported model by their endings, see `endings`."""
    networks = [onnx_bytes] if record.network.settings.tiles is None else [onnx_bytes, tile_onnx_bytes]
    contents: list[bytes] = []
    for network in networks:
        content = network(record, source, target.class_name, options.image)
        contents += [content] if options.format == "onnx" else openvino_files(content)
    return dict(zip(endings(record, options.format), contents, strict=True))


def endings(record: ModelRecord, form: str) -> list[str]:
    """How the files of one exported model end: the network of whole photos, then that of tiles, if there is one."""
    of_photos = [".onnx"] if form == "onnx" else [".xml", ".bin"]
    return of_photos + [TILE_PART + ending for ending in of_photos if record.network.settings.tiles is not None]


@contextmanager
def written_beside(half: Path, path: Path, contents: Mapping[str, bytes]) -> Iterator[None]:
    """Files by their endings: the first as `half`, which becomes `path`, the others beside it, all of them or none."""
    others = list(contents)[1:]
    try:
        for ending, content in contents.items():
            half.with_suffix(ending).write_bytes(content)
        yield
        for ending in others:
            half.with_suffix(ending).replace(path.with_suffix(ending))
    finally:
        for ending in others:
            half.with_suffix(ending).unlink(missing_ok=True)


def targets(record: ModelRecord, output: Path, class_name: str | None) -> Iterator[Target]:
    """The files to write.

    Products of several sizes, with regions of interest or with tiles, get a file each.
    """
    products = record.products.values()
    sizes = {product.size for product in products}
    apart = record.network.settings.tiles is not None or any(product.region is not None for product in products)
    if class_name is not None or len(products) < 2 or (len(sizes) < 2 and not apart):
        yield Target(class_name, output)
        return
    for product in products:
        yield Target(product.name, output.with_name(f"{output.stem}.{file_name(product.name)}{output.suffix}"))


def file_name(product: str) -> str:
    """A product's name as part of a file's: other characters than there may be become %, and their number.

    >>> file_name("nut"), file_name("a/b"), file_name("a%2Fb")
    ('nut', 'a%2Fb', 'a%252Fb')
    """
    return NOT_IN_FILE_NAMES.sub(lambda match: f"%{ord(match[0]):02X}", product)


def refusal(path: Path, agreement: Agreement, tolerance: float) -> str:
    """Why a file is not written; where its scores and verdicts are right, also how to have it all the same."""
    text = f"{shown(path)} is not written: {agreement.line}; the tolerance is {tolerance:g}, and no verdict may differ"
    if replace(agreement, map=0.0, map_value=0.0).within(tolerance):
        return f"{text}: only maps differ, which --tolerance {2 * agreement.map_needs:.1g} accepts"
    return text


def report_path(path: Path) -> Path:
    """Where the numbers of the comparison lie."""
    return path.with_name(f"{path.name}.json")


def report_of(path: Path, exported: ExportedScorer, agreement: Agreement, options: ExportOptions) -> str:
    """The numbers of the comparison, as JSON."""
    facts = {
        "file": path.name,
        "runtime": exported.runtime.name,
        "tolerance": options.tolerance,
        "check": None if options.check is None else str(options.check),
        **agreement.as_dict(),
    }
    return json.dumps(facts, indent=2) + "\n"
