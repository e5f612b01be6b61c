"""A report as one HTML file: style and script are inside, and its security policy forbids the browser to fetch more."""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mambaad_cli.files import shown, written_whole
from mambaad_cli.inspection.calibration import percent
from mambaad_cli.report.content import Report

HERE = Path(__file__).parent


def write(report: Report, path: Path) -> None:
    """Write the page, whole or not at all. Raises MambaADError where the disk refuses."""
    with written_whole(path) as half, half.open("w", encoding="utf-8") as file:
        file.writelines(rendered(report))


def rendered(report: Report) -> Iterable[str]:
    """The page in pieces. Every value is escaped; the browser runs only our script, which it knows by its hash."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": percent, "number": number}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").generate(
        report=report,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def number(value: Any) -> str:
    """
    >>> number(1.56071), number(None), number(12)
    ('1.561', '', '12')
    """
    return "" if value is None else f"{value:.4g}"


def _printable(value: Any) -> Any:
    """Text on one line that every browser can display: names of files may hold any bytes."""
    return shown(value) if type(value) is str and not value.isprintable() else value
