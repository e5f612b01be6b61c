"""The answers of a monitor, for people: a table, and a plot of how they came about."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mambaad_cli.files import check_plot, shown, written_whole
from mambaad_cli.line.monitoring import Check, Monitor


def print_table(monitor: Monitor, console: Console) -> None:
    """A line for each check; below, each alarm in words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("product", "test"):
        table.add_column(head, overflow="fold")
    for head in ("photos", "now", "expected", "evidence"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    for check in monitor.checks:
        style = "red" if check.alarm else "green"
        numbers = (f"{check.count}", _now(check), _expected(check), f"{check.evidence:.3g}")
        verdict = Text("alarm" if check.alarm else "as usual", style=style)
        table.add_row(Text(shown(check.product)), check.name, *numbers, verdict)
    console.print(table)
    console.print(f"\n{monitor.rows} rows. An alarm needs evidence ≥ {monitor.needed:.0f};", highlight=False)
    console.print("for brightness, contrast and sharpness the current median", highlight=False)
    console.print("must also lie outside the expected range.", highlight=False)
    for check in monitor.checks:
        if check.alarm:
            product = f"{shown(check.product)}: " if check.product else ""
            line = f"{product}{check.in_words()}; certain since {shown(check.first)}"
            console.print(Text(line, style="red"), soft_wrap=True)


def _now(check: Check) -> str:
    return f"{check.now:.2%}" if check.limit is not None else f"{check.now:.4g}"


def _expected(check: Check) -> str:
    if check.usual is None:
        return f"at most {check.limit or 0:.2%}"
    return f"{check.usual[0]:.4g} … {check.usual[2]:.4g}"


def plot(monitor: Monitor, path: Path) -> None:
    """Values of each row and the evidence of each check, product by product, as PNG or SVG.

    The monitor must have been made with `history`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    products = list(dict.fromkeys(check.product for check in monitor.checks if check.product)) or [""]
    figure = Figure(figsize=(13, 3.2 * len(products)), layout="constrained")
    grid = figure.subplots(len(products), 3, squeeze=False)
    for (scores, photos, evidence), product in zip(grid, products, strict=True):
        for check in monitor.checks:
            if check.product not in (product, "") or check.history is None:
                continue
            numbers, values, curve = check.history
            evidence.semilogy(numbers, curve, label=check.name, lw=1)
            if check.usual is None:
                continue
            if check.name == "scores":
                scores.plot(numbers, values, ".", ms=3, label="parts that were not rejected")
                scores.axhspan(check.usual[0], check.usual[2], alpha=0.15, label="5 to 95 % at calibration")
            else:
                relative = [value / (check.usual[1] or 1.0) for value in values]
                photos.plot(numbers, relative, ".", ms=3, label=check.name)
        evidence.axhline(monitor.needed, color="red", lw=1, label="alarm")
        scores.set(xlabel="row", ylabel="score", title=shown(product).replace("$", r"\$"))
        photos.set(xlabel="row", ylabel="in units of the median at fit")
        evidence.set(xlabel="row", ylabel="evidence")
        for axes in (scores, photos, evidence):
            axes.grid(alpha=0.3)
            if axes.has_data():
                axes.legend(fontsize="x-small")
    with written_whole(path) as half:
        figure.savefig(half, dpi=110)
