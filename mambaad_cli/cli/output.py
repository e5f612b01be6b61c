"""The output of commands: warnings on stderr, what a threshold promises, tables and files."""

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mambaad_cli import MambaADError, distributed
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.inspection.findings import Known
    from mambaad_cli.inspection.model_record import ModelRecord
    from mambaad_cli.inspection.prediction import Prediction
    from mambaad_cli.inspection.product import Calibration, Products


SQUEEZED = 2.5  # pixels of a photo, along a side, on one of the model's, from which small defects vanish


@dataclass
class Speech:
    """How much the command says, by its options --quiet and --verbose."""

    quiet: bool = False
    verbose: bool = False


speech = Speech()  # of this process; the application sets it before a command runs


def no_progress() -> bool | None:
    """What tqdm's `disable` takes: True for no bars at all, None for bars where stderr is a terminal."""
    return speech.quiet or distributed.rank() > 0 or None


def note(line: str) -> None:
    """Print one line on stderr that --quiet leaves out: what was done, not what is wrong."""
    if not speech.quiet:
        typer.echo(shown(line), err=True)


def warn(line: str, everyone: bool = False) -> None:
    """Print one line on stderr, even if a file name holds line ends; only the first process prints, or `everyone`."""
    if distributed.rank() == 0 or everyone:
        typer.echo(f"mambaad: {shown(line)}", err=True)


