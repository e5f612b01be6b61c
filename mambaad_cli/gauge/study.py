"""A study on disk -> its readings, scored -> the quality of the inspection as a gauge.

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
    from mambaad_cli.inspection.prediction import Prediction

REJECTED = ("anomalous", "unknown")  # verdicts that reject a part, as for --fail-on-anomaly
ACCEPTED = ("good", "review")
EXPECTED = "expected FOLDER/good/PART/*.jpg and FOLDER/DEFECT/PART/*.jpg"


@dataclass(frozen=True)
class Reading:
    """One photo of a part, and the inspection's result."""

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

    @property
    def decided(self) -> bool:
        """Whether its verdict accepts or rejects the part."""
        return self.verdict in (*REJECTED, *ACCEPTED)

    @property
    def rejected(self) -> bool:
        return self.verdict in REJECTED


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
    """The results of a study. Agreement needs references and verdicts, a gauge needs scores: either may be missing."""

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
    for reading in readings:
        if not reading.unscored:
            continue
        if reading.path is None:
            where = f"part {reading.part}, trial {reading.trial}"
            raise MambaADError(f"{where}: no photo, score or verdict: give it a path")
        paths.append(reading.path)
    return paths


def scored(readings: Iterable[Reading], predictions: "Iterable[Prediction]") -> Iterator[Reading]:
    """The readings, those that are not scored yet with the next prediction each, in the order of `to_score`.

    Raises MambaADError for a model without threshold.
    """
    following = iter(predictions)
    for reading in readings:
        if not reading.unscored:
            yield reading
            continue
        prediction = next(following)
        if prediction.verdict == "uncalibrated":
            raise MambaADError("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR")
        yield replace(
            reading,
            class_name=prediction.class_name,
            score=prediction.score,
            verdict=prediction.verdict,
            error=prediction.error,
        )


# ---- analysing ----


def analyse(readings: Sequence[Reading]) -> Study:
    """Agreement of the verdicts with the references, and the variances of the scores."""
    unreadable = [reading for reading in readings if reading.verdict == "error"]
    notes = [f"{shown(reading.path)}: {reading.error}" for reading in unreadable if reading.path is not None]
    notes += _same_photos(readings)
    decisions = [
        Decision(reading.part, reading.appraiser, reading.trial, reading.reference != "good", reading.rejected)
        for reading in readings
        if reading.reference and reading.decided
    ]
    gauges, reasons = _gauges(readings)
    references = {reading.part: reading.reference for reading in readings}
    return Study(
        parts=len(references),
        bad_parts=sum(reference not in ("", "good") for reference in references.values()),
        photos=len(readings),
        unreadable=len(unreadable),
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
    undecided = []
    for part, part_readings in _by_part(readings).items():
        rejected = [reading.rejected for reading in part_readings if reading.decided]
        if len(set(rejected)) == 2:
            scores = [reading.score for reading in part_readings if reading.score is not None]
            lowest, highest = min(scores, default=None), max(scores, default=None)
            reference = part_readings[0].reference
            undecided.append(PartResult(part, reference, sum(rejected), len(rejected), lowest, highest))
    return sorted(undecided, key=lambda flip: abs(flip.rejected / flip.decisions - 0.5))


def _by_part(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    parts: dict[str, list[Reading]] = {}
    for reading in readings:
        parts.setdefault(reading.part, []).append(reading)
    return parts


def _gauges(readings: Sequence[Reading]) -> tuple[dict[str, Gauge], list[str]]:
    """The gauge of each product, and why others have none. Scores of different products cannot be compared."""
    products: dict[str, list[list[Reading]]] = {}
    for part_readings in _by_part(reading for reading in readings if reading.score is not None).values():
        names = Counter(reading.class_name for reading in part_readings if reading.class_name)
        name = names.most_common(1)[0][0] if names else ""
        of_product = [reading for reading in part_readings if reading.class_name in ("", name)]
        products.setdefault(name, []).append(of_product)
    gauges, reasons = {}, []
    for name, parts in products.items():
        gauge = _gauge(parts)
        if gauge is not None:
            gauges[name] = gauge
            continue
        product = f"{shown(name)}: " if name else ""
        reasons.append(
            f"{product}no repeatability of scores: it takes two parts with two trials each, and with several "
            "appraisers as many trials of each part by each of them"
        )
    return gauges, reasons


def _gauge(parts: Sequence[Sequence[Reading]]) -> Gauge | None:
    """From the readings of each part of one product, all with a score."""
    appraisers = list(dict.fromkeys(reading.appraiser for part in parts for reading in part))
    scores = [
        [[reading.score for reading in part if reading.appraiser == name] for name in appraisers] for part in parts
    ]
    if len(appraisers) == 1:
        return one_way([[score for score in cells[0] if score is not None] for cells in scores])
    if len({len(cell) for cells in scores for cell in cells}) > 1:
        return None
    return crossed(np.array(scores, np.float64))


def _same_photos(readings: Iterable[Reading]) -> list[str]:
    """A line for each part with a photo twice: the same file scores the same, which says nothing of the gauge."""
    lines = []
    for part, part_readings in _by_part(readings).items():
        photos = [reading.path for reading in part_readings if reading.path is not None and reading.path.is_file()]
        if len({hashlib.sha256(path.read_bytes()).digest() for path in photos}) < len(photos):
            lines.append(
                f"part {shown(part)}: the same photo counts twice: place the part again for each trial, "
                "and take a new photo"
            )
    return lines
