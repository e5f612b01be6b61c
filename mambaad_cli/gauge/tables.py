"""A study as tables for people and as JSON for programs."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mambaad_cli.files import shown
from mambaad_cli.gauge.agreement import EFFECTIVENESS, FALSE_ALARMS, KAPPA, MISSES, Agreement, Limits, Share
from mambaad_cli.gauge.study import Study
from mambaad_cli.gauge.variance import CATEGORIES, GRR_SHARE, Gauge, Source

JUDGED = {"acceptable": "green", "marginal": "yellow", "unacceptable": "red"}


class Measure(NamedTuple):
    """A row of an agreement."""

    name: str
    value: float | None
    counted: Share | None  # what a share counts; kappa is none
    limits: Limits | None

    @property
    def judgement(self) -> str:
        return "" if self.limits is None else self.limits.judge(self.value)


def measures(agreement: Agreement) -> list[Measure]:
    """The rows of an agreement."""
    shares = (
        ("effectiveness", agreement.effectiveness, EFFECTIVENESS),
        ("misses", agreement.misses, MISSES),
        ("false alarms", agreement.false_alarms, FALSE_ALARMS),
        ("repeatability", agreement.repeatability, None),
    )
    rows = [Measure(name, share.rate, share, limits) for name, share, limits in shares]
    return [*rows, Measure("kappa", agreement.kappa, None, KAPPA)]


def components(gauge: Gauge) -> list[tuple[str, float]]:
    """(name, variance) of what the variance of the scores consists of; parts of the one before are indented."""
    rows = [("GRR", gauge.grr), ("  repeatability", gauge.repeatability)]
    if gauge.appraisers is not None and gauge.interaction is not None:
        rows += [("  appraisers", gauge.appraisers), ("  appraiser × part", gauge.interaction)]
    return [*rows, ("parts", gauge.parts), ("total", gauge.total)]


def to_table(study: Study) -> RenderableType:
    """The agreement, the variances of the scores and the parts that flip, as far as the study has them."""
    return Group(*_blocks(study))


def _blocks(study: Study) -> Iterator[RenderableType]:
    bad = f", {study.bad_parts} of them bad" if study.agreements else ""
    yield Text(f"{study.parts} parts{bad}; {study.photos} readings\n")
    if study.agreements:
        yield _agreement_table(study)
        for (first, second), kappa in study.kappas.items():
            yield Text(f"kappa of {shown(first)} and {shown(second)}: {_number(kappa)}")
        yield Text()
    for name, gauge in study.gauges.items():
        yield _component_table(name, gauge)
        yield _anova_table(gauge)
    if study.flips:
        yield _flip_table(study)
    elif study.agreements:
        yield Text("no part flips: each gets one verdict only")


def _agreement_table(study: Study) -> Table:
    table = _table("agreement", "", "count", "95% interval", "limits", "judgement")
    for agreement in study.agreements:
        if len(study.agreements) > 1:
            table.add_row(Text(shown(agreement.appraiser), style="bold"))
        for row in measures(agreement):
            share = row.counted
            table.add_row(
                row.name,
                _number(row.value) if share is None else percent(row.value),
                "" if share is None else f"{share.count}/{share.total}",
                f"{percent(share.low)} to {percent(share.high)}" if share is not None and share.total else "",
                limits_text(row.limits, per_cent=share is not None),
                _judged(row.judgement),
            )
    return table


def _component_table(name: str, gauge: Gauge) -> Table:
    table = _table(
        f"scores of {shown(name)}" if name else "scores", "σ", "of total σ", "of total σ²", "limits", "judgement"
    )
    for title, variance in components(gauge):
        share = gauge.share(variance)
        graded = title == "GRR"
        table.add_row(
            title,
            f"{variance**0.5:.4g}",
            percent(share),
            percent(variance / gauge.total if gauge.total else None),
            limits_text(GRR_SHARE) if graded else "",
            _judged(GRR_SHARE.judge(share) if graded else ""),
        )
    judgement = "acceptable" if gauge.ndc is None else CATEGORIES.judge(gauge.ndc)
    table.add_row(
        "distinct categories", "∞" if gauge.ndc is None else str(gauge.ndc), "", "", "≥ 5", _judged(judgement)
    )
    return table


def _anova_table(gauge: Gauge) -> Table:
    table = _table("\nanalysis of variance", "\nDF", "\nSS", "\nMS", "\nF", "\np")
    for source in gauge.anova:
        numbers = [_number(value) for value in (source.ss, source.ms, source.f)]
        table.add_row(source.name, str(source.df), *numbers, _p_value(source.p))
    table.add_row()
    return table


def _flip_table(study: Study) -> Table:
    table = _table("parts that flip", "reference", "rejected", "scores")
    for flip in study.flips:
        scores = "" if flip.lowest is None else f"{flip.lowest:.4g} … {flip.highest:.4g}"
        rejected = f"{flip.rejected}/{flip.decisions}"
        table.add_row(Text(shown(flip.part)), Text(shown(flip.reference)), rejected, scores)
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        words = title.strip() in ("limits", "judgement", "reference") or i == 0
        table.add_column(title, justify="left" if words else "right")
    return table


def _judged(judgement: str) -> Text:
    return Text(judgement, style=JUDGED.get(judgement, ""))


def percent(share: float | None) -> str:
    """
    >>> percent(0.0625), percent(None)
    ('6.2%', '–')
    """
    return "–" if share is None else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "∞"


def _p_value(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else _number(p)


def limits_text(limits: Limits | None, per_cent: bool = True) -> str:
    """
    >>> limits_text(EFFECTIVENESS), limits_text(KAPPA, per_cent=False)
    ('≥ 90% (80%)', '≥ 0.75 (0.4)')
    """
    if limits is None:
        return ""
    unit, factor = ("%", 100) if per_cent else ("", 1)
    sign = "≤" if limits.upper else "≥"
    return f"{sign} {factor * limits.acceptable:.3g}{unit} ({factor * limits.marginal:.3g}{unit})"


# ---- JSON ----


def to_json(study: Study) -> str:
    """All results of the study. Shares lie in 0 … 1 and are not rounded; what is undefined is null."""
    whole = {
        "parts": study.parts,
        "bad_parts": study.bad_parts,
        "photos": study.photos,
        "unreadable": study.unreadable,
        "agreement": [_agreement_facts(agreement) for agreement in study.agreements],
        "kappa_between": [{"appraisers": names, "kappa": kappa} for names, kappa in study.kappas.items()],
        "scores": [_gauge_facts(name, gauge) for name, gauge in study.gauges.items()],
        "flips": [asdict(flip) for flip in study.flips],
        "notes": study.notes,
    }
    return json.dumps(whole, indent=2) + "\n"


def _agreement_facts(agreement: Agreement) -> dict[str, Any]:
    facts: dict[str, Any] = {"appraiser": agreement.appraiser}
    for row in measures(agreement):
        counted = {} if row.counted is None else asdict(row.counted)
        judged = {} if row.limits is None else {"judgement": row.judgement}
        facts[row.name.replace(" ", "_")] = {"value": row.value} | counted | judged
    return facts


def _source_facts(source: Source) -> dict[str, Any]:
    """JSON knows no infinite numbers: an infinite F is null, and its p is 0."""
    facts = source._asdict()
    return facts | {"f": None if source.f is None or math.isinf(source.f) else source.f}


def _gauge_facts(name: str, gauge: Gauge) -> dict[str, Any]:
    share = gauge.share(gauge.grr)
    return {
        "class": name,
        "anova": [_source_facts(source) for source in gauge.anova],
        "variance": {title.strip(): variance for title, variance in components(gauge)},
        "grr": {"value": share, "judgement": GRR_SHARE.judge(share)},
        "ndc": {"value": gauge.ndc, "judgement": "acceptable" if gauge.ndc is None else CATEGORIES.judge(gauge.ndc)},
    }
