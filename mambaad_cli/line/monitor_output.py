"""What a monitor found, for people: a table, and a picture of how it came about."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mambaad_cli.files import check_plot, shown, written_whole
from mambaad_cli.line.monitoring import Monitor, Test

PHOTOS = ("brightness", "contrast", "sharpness")


def print_table(monitor: Monitor, console: Console) -> None:
    """A line for each test; below, each alarm in words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("product", "test"):
        table.add_column(head, overflow="fold")
    for head in ("photos", "now", "expected", "evidence"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    for one in monitor.tests:
        style = "red" if one.alarm else "green"
        numbers = (f"{len(one.values)}", _now(one), _expected(one), f"{max(one.money):.3g}")
        table.add_row(
            Text(shown(one.product)), one.name, *numbers, Text("alarm" if one.alarm else "as usual", style=style)
        )
    console.print(table)
    needed = monitor.as_json()["evidence_for_alarm"]
    console.print(f"\n{monitor.rows} rows; an alarm takes an evidence of {needed:.0f}, and for", highlight=False)
    console.print("brightness, contrast and sharpness also a value outside what is expected", highlight=False)
    for one in monitor.tests:
        if one.alarm:
            name = f"{shown(one.product)}: " if one.product else ""
            console.print(
                Text(f"{name}{one.in_words()}; certain since {shown(one.first)}", style="red"), soft_wrap=True
            )


def _now(one: Test) -> str:
    return f"{one.now:.2%}" if one.limit is not None else f"{one.now:.4g}"


def _expected(one: Test) -> str:
    if one.usual is None:
        return f"at most {one.limit or 0:.2%}"
    return f"{one.usual[0]:.4g} … {one.usual[2]:.4g}"


def plot(monitor: Monitor, path: Path) -> None:
    """Values of each row and the evidence of each test, product by product, as PNG or SVG."""
    check_plot(path)
    from matplotlib.figure import Figure

    products = list(dict.fromkeys(one.product for one in monitor.tests if one.product)) or [""]
    figure = Figure(figsize=(13, 3.2 * len(products)), layout="constrained")
    grid = figure.subplots(len(products), 3, squeeze=False)
    for (scores, photos, evidence), product in zip(grid, products, strict=True):
        own = [one for one in monitor.tests if one.product in (product, "")]
        for one in own:
            evidence.semilogy(one.numbers, one.money, label=one.name, lw=1)
            if one.usual is None:
                continue
            if one.name == "scores":
                scores.plot(one.numbers, one.values, ".", ms=3, label="parts that were not rejected")
                scores.axhspan(one.usual[0], one.usual[2], alpha=0.15, label="5 to 95 % at calibration")
            else:
                relative = [value / (one.usual[1] or 1.0) for value in one.values]
                photos.plot(one.numbers, relative, ".", ms=3, label=one.name)
        if own:
            evidence.axhline(own[0].needed, color="red", lw=1, label="alarm")
        scores.set(xlabel="row", ylabel="score", title=shown(product).replace("$", r"\$"))
        photos.set(xlabel="row", ylabel="in units of the median at fit")
        evidence.set(xlabel="row", ylabel="evidence")
        for axes in (scores, photos, evidence):
            axes.grid(alpha=0.3)
            if axes.has_data():
                axes.legend(fontsize="x-small")
    with written_whole(path) as half:
        figure.savefig(half, dpi=110)
