"""mambaad learn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running
from mambaad_cli.cli.app import INSPECT, USER_CAN_MEND, command, examples
from mambaad_cli.cli.options import AsJson, ClassName, Device, RoiDir, Runtime
from mambaad_cli.cli.output import check_writable, warn
from mambaad_cli.files import shown

if TYPE_CHECKING:
    from mambaad_cli.data.images import ImageFile
    from mambaad_cli.inspection.judged_photos import Lessons
    from mambaad_cli.inspection.model_record import ModelRecord
    from mambaad_cli.inspection.teaching import Lectured


@command(
    panel=INSPECT,
    epilog=examples(
        "mambaad learn mambaad.safetensors --bad ./missed/ --good ./wrongly_rejected/",
        "mambaad learn mambaad.safetensors --forget scratch/007.png",
    ),
)
def learn(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model file. It is rewritten, unless --output names another.")
    ],
    bad: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of known defects. Sub-folders may name products and kinds of defects."
        ),
    ] = None,
    good: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of good parts that were rejected by mistake.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of wrong verdicts, saved on the page of `mambaad report`.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder with a mask of each defect, of the same stem, or with _mask behind it."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the model that learnt here.")
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Forget a photo that was taught, by the name that --list shows. Repeatable."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what the model was taught, and change nothing.")] = False,
    class_name: ClassName = None,
    roi_dir: RoiDir = None,
    as_json: AsJson = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Teach a model known defects and parts that it rejected by mistake, in seconds, without training.

    The product of a photo is given by --class or by a parent folder named like it; otherwise it is recognised.
    """
    from mambaad_cli.inspection import store
    from mambaad_cli.inspection.teaching import taught_record

    if list_:
        _list(store.load(model), as_json)
        return
    if bad is None and good is None and corrections is None and not forget:
        raise typer.BadParameter(
            "give a folder of known defects, or one of parts rejected by mistake", param_hint="--bad"
        )
    if masks is not None and bad is None and corrections is None:
        raise typer.BadParameter("masks mark defects: give their folder with --bad", param_hint="--masks")
    target = output or model
    check_writable(target)
    opened = running.open_model(model, device, None, "fp32", runtime, running.RegionOptions(None, None, roi_dir))
    scorer = opened.changeable(model)
    left_out: list[str] = []

    def on_left_out(file: "ImageFile", why: str) -> None:
        left_out.append(str(file.path))
        warn(f"{file.path}: {why}")

    lessons = lessons_in(scorer, bad, good, masks, class_name, on_left_out)
    if corrections is not None:
        for name, some in _corrected(scorer, corrections, masks, class_name, on_left_out).items():
            lessons.setdefault(name, []).extend(some)
    if not any(lessons.values()) and not forget:
        raise MambaADError("no photo teaches anything: the model stays as it was")
    record, lectured = taught_record(scorer.record.to("cpu"), lessons, forget or ())
    store.save(record, target)
    if as_json:
        facts = {name: _facts(one) for name, one in lectured.items()}
        typer.echo(json.dumps({"model": str(target), "classes": facts}, ensure_ascii=False))
    else:
        tell(lectured)
        typer.echo(f"wrote {shown(target)} ({target.stat().st_size / 1e6:.1f} MB)")
    raise typer.Exit(USER_CAN_MEND if left_out else 0)


def lessons_in(
    scorer: Any, bad: Path | None, good: Path | None, masks: Path | None, class_name: str | None, on_left_out: Any
) -> "Lessons":
    """The lessons of both folders by product."""
    from mambaad_cli.inspection.judged_photos import Judging

    bad_files, good_files = (running.find([folder]) if folder else [] for folder in (bad, good))
    return Judging(scorer, class_name, running.masks_in(masks), on_left_out).lessons(bad_files, good_files)


def _corrected(scorer: Any, path: Path, masks: Path | None, class_name: str | None, on_left_out: Any) -> "Lessons":
    """The lessons of verdicts that a person corrected. class_name: the product where none was recognised."""
    from mambaad_cli.data.images import ImageFile
    from mambaad_cli.inspection.corrections import photo_of, read_corrections
    from mambaad_cli.inspection.judged_photos import Judging

    folder = running.masks_in(masks)
    lessons: Lessons = {}
    for correction in read_corrections(path):
        try:
            photo = photo_of(correction, path)
        except MambaADError as error:
            on_left_out(ImageFile(Path(correction.path), Path(correction.path), ""), str(error))
            continue
        product = correction.product if correction.product in scorer.products else class_name
        judging = Judging(scorer, product, folder, on_left_out)
        taught = judging.lessons(good=[photo]) if correction.correct == "good" else judging.lessons(bad=[photo])
        for name, some in taught.items():
            lessons.setdefault(name, []).extend(some)
    return lessons


def tell(lectured: "dict[str, Lectured]") -> None:
    """Say of each product what it learnt and what that does: before, and after."""
    for name, one in lectured.items():
        facts = _facts(one)
        known, mistaken = facts["known_defects"], facts["rejected_by_mistake"]
        parts = "part that was" if mistaken == 1 else "parts that were"
        defects = "defect" if known == 1 else "defects"
        typer.echo(f"{name}: knows {known} {defects}, and {mistaken} {parts} rejected by mistake")
        if facts["known_defects"]:
            before, after = facts["found"]
            total = facts["known_defects"]
            typer.echo(f"    known defects found, each judged without itself: {before} → {after} of {total}")
            if not one.weight:
                warn(f"{name}: what these defects have in common finds no others: nothing of it is used")
        before, after = facts["above_threshold"]
        typer.echo(f"    good photos above the threshold: {before} → {after} of {facts['good_images']}")
        before, after = facts["threshold"]
        typer.echo(f"    threshold: {before:.4g} → {after:.4g}, estimated from training photos")


def _facts(one: "Lectured") -> dict[str, Any]:
    from mambaad_cli.inspection.calibration import exceeds

    product = one.product
    after, taught = product.calibration, product.learnt.taught
    assert after is not None
    before = product.untaught or after
    lessons = taught.lessons if taught else ()
    bad = sum(not lesson.good for lesson in lessons)
    return {
        "known_defects": bad,
        "rejected_by_mistake": len(lessons) - bad,
        "weight": one.weight,
        "found": [one.found(before=True), one.found(before=False)] if bad else [0, 0],
        "good_images": len(after.scores),
        "above_threshold": [
            sum(exceeds(score, measured.threshold) for score in measured.scores) for measured in (before, after)
        ],
        "threshold": [before.threshold, after.threshold],
        "judged": [
            {"name": row.lesson.name, "kind": row.lesson.kind, "before": row.before, "after": row.after}
            for row in one.judged
        ],
    }


def _list(record: "ModelRecord", as_json: bool) -> None:
    """What each product was taught."""
    rows = [
        {"class": name, "name": one.name, "good": one.good, "kind": one.kind, "digest": one.digest,
         "taught": one.taught, "score": one.score}
        for name, product in record.products.items()
        for one in (product.learnt.taught.lessons if product.learnt.taught else ())
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        judged = "good" if row["good"] else f"bad{row['kind'] and ', ' + str(row['kind'])}"
        typer.echo(
            f"{row['class']}: {row['name']} ({judged}), taught {row['taught']}, scored {row['score']:.4g} before"
        )
    if not rows:
        typer.echo("nothing was taught")
