"""The times of a benchmark as numbers, tables, records and plots."""

import io
import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mambaad_cli.benchmark.passes import TRAINING_BATCH
from mambaad_cli.benchmark.speed import PRODUCT, Benchmark, SpeedResult
from mambaad_cli.files import check_plot, written_whole
from mambaad_cli.inspection.rows import csv_line

UNKNOWN = "–"


class Spread(NamedTuple):
    """The median of several rounds, and the range that holds four fifths of them."""

    median: float
    low: float
    high: float


# Numbers from times


def ratio(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Round by round, how many times as long as the reference's.

    >>> ratio([2.0, 6.0, 20.0], [1.0, 2.0, 2.0])
    Spread(median=3.0, low=2.2, high=8.6)
    """
    low, median, high = np.percentile(np.divide(times, reference), [10, 50, 90])
    return Spread(*(round(float(value), 9) for value in (median, low, high)))


def fit_exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float | None:
    """p of seconds ∝ pixels^p, by least squares of the logarithms; None for fewer than two resolutions.

    >>> round(fit_exponent([1, 4, 16], [3.0, 6.0, 12.0]), 9)
    0.5
    """
    if len(set(pixels)) < 2:
        return None
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def scaling(benchmark: Benchmark) -> dict[str, float]:
    """By name, the exponent of a pass's median time against pixels, where there are two resolutions or more."""
    exponents = {}
    for name in dict.fromkeys(result.spec.name for result in benchmark.results):
        timed = [result for result in benchmark.results if result.spec.name == name and result.latency]
        pixels = [math.prod(result.size) for result in timed]
        exponent = fit_exponent(pixels, [float(np.median(result.latency)) for result in timed])
        if exponent is not None:
            exponents[name] = exponent
    return exponents


def records(benchmark: Benchmark) -> list[dict[str, Any]]:
    """A flat record of each result, for programs; None where something is not known.

    Ratios are to the first MambaAD of the same resolution: of times for latency, of rates for throughput.
    """
    flat: list[dict[str, Any]] = []
    for _, group in groupby(benchmark.results, key=lambda result: result.size):
        results = list(group)
        first = next((result for result in results if result.spec.detector == "mambaad"), None)
        flat += [_record(result, first, benchmark.product) for result in results]
    return flat


def _record(result: SpeedResult, first: SpeedResult | None, product: Sequence[float]) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(result.latency, [50, 95, 99]) * 1e3 if result.latency else (None, None, None)
    counted = result.dense_flop > 0
    unit = float(np.median(product)) if product else None  # seconds of 2 · PRODUCT³ FLOP
    arithmetic = unit * (result.dense_flop + result.scan_flop) / (2 * PRODUCT**3) if counted and unit else None
    return {
        "detector": result.spec.name,
        "encoder": result.spec.encoder,
        "height": result.size[0],
        "width": result.size[1],
        "parameters": result.parameters,
        "trained_parameters": result.trained,
        "gmac_without_scan": result.dense_flop / 2e9 if counted else None,
        "scan_gflop": result.scan_flop / 1e9 if counted else None,
        "total_gflop": (result.dense_flop + result.scan_flop) / 1e9 if counted else None,
        "latency_rounds": len(result.latency),
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "latency_ms_p99": p99,
        "arithmetic_ms": None if arithmetic is None else arithmetic * 1e3,
        "latency_in_products": p50 / 1e3 / unit if p50 is not None and unit else None,
        **_ratio_fields("latency_ratio", result.latency, first.latency if first else []),
        "throughput_rounds": len(result.throughput),
        "batch": result.batch if result.throughput else None,
        "images_per_s": result.batch / float(np.median(result.throughput)) if result.throughput else None,
        "image_in_products": float(np.median(_per_image(result))) / unit if result.throughput and unit else None,
        **_ratio_fields("throughput_ratio", _per_image(first) if first else [], _per_image(result)),
        "peak_memory_mb": None if result.peak_memory is None else result.peak_memory / 1e6,
        "training_step_ms": float(np.median(result.training)) * 1e3 if result.training else None,
        "error": result.error,
    }


def _per_image(result: SpeedResult) -> list[float]:
    return [seconds / result.batch for seconds in result.throughput]


def _ratio_fields(name: str, times: Sequence[float], reference: Sequence[float]) -> dict[str, float | None]:
    spread = ratio(times, reference) if times and reference else (None, None, None)
    return dict(zip((name, f"{name}_p10", f"{name}_p90"), spread, strict=True))


# To read and to process


def notes(benchmark: Benchmark) -> list[str]:
    """The meaning of the figures of the table, a line each."""
    rounds = [len(result.latency) for result in benchmark.results if result.latency]
    lines = [
        "Random weights: speed and size alone. A pass is encoder, detector and anomaly map; the detectors took turns, "
        f"{min(rounds, default=0)} rounds or more.",
        "GMAC: 10⁹ multiply-accumulates of convolutions and matrix products. GFLOP: 10⁹ operations, two a "
        "multiply-accumulate; the scan's are nine a position, direction, channel and state, which common counters "
        "do not see.",
        "×: as many times the first MambaAD's time (or images/s), median of the rounds and the range of four fifths "
        "of them.",
        "of limit: the share of a pass, and of an image of a batch, that the GFLOP would take at the rate of a product "
        f"of two {PRODUCT} × {PRODUCT} matrices of fp32, timed in the same rounds{_product_ms(benchmark)}.",
        "MB: 10⁶ bytes at the peak of a pass over one image, weights included, libraries not.",
    ]
    if any((result.spec.detector, result.spec.encoder) == ("uniad", "efficientnet_b4") for result in benchmark.results):
        lines.append(
            "UniAD is often printed with 24.52 M parameters: that count includes the blocks of EfficientNet-B4 behind "
            "stride 16, which no image runs through and which are cut off here. The 3.36 GMAC printed beside it "
            "count norms too, and leave out attention's product of query and key."
        )
    return lines


def _product_ms(benchmark: Benchmark) -> str:
    return f" ({np.median(benchmark.product) * 1e3:.0f} ms)" if benchmark.product else ""


def to_table(benchmark: Benchmark) -> Group:
    """For rich to print: the machine, the table, the exponents of the scaling curve, notes."""
    heads, rows = _cells(benchmark)
    parts: list[Any] = [Text(machine_line(benchmark.machine)), Text()]
    parts += [rich_table(heads, rows), Text()]
    if exponents := scaling(benchmark):
        parts += [rich_table(*_scaling_cells(exponents)), Text()]
    return Group(*parts, *(Text(note, style="dim") for note in notes(benchmark)))


def to_markdown(benchmark: Benchmark) -> str:
    heads, rows = _cells(benchmark)
    parts = [machine_line(benchmark.machine), markdown_table(heads, rows)]
    if exponents := scaling(benchmark):
        parts.append(markdown_table(*_scaling_cells(exponents)))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(benchmark))]) + "\n"


