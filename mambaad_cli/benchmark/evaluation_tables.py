"""An evaluation as tables for people and for programs, and what their reader must know besides."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mambaad_cli.benchmark.evaluation import METRICS, ClassMetrics, Evaluation, Share
from mambaad_cli.files import shown
from mambaad_cli.inspection.rows import csv_line

TITLES = ["class", *METRICS.values(), "false rejects", "misses"]
RECALL_TITLES = ["class", "defect", "found", "recall"]
# what is no wider than a number, so that the names of classes have room in a terminal of 80 columns
NARROW = {"AU-ROC": "AU-\nROC", "AU-PRO": "AU-\nPRO", "rejects": "re-\njects"}


def to_table(evaluation: Evaluation) -> Table:
    """Classes and their mean; metrics in per cent, – where undefined; false rejects and misses of so many images."""
    *classes, mean = _rows(evaluation)
    heads = ["\n".join(NARROW.get(word, word) for word in title.split()) for title in TITLES]
    table = _table(heads, classes, names=1)
    table.add_row(*mean, style="bold")
    return table


def recall_table(evaluation: Evaluation) -> Table:
    """Recall of each kind of defect at the model's threshold; without rows where the model has none."""
    return _table(RECALL_TITLES, _recall_rows(evaluation), names=2)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int) -> Table:
    """A table for people. Numbers stay whole; where there is no room, the first `names` columns end in an ellipsis."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < names else "right", no_wrap=i >= names)
    for cells in rows:
        # a column that may wrap is one that rich makes narrower; its text is cut all the same
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    return table


def to_markdown(evaluation: Evaluation) -> str:
    """Both tables in Markdown, and the notes."""
    parts = [_markdown(TITLES, _rows(evaluation), left=1)]
    if recalls := _recall_rows(evaluation):
        parts.append(_markdown(RECALL_TITLES, recalls, left=2))
    if said := notes(evaluation):
        parts.append("".join(f"- {line}\n" for line in said))
    return "\n".join(parts)


def to_csv(evaluation: Evaluation) -> str:
    """Header, classes and their mean; metrics in per cent with one decimal, empty where undefined."""
    counts = ("false_rejects", "good", "misses", "anomalous", "unreadable")
    lines = [csv_line(["class", *METRICS, *counts])]
    for values in (*map(_facts, evaluation.classes), _summary(evaluation)):
        percents = ("" if values[key] is None else _percent(values[key]) for key in METRICS)
        lines.append(csv_line([values["class"], *percents, *(values[key] for key in counts)]))
    return "".join(lines)


def to_json(evaluation: Evaluation) -> str:
    """All that is known: metrics and rates in 0 … 1, unrounded; null where undefined."""
    classes = [_facts(one) | _details(one) for one in evaluation.classes]
    whole = {
        "classes": classes,
        "mean": _summary(evaluation),
        "held_out": evaluation.held_out,
        "unfinished": evaluation.unfinished,
    }
    return json.dumps(whole, indent=2) + "\n"


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the table must know besides: a line for each thing left out or not as usual."""
    lines = []
    for one in evaluation.classes:
        if not one.known:
            lines.append(f"{one.name}: the model was not trained on this class")
        if one.pixel_error is not None:
            lines.append(f"{one.name}: pixel metrics are streamed, exact to ± {max(one.pixel_error):.1g}")
        if one.without_mask:
            left_out = f"{len(one.without_mask)} of {one.anomalous} anomalous images left out of pixel metrics"
            lines.append(f"{one.name}: {left_out}, the first: {one.without_mask[0]}")
        lines += [f"{one.name}: left out {line}" for line in one.unreadable]
    if evaluation.classes and evaluation.false_rejects is None:
        lines.append("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR to count its mistakes")
    elif not evaluation.held_out:
        without = [one.name for one in evaluation.classes if not one.held_out]
        of = "" if len(without) == len(evaluation.classes) else f"{', '.join(without)}: "
        lines.append(
            f"{of}the threshold comes from training images, too few to hold some out, so it is too low: "
            "mambaad calibrate MODEL GOOD_DIR sets it anew"
        )
    if evaluation.unfinished:
        lines.append(f"interrupted: nothing is known of {', '.join(evaluation.unfinished)}")
    return [shown(line) for line in lines]


def _rows(evaluation: Evaluation) -> list[list[str]]:
    """The cells of the table: a row for each class, then their mean with the counts of all."""
    rows = [_row(one.name, one.metrics, one.false_rejects, one.misses) for one in evaluation.classes]
    return [*rows, _row("mean", evaluation.mean, evaluation.false_rejects, evaluation.misses)]


def _row(name: str, metrics: dict[str, float | None], false_rejects: Share | None, misses: Share | None) -> list[str]:
    counts = ["–" if share is None else str(share) for share in (false_rejects, misses)]
    return [shown(name), *map(_percent, metrics.values()), *counts]


def _recall_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [shown(one.name), shown(defect), str(share), _percent(share.rate)]
        for one in evaluation.classes
        for defect, share in one.recall.items()
    ]


def _percent(value: float | None) -> str:
    """As papers print it.

    >>> _percent(0.98649), _percent(None)
    ('98.6', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    r"""A Markdown table, its first `left` columns aligned left.

    >>> print(_markdown(["class", "mAD"], [["a|b", "86.0"]], left=1), end="")
    | class | mAD |
    |:---|---:|
    | a\|b | 86.0 |
    """
    rule = [":---" if i < left else "---:" for i in range(len(titles))]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]]) + "\n"


def _facts(one: ClassMetrics) -> dict[str, Any]:
    """A class's row for programs."""
    counts = {"good": one.good, "anomalous": one.anomalous, "unreadable": len(one.unreadable)}
    return {"class": one.name, **one.metrics, **_mistakes(one.false_rejects, one.misses), **counts}


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """The mean's row for programs, with the counts of all."""
    facts = [_facts(one) for one in evaluation.classes]
    counts = {key: sum(row[key] for row in facts) for key in ("good", "anomalous", "unreadable")}
    return {
        "class": "mean",
        **evaluation.mean,
        **_mistakes(evaluation.false_rejects, evaluation.misses),
        **counts,
    }


def _mistakes(false_rejects: Share | None, misses: Share | None) -> dict[str, Any]:
    return {
        "false_rejects": false_rejects and false_rejects.count,
        "false_reject_rate": false_rejects and false_rejects.rate,
        "misses": misses and misses.count,
        "miss_rate": misses and misses.rate,
    }


def _details(one: ClassMetrics) -> dict[str, Any]:
    """What does not fit into a row."""
    recall = {
        defect: {"found": share.count, "total": share.total, "recall": share.rate}
        for defect, share in one.recall.items()
    }
    return {
        "trained_on": one.known,
        "threshold": one.threshold,
        "held_out": one.held_out,
        "recall": recall,
        "pixel_error": one.pixel_error and one.pixel_error._asdict(),
        "without_mask": one.without_mask,
        "unreadable_images": one.unreadable,
    }
