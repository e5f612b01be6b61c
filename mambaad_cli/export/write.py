"""A fitted model -> files that other runtimes score with: written, compared with the model, and only then kept."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.export.gate import TOLERANCE, Agreement, compare
from mambaad_cli.export.onnx_file import check_installed, onnx_bytes, tile_onnx_bytes
from mambaad_cli.export.openvino_files import openvino_files
from mambaad_cli.files import shown, written_whole
from mambaad_cli.inspection import exported_model
from mambaad_cli.inspection.exported_model import TILE_PART, ExportedModel
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import check_class, class_of


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
    size: tuple[int, int]  # height, width of its images
    agreement: Agreement | None  # None: it was not compared


def export(
    model: FittedModel,
    source: Path,
    output: Path,
    options: ExportOptions,
    doing: Callable[[str], None] = lambda what: None,
) -> list[Exported]:
    """Write `output`, or one file for each product beside it where products have several sizes; all of them or none.

    source: the file that the model was read from. doing: is told what takes the time.

    Raises MambaADError where a file does not score as the model does, by how much, and for what cannot be exported.
    """
    check_installed()
    if model.has_regions and model.settings.letterbox:
        raise MambaADError("a region of interest in a letterbox cannot be exported: fit without --letterbox")
    check_class(model, options.class_name)
    files = images.find([options.check]) if options.check is not None else []
    written = []
    with ExitStack() as kept:
        for name, path in targets(model, output, options.class_name):
            doing(f"{path.name}: exporting")
            half = kept.enter_context(written_whole(path))
            networks = [onnx_bytes, tile_onnx_bytes] if model.tiles else [onnx_bytes]
            contents: list[bytes] = []
            for network in networks:
                content = network(model, source, name, options.image)
                contents += [content] if options.format == "onnx" else openvino_files(content)
            parts = dict(zip(endings(model, options.format), contents, strict=True))
            kept.enter_context(written_beside(half, path, parts))
            exported = exported_model.load(half)
            exported.masks = model.masks
            agreement = None
            if options.compare:
                doing(f"{path.name}: comparing")
                own = [file for file in files if options.class_name or name is None or class_of(file, model) == name]
                agreement = compare(model, exported, own)
                report = kept.enter_context(written_whole(report_path(path)))
                report.write_text(report_of(path, exported, agreement, options))
                if not agreement.within(options.tolerance):
                    raise MambaADError(refusal(path, agreement, options.tolerance))
            written.append(Exported(path, exported.products, exported.settings.size, agreement))
    for one in written:
        if one.agreement is None:
            report_path(one.path).unlink(missing_ok=True)  # the numbers of an earlier file
    return written


def endings(model: FittedModel, form: str) -> list[str]:
    """How the files of one exported model end: the network of whole photos, then that of tiles, if there is one."""
    own = [".onnx"] if form == "onnx" else [".xml", ".bin"]
    return own + [TILE_PART + ending for ending in own if model.tiles]


@contextmanager
def written_beside(half: Path, path: Path, contents: dict[str, bytes]) -> Iterator[None]:
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


def targets(model: FittedModel, output: Path, class_name: str | None) -> Iterator[tuple[str | None, Path]]:
    """The only product of each file, None for all, and the path of the file.

    Products of several sizes, with regions of interest or with tiles, get a file each.
    """
    sizes = {model.size_of(name) for name in model.trained_on}
    together = len(model.trained_on) < 2 or (len(sizes) < 2 and not model.rois and not model.tiles)
    if class_name is not None or together:
        yield class_name, output
        return
    for name in model.trained_on:
        yield name, output.with_name(f"{output.stem}.{name}{output.suffix}")


def refusal(path: Path, agreement: Agreement, tolerance: float) -> str:
    """Why a file is not written; where its scores and verdicts are right, also how to have it all the same."""
    said = f"{shown(path)} is not written: {agreement.line}; the tolerance is {tolerance:g}, and no verdict may differ"
    if replace(agreement, map=0.0, map_value=0.0).within(tolerance):
        return f"{said}: only maps differ, which --tolerance {2 * agreement.map_needs:.1g} accepts"
    return said


def report_path(path: Path) -> Path:
    """Where the numbers of the comparison lie."""
    return path.with_name(f"{path.name}.json")


def report_of(path: Path, exported: ExportedModel, agreement: Agreement, options: ExportOptions) -> str:
    facts = {
        "file": path.name,
        "runtime": exported.runtime.name,
        "tolerance": options.tolerance,
        "check": None if options.check is None else str(options.check),
        **agreement.as_dict(),
    }
    return json.dumps(facts, indent=2) + "\n"