def to_csv(benchmark: Benchmark) -> str:
    """The records alone: a header and a line each."""
    rows = records(benchmark)
    text = io.StringIO()
    text.writelines([csv_line(rows[0]), *(csv_line(row.values()) for row in rows)] if rows else [])
    return text.getvalue()


def to_json(benchmark: Benchmark) -> str:
    """{"machine": …, "results": [records], "scaling": {name: exponent}, "notes": […]}."""
    whole = {
        "machine": benchmark.machine,
        "results": records(benchmark),
        "scaling": scaling(benchmark),
        "notes": notes(benchmark),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def machine_line(machine: dict[str, str]) -> str:
    """The facts of machine.conditions on one line."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == '1' else 's'}"
    versions = f"mambaad {machine['mambaad']}, torch {machine['torch']}, Python {machine['python']}"
    encoder = f"; default encoder: {machine['default encoder']}" if "default encoder" in machine else ""
    return f"{machine['device']}, {threads}, {machine['precision']}; scan: {machine['scan']}{encoder}; {versions}"


def _cells(benchmark: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table; a cell has one or two lines of text."""
    several = len({result.size for result in benchmark.results}) > 1
    trained = any(result.training or "training" in result.error for result in benchmark.results)
    heads = ["detector\nencoder", *["pixels"] * several, "M params\nall/trained", "GMAC\nno scan"]
    heads += [
        "GFLOP\nscan",
        "GFLOP\ntotal",
        "peak\nMB",
        "batch 1, ms\np50/95/99",
        "of\nlimit",
        "images/s\n(batch)",
    ]
    heads += [f"training\nms a step of {TRAINING_BATCH}"] * trained
    rows = []
    for record in records(benchmark):
        name = "\n".join(text for text in (record["detector"], record["encoder"], record["error"]) if text)
        row = [name, *[f"{record['width']}x{record['height']}"] * several]
        row += [f"{record['parameters'] / 1e6:.1f}/{record['trained_parameters'] / 1e6:.1f}"]
        row += [number(record[key]) for key in ("gmac_without_scan", "scan_gflop", "total_gflop", "peak_memory_mb")]
        row += [
            _latency_cell(record),
            _arithmetic_cell(record),
            _throughput_cell(record),
            *[number(record["training_step_ms"])] * trained,
        ]
        rows.append(row)
    return heads, rows


def _latency_cell(record: dict[str, Any]) -> str:
    if record["latency_ms_p50"] is None:
        return UNKNOWN
    median, *tail = (number(record[f"latency_ms_p{share}"]) for share in (50, 95, 99))
    times = f"{median}\n{'/'.join(tail)}"
    return times + _ratio_lines(record, "latency_ratio")


def _arithmetic_cell(record: dict[str, Any]) -> str:
    """The share that arithmetic alone would take of a pass of one image, and of an image of a batch."""
    ideal = record["arithmetic_ms"]
    if ideal is None:
        return UNKNOWN
    shares = [ideal / record["latency_ms_p50"]]
    shares += [] if record["images_per_s"] is None else [ideal * record["images_per_s"] / 1e3]
    return "\n".join(f"{share:.0%}" for share in shares)


def _throughput_cell(record: dict[str, Any]) -> str:
    if record["images_per_s"] is None:
        return UNKNOWN
    return f"{number(record['images_per_s'])} ({record['batch']})" + _ratio_lines(record, "throughput_ratio")


def _ratio_lines(record: dict[str, Any], name: str) -> str:
    median, low, high = record[name], record[f"{name}_p10"], record[f"{name}_p90"]
    if median is None:
        return ""
    return "\n× 1" if low == median == high == 1 else f"\n× {median:.2f}\n{low:.2f}–{high:.2f}"


def number(value: float | None) -> str:
    """Three figures, without an exponent.

    >>> number(1234.5), number(12.34), number(0.1234), number(0.0), number(None)
    ('1234', '12.3', '0.123', '0', '–')
    """
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _scaling_cells(exponents: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    heads = ["detector", "time ∝ pixels to the power of"]
    return heads, [[name, f"{exponent:.2f}"] for name, exponent in exponents.items()]


def rich_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal, its first column folded where there is too little space."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; <br> separates the lines of a cell."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |" for line in lines)


# Pictures


def plot(benchmark: Benchmark, path: Path) -> None:
    """Latency against pixels, and images/s against GFLOP, as PNG or SVG. Raises MambaADError without matplotlib."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    by_pixels, by_flop = figure.subplots(1, 2)
    timed = [record for record in records(benchmark) if record["latency_ms_p50"] is not None]
    exponents = scaling(benchmark)
    for name in dict.fromkeys(record["detector"] for record in timed):
        curve = [record for record in timed if record["detector"] == name]
        label = f"{name}, power {exponents[name]:.2f}" if name in exponents else name
        by_pixels.loglog(
            [r["height"] * r["width"] for r in curve], [r["latency_ms_p50"] for r in curve], marker="o", label=label
        )
        fast = [record for record in curve if record["images_per_s"] is not None]
        by_flop.loglog([r["total_gflop"] for r in fast], [r["images_per_s"] for r in fast], marker="o", label=name)
    by_pixels.set(xlabel="pixels", ylabel="ms an image, batch 1, median")
    by_flop.set(xlabel="GFLOP an image, the scan among them", ylabel="images/s, best batch")
    for axes in (by_pixels, by_flop):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.suptitle(machine_line(benchmark.machine), fontsize="small")
    with written_whole(path) as half:
        figure.savefig(half, dpi=150)
