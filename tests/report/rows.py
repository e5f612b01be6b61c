"""Made-up rows with pictures, of two products on two days."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

from mambaad_cli.inspection.row_files import Row
from mambaad_cli.report import page, pictures
from mambaad_cli.report.content import Entry, Report, link_to, worst_first
from mambaad_cli.report.record import record
from tests.conftest import picture

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOSTILE = 'in/<script>alert(1)</script>"><img src=x onerror=alert(2)>.png'


def rows_of(n: int) -> list[Row]:
    """Scores 1/8, 2/8, …, in turn of nut (threshold 2) and bolt (threshold 3); half of them on the next day."""
    found = []
    for i in range(1, n + 1):
        name, threshold = ("nut", 2.0) if i % 2 else ("bolt", 3.0)
        score = i / 8
        verdict = "anomalous" if score > threshold else "good"
        time = NOON + timedelta(days=2 * i // (n + 1))
        found.append(Row(f"in/{name}_{i}.png", name, score, threshold, verdict, p_value=1 / i, time=time))
    return found


def with_pictures(rows: list[Row], page: Path) -> list[Entry]:
    """Worst first, each with a photo and something that passes for its overlay."""
    limits = pictures.limits_for(len(rows))
    entries = []
    for i, row in enumerate(worst_first(rows)):
        photo = picture(i, 300, 400)
        small = pictures.thumbnail(photo, limits.side)
        glowing = small.copy()
        glowing[10:20, 10:20] = (255, 0, 0)
        shape = (small.shape[1], small.shape[0], photo.shape[:2])
        why = tuple(pictures.encoded(small, limits) for _ in (row.regions or ())[:1])
        own = pictures.Pictures(pictures.encoded(small, limits), pictures.encoded(glowing, limits), *shape, why)
        entries.append(Entry(row, own, link_to(row.path, page)))
    return entries


def made_up(path: Path, rows: list[Row], title: str = "Made up") -> Path:
    """A report of these rows."""
    page.write(Report(title, with_pictures(rows, path), record(rows)), path)
    return path
