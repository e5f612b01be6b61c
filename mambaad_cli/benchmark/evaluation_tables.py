"""An evaluation as tables to read, as CSV and as JSON, with notes on what the numbers leave out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mambaad_cli.benchmark.evaluation import METRICS, ClassMetrics, Evaluation
from mambaad_cli.files import shown
from mambaad_cli.inspection.rows import csv_line

TITLES = ["class", *METRICS.values(), "false rejects", "misses"]
RECALL_TITLES = ["class", "defect", "found", "recall"]
# broken into lines no wider than a number, so that class names have space in a terminal of 80 columns
NARROW = {"AU-ROC": "AU-\nROC", "AU-PRO": "AU-\nPRO", "rejects": "re-\njects"}


def to_table(evaluation: Evaluation) -> Group:
    """The metrics of each class, then the recall of each kind of defect, for rich to print."""
    return Group(metrics_table(evaluation), recall_table(evaluation))


def metrics_table(evaluation: Evaluation) -> Table:
    """Classes and their mean: metrics in per cent, – where undefined; false rejects and misses, each of how many."""
    *classes, mean = _rows(evaluation)
    heads = ["\n".join(NARROW.get(word, word) for word in title.split()) for title in TITLES]
    table = _table(heads, classes, names=1)
    table.add_row(*mean, style="bold")
    return table


def recall_table(evaluation: Evaluation) -> Table:
    """Recall of each kind of defect at the model's threshold; without rows where the model has none."""
    return _table(RECALL_TITLES, _recall_rows(evaluation), names=2)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int) -> Table:
    """Numbers are never cut; where there is too little space, texts of the first `names` columns end in an ellipsis."""
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
    if lines := notes(evaluation):
        parts.append("".join(f"- {line}\n" for line in lines))
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
    """Everything: metrics and rates in 0 … 1, unrounded; null where undefined."""
    classes = [_facts(metrics) | _details(metrics) for metrics in evaluation.classes]
    whole = {
        "classes": classes,
        "mean": _summary(evaluation),
        "held_out": evaluation.held_out,
        "unfinished": evaluation.unfinished,
    }
    return json.dumps(whole, indent=2) + "\n"


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the table must know: a line for each thing that is left out or unusual."""
    lines = [line for metrics in evaluation.classes for line in _class_notes(metrics)]
    if evaluation.classes and evaluation.false_rejects is None:
        lines.append("the model has no threshold yet: run mambaad calibrate MODEL GOOD_DIR to count its mistakes")
    elif not evaluation.held_out:
        without = [metrics.name for metrics in evaluation.classes if not metrics.held_out]
        classes = "" if len(without) == len(evaluation.classes) else f"{', '.join(without)}: "
        lines.append(
            f"{classes}the threshold comes from training images, too few to hold some out, so it is too low: "
            "set it with other good images: mambaad calibrate MODEL GOOD_DIR"
        )
    if evaluation.unfinished:
        lines.append(f"interrupted: nothing is known of {', '.join(evaluation.unfinished)}")
    return [shown(line) for line in lines]


def _class_notes(metrics: ClassMetrics) -> Iterator[str]:
    if not metrics.known:
        yield f"{metrics.name}: the model was not trained on this class"
    if metrics.pixel_error is not None:
        yield f"{metrics.name}: pixel metrics are streamed, exact to ± {max(metrics.pixel_error):.1g}"
    if metrics.without_mask:
        left_out = f"{len(metrics.without_mask)} of {metrics.anomalous} anomalous images left out of pixel metrics"
        yield f"{metrics.name}: {left_out}, the first: {metrics.without_mask[0]}"
    yield from (f"{metrics.name}: left out {line}" for line in metrics.unreadable)


def _rows(evaluation: Evaluation) -> list[list[str]]:
    """The cells of the table: a row for each class, then their mean with the counts of all."""
    rows = [_row(metrics.name, metrics.metrics, metrics) for metrics in evaluation.classes]
    return [*rows, _row("mean", evaluation.mean, evaluation)]


def _row(name: str, values: dict[str, float | None], of: ClassMetrics | Evaluation) -> list[str]:
    counts = ["–" if count is None else str(count) for count in (of.false_rejects, of.misses)]
    return [shown(name), *map(_percent, values.values()), *counts]


def _recall_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [shown(metrics.name), shown(defect), str(recall), _percent(recall.rate)]
        for metrics in evaluation.classes
        for defect, recall in metrics.recall.items()
    ]


def _percent(value: float | None) -> str:
    """A metric as papers print it.

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


def _facts(metrics: ClassMetrics) -> dict[str, Any]:
    """The row of a class for programs."""
    counts = {"good": metrics.good, "anomalous": metrics.anomalous, "unreadable": len(metrics.unreadable)}
    return {"class": metrics.name, **metrics.metrics, **_mistakes(metrics), **counts}


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """The row of the mean for programs, with the counts of all classes."""
    facts = [_facts(metrics) for metrics in evaluation.classes]
    counts = {key: sum(row[key] for row in facts) for key in ("good", "anomalous", "unreadable")}
    return {"class": "mean", **evaluation.mean, **_mistakes(evaluation), **counts}


def _mistakes(of: ClassMetrics | Evaluation) -> dict[str, Any]:
    false_rejects, misses = of.false_rejects, of.misses
    return {
        "false_rejects": false_rejects and false_rejects.count,
        "false_reject_rate": false_rejects and false_rejects.rate,
        "misses": misses and misses.count,
        "miss_rate": misses and misses.rate,
    }


def _details(metrics: ClassMetrics) -> dict[str, Any]:
    """What is not in the row of a class."""
    recalls = {
        defect: {"found": recall.count, "total": recall.total, "recall": recall.rate}
        for defect, recall in metrics.recall.items()
    }
    return {
        "trained_on": metrics.known,
        "threshold": metrics.threshold,
        "held_out": metrics.held_out,
        "recall": recalls,
        "pixel_error": metrics.pixel_error and metrics.pixel_error._asdict(),
        "without_mask": metrics.without_mask,
        "unreadable_images": metrics.unreadable,
    }