def duration(seconds: float) -> str:
    """
    >>> duration(9.4), duration(133)
    ('9 s', '2 min 13 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def check_writable(path: Path) -> None:
    """Report before an hour of training, not after it, that a file cannot be written.

    Only the first process writes files, so only that one tries it.
    """
    from mambaad_cli.files import target_of, written_whole

    if distributed.rank() > 0:
        return
    if path.is_dir():
        raise MambaADError(f"cannot write {shown(path)}: it is a folder")
    probe = target_of(path).with_name(f".mambaad-{uuid.uuid4().hex}.probe")  # no other command tries with this name
    try:
        with written_whole(probe):
            pass
    except MambaADError as error:
        raise MambaADError(f"cannot write {shown(path)}: {error.__cause__}") from error
    probe.unlink(missing_ok=True)


def check_apart(path: Path | None, inputs: Iterable[Path], option: str = "--output") -> None:
    """Report that a file would be written over that is read as well."""
    if path is not None and path.resolve() in {one.resolve() for one in inputs}:
        raise MambaADError(f"{shown(path)} would be written over: choose another {option}")


def publish(tables: Any, found: Any, format: str, output: Path | None) -> None:
    """Write the results, formatted by a module of tables, to stdout or to a file, where a table is in Markdown."""
    from rich.console import Console

    from mambaad_cli.files import written_whole

    formats = {"markdown": tables.to_markdown, "csv": tables.to_csv, "json": tables.to_json}
    if format == "table" and output is None:
        Console().print(tables.to_table(found))
    elif output is None:
        typer.echo(formats[format](found), nl=False)
    else:
        with written_whole(output) as half:
            half.write_text(formats.get(format, tables.to_markdown)(found), encoding="utf-8")


def print_thresholds(products: "Products") -> None:
    """Print for each product its threshold, beside others that reject less and more, and what it finds."""
    from mambaad_cli.inspection.findings import described, found_simulated

    for name, product in products.items():
        if product.calibration is None:
            warn(f"{name}: too few images to hold some out: it gets the highest threshold of the others")
    for name, product in products.items():
        measured = product.calibration
        if measured is None:
            continue
        count = len(measured.scores)
        images = f"{count} {'new' if measured.new_photos else 'training'} photo{'s' if count > 1 else ''}"
        typer.echo(f"{name}: threshold {measured.threshold:.4g}, estimated from {images}")
        _print_choices(measured)
        if measured.simulated:
            typer.echo(f"    {described(found_simulated(measured.simulated, measured.threshold))}")
        if measured.promising:
            _print_promise(name, measured)
        else:
            warn(
                f"{name}: no image was held out: the threshold promises nothing, new good ones may well lie above it; "
                f"set it with others that are good: mambaad calibrate MODEL GOOD_DIR"
            )


def _print_choices(measured: "Calibration") -> None:
    """A small table: what each threshold rejects of good images, and what it finds."""
    from mambaad_cli.inspection.calibration import percent
    from mambaad_cli.inspection.findings import choices

    defects = f"  {'finds of ' + str(len(measured.simulated)) + ' simulated':>22}" if measured.simulated else ""
    photos = f"passes over of {len(measured.scores)}"
    typer.echo(f"    {'rejects at most':<17}{'threshold':>10}{defects}  {photos:>18}")
    for choice in choices(measured):
        chosen = "  (chosen)" if choice.chosen else ""
        found = f"  {choice.found:>22}" if measured.simulated else ""
        row = f"    {percent(choice.rejects):<17}{choice.threshold:>10.4g}{found}  {choice.above:>18}"
        typer.echo(row + chosen)


def warn_of_squeezing(record: "ModelRecord") -> None:
    """Say of each product where its photos are made so much smaller that small defects vanish."""
    from mambaad_cli.inspection.findings import found_simulated

    for name, product in record.products.items():
        rows, columns = record.network.input_size(product.size)
        scale = product.photo_scale((rows, columns))
        if product.photo_shape is None or product.learnt.tiles is not None or scale < SQUEEZED:
            continue
        measured, (height, width) = product.calibration, product.photo_shape
        kinds = [] if measured is None else found_simulated(measured.simulated, measured.threshold)
        lengths = [kind.length for kind in kinds if kind.length is not None]
        needs = f": a defect needs about {min(lengths):.0f} pixels" if lengths else ""
        warn(f"{name}: photos of {width}×{height} are seen at {columns}×{rows}{needs}; --tiles sees smaller ones")


def _print_promise(name: str, measured: "Calibration") -> None:
    """What new photos promise, and what would be needed to promise what is wanted."""
    from mambaad_cli.inspection.calibration import USUAL, images_for, percent, promise

    count, wanted = len(measured.scores), measured.max_false_reject or USUAL
    if measured.new_photos:
        typer.echo(
            f"    promises: of new good images at most {percent(measured.promised)} are rejected, "
            f"hardly ever more than {percent(measured.ceiling)}"
        )
    if promise(count, wanted) > wanted:
        more = f"{images_for(wanted)} do: mambaad calibrate MODEL GOOD_DIR"
        images = f"{count} good image{'s' if count > 1 else ''}"
        warn(f"{name}: {images} cannot promise {percent(wanted)}, only 1 in {count + 1}; {more}")


def scores_of_defects(
    predictions: "Iterable[Prediction]", left_out: "Callable[[Prediction, str], None]"
) -> dict[str, list[float]]:
    """The scores of known defects by product; those without a score or a product are reported to `left_out`."""
    scores: dict[str, list[float]] = {}
    for prediction in predictions:
        if prediction.score is None or prediction.threshold is None:
            left_out(prediction, prediction.error or "looks like no product of the model: name it with --class")
        else:
            scores.setdefault(prediction.class_name, []).append(prediction.score)
    return scores


def print_known(products: "Products", known: "dict[str, Known]") -> None:
    """Of known defects how many are missed, how sure that is, and which threshold would miss none of them."""
    from mambaad_cli.inspection.calibration import percent

    for name, (misses, lower, rejected) in known.items():
        typer.echo(
            f"{name}: misses {misses.missed} of {misses.total} known defects; "
            f"with 95% confidence the true share is {percent(misses.low)} to {percent(misses.high)}"
        )
        if lower is not None:
            good = len(products[name].scores)
            typer.echo(f"    threshold {lower:.4g} would find them all, and reject {rejected} of {good} good images")


def print_summary(products: "Products", path: Path, known: "dict[str, Known] | None" = None) -> None:
    """One JSON object for programs: what `print_thresholds` and `print_known` print for people."""
    from mambaad_cli.inspection.calibration import USUAL
    from mambaad_cli.inspection.findings import summary

    classes = summary(products)
    for name, (misses, lower, rejected) in (known or {}).items():
        facts = misses._asdict() | {"threshold_that_finds_all": lower, "would_reject": rejected}
        classes.setdefault(name, {})["known_defects"] = facts
    shares = {product.calibration.max_false_reject for product in products.values() if product.calibration is not None}
    whole = {"model": str(path), "max_false_reject": next(iter(shares), None) or USUAL, "classes": classes}
    typer.echo(json.dumps(whole, ensure_ascii=False))
