"""A study on disk -> its readings, scored -> what they say of the inspection as a gauge.

A study is a CSV file with a row a photo, or a folder:

    part,trial,reference,path[,appraiser]     and, where the photos are scored already, score,verdict[,class]
    1,1,good,photos/1_1.jpg

    <root>/good/<part>/1.jpg, 2.jpg, …        the folder above the part's is the reference: good, or a kind of defect
    <root>/scratch/<part>/1.jpg, 2.jpg, …

Paths of a CSV count from its folder. Without the column trial, the rows of a part are its trials.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.lists import csv_rows
from mambaad_cli.data.samples import defect_named
from mambaad_cli.files import shown
from mambaad_cli.gauge.agreement import Agreement, Decision, agreements, kappas_between
from mambaad_cli.gauge.variance import Gauge, crossed, one_way

if TYPE_CHECKING:
    from mambaad_cli.inspection.predict import Prediction

REJECTED = ("anomalous", "unknown")  # verdicts that reject a part, as for --fail-on-anomaly
ACCEPTED = ("good", "review")
EXPECTED = "expected FOLDER/good/PART/*.jpg and FOLDER/DEFECT/PART/*.jpg"


@dataclass(frozen=True)
class Reading:
    """One photo of a part, and what the inspection says of it."""

    part: str
    trial: str
    reference: str = ""  # good, or the kind of defect; "" where it is not known
    appraiser: str = ""  # a camera, a line or a person; "" where there is one
    path: Path | None = None
    class_name: str = ""
    score: float | None = None
    verdict: str = ""
    error: str = ""

    @property
    def unscored(self) -> bool:
        return self.score is None and not self.verdict


@dataclass(frozen=True)
class PartResult:
    """A part whose photos do not all get the same verdict."""

    part: str
    reference: str
    rejected: int
    decisions: int
    lowest: float | None  # of its scores
    highest: float | None


@dataclass(frozen=True)
class Study:
    """What a study says. Either half may be missing: agreement needs references and verdicts, a gauge needs scores."""

    parts: int
    bad_parts: int
    photos: int
    unreadable: int
    agreements: list[Agreement]  # of each appraiser, then of all where there are several
    kappas: dict[tuple[str, str], float | None]  # of each two appraisers
    gauges: dict[str, Gauge]  # of the scores, by product
    flips: list[PartResult]
    notes: list[str]


# ---- reading ----


def load(study: Path) -> list[Reading]:
    """The readings of a study, in the order of its rows or folders. Raises MambaADError for what is no study."""
    return _of_folder(study) if study.is_dir() else _of_csv(study)


def _of_folder(root: Path) -> list[Reading]:
    from mambaad_cli.data import images

    readings = []
    for file in images.find([root]):
        if len(file.relative.parts) != 3:
            raise MambaADError(f"{shown(file.path)}: {EXPECTED}, so that its part and its reference are known")
        reference, part, trial = file.relative.parts
        readings.append(Reading(f"{reference}/{part}", trial, defect_named(reference), path=file.path))
    return readings


def _of_csv(file: Path) -> list[Reading]:
    readings: dict[tuple[str, str, str], Reading] = {}
    references: dict[str, str] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for number, row in csv_rows(file, {"part"}):
        where = f"{shown(file)} line {number}"
        part, appraiser = row["part"], row.get("appraiser", "")
        counted[part, appraiser] += 1
        trial = row.get("trial") or str(counted[part, appraiser])
        reference = defect_named(row.get("reference", ""))
        if not part or (part, appraiser, trial) in readings:
            known = f"trial {trial} of part {part} is there already" if part else "no part is named"
            raise MambaADError(f"{where}: {known}")
        if references.setdefault(part, reference) != reference:
            raise MambaADError(f"{where}: part {part} is {reference!r} here and {references[part]!r} before")
        readings[part, appraiser, trial] = Reading(
            part,
            trial,
            reference,
            appraiser,
            path=file.parent / row["path"] if row.get("path") else None,
            class_name=row.get("class", ""),
            score=_number(row.get("score", ""), where),
            verdict=_verdict(row.get("verdict", ""), where),
            error=row.get("error", ""),
        )
    if not readings:
        raise MambaADError(f"{shown(file)} holds no readings: expected rows of part,trial,reference,path")
    return list(readings.values())


def _number(text: str, where: str) -> float | None:
    try:
        score = float(text) if text else None
    except ValueError:
        score = math.nan
    if score is not None and not math.isfinite(score):
        raise MambaADError(f"{where}: the score is {text!r}, expected a number")
    return score


def _verdict(text: str, where: str) -> str:
    if text and text not in (*REJECTED, *ACCEPTED, "error"):
        raise MambaADError(f"{where}: the verdict is {text!r}, expected {', '.join(ACCEPTED + REJECTED)} or error")
    return text


def to_score(readings: Iterable[Reading]) -> list[Path]:
    """The photos that the model has to score: those of readings that have neither score nor verdict.

    Raises MambaADError where such a reading has no photo.
    """
    paths = []
    for one in readings:
        if one.unscored and one.path is None:
            raise MambaADError(f"part {one.part}, trial {one.trial}: no photo, score or verdict: give it a path")
        if one.unscored and one.path is not None:
            paths.append(one.path)
    return paths


def scored(readings: Iterable[Reading], predictions: "Iterable[Prediction]") -> Iterator[Reading]:
    """The readings, those that are not scored yet with the next prediction each, in the order of `to_score`.

    Raises MambaADError for a model without threshold.
    """
    following = iter(predictions)
    for one in readings:
        if not one.unscored:
            yield one
            continue
        said = next(following)
        if said.verdict == "uncalibrated":
            raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
        yield replace(one, class_name=said.class_name, score=said.score, verdict=said.verdict, error=said.error)


# ---- what it says ----


def analyse(readings: Sequence[Reading]) -> Study:
    """Agreement of the verdicts with the references, and the variances of the scores."""
    notes = [f"{shown(one.path)}: {one.error}" for one in readings if one.verdict == "error" and one.path is not None]
    notes += _same_photos(readings)
    decisions = [
        Decision(one.part, one.appraiser, one.trial, one.reference != "good", one.verdict in REJECTED)
        for one in readings
        if one.reference and one.verdict in (*REJECTED, *ACCEPTED)
    ]
    gauges, reasons = _gauges(readings)
    references = {one.part: one.reference for one in readings}
    return Study(
        parts=len(references),
        bad_parts=sum(reference not in ("", "good") for reference in references.values()),
        photos=len(readings),
        unreadable=sum(one.verdict == "error" for one in readings),
        agreements=agreements(decisions) if decisions else [],
        kappas=kappas_between(decisions),
        gauges=gauges,
        flips=flips(readings),
        notes=notes + reasons,
    )


def flips(readings: Iterable[Reading]) -> list[PartResult]:
    """The parts that get both verdicts, the most undecided first.

    >>> two = [Reading("7", "1", verdict="good", score=1.0), Reading("7", "2", verdict="anomalous", score=2.0)]
    >>> flips([*two, Reading("8", "1", verdict="good")])
    [PartResult(part='7', reference='', rejected=1, decisions=2, lowest=1.0, highest=2.0)]
    """
    found = []
    for part, own in _by_part(readings).items():
        said = [one.verdict in REJECTED for one in own if one.verdict in (*REJECTED, *ACCEPTED)]
        if len(set(said)) == 2:
            scores = [one.score for one in own if one.score is not None]
            lowest, highest = min(scores, default=None), max(scores, default=None)
            found.append(PartResult(part, own[0].reference, sum(said), len(said), lowest, highest))
    return sorted(found, key=lambda one: abs(one.rejected / one.decisions - 0.5))


def _by_part(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    parts: dict[str, list[Reading]] = {}
    for one in readings:
        parts.setdefault(one.part, []).append(one)
    return parts


def _gauges(readings: Sequence[Reading]) -> tuple[dict[str, Gauge], list[str]]:
    """The gauge of each product, whose scores alone can be compared; and why there is none of the others."""
    products: dict[str, list[list[Reading]]] = {}
    for own in _by_part(one for one in readings if one.score is not None).values():
        names = Counter(one.class_name for one in own if one.class_name)
        name = names.most_common(1)[0][0] if names else ""
        products.setdefault(name, []).append([one for one in own if one.class_name in ("", name)])
    gauges, reasons = {}, []
    for name, parts in products.items():
        gauge = _gauge(parts)
        if gauge is not None:
            gauges[name] = gauge
            continue
        of = f"{shown(name)}: " if name else ""
        reasons.append(
            f"{of}no repeatability of scores: it takes two parts with two trials each, and with several appraisers "
            "as many trials of each part by each of them"
        )
    return gauges, reasons


def _gauge(parts: Sequence[Sequence[Reading]]) -> Gauge | None:
    appraisers = list(dict.fromkeys(one.appraiser for own in parts for one in own))
    cells = [[[one.score for one in own if one.appraiser == name] for name in appraisers] for own in parts]
    if len(appraisers) == 1:
        return one_way([[score for score in own[0] if score is not None] for own in cells])
    if len({len(cell) for own in cells for cell in own}) > 1:
        return None
    return crossed(np.array(cells, np.float64))


def _same_photos(readings: Iterable[Reading]) -> list[str]:
    """A line for each part with a photo twice: the same file scores the same, which says nothing of the gauge."""
    lines = []
    for part, own in _by_part(readings).items():
        photos = [one.path for one in own if one.path is not None and one.path.is_file()]
        if len({hashlib.sha256(path.read_bytes()).digest() for path in photos}) < len(photos):
            lines.append(
                f"part {shown(part)}: the same photo counts twice: take each photo anew, and place the part anew"
            )
    return lines
