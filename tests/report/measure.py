"""python -m tests.report.measure PHOTOS [N]: size of a report of N images, and how long a browser takes to open it.

The images are those of the folder PHOTOS, again and again, each with a photo and an overlay of a made-up map.
"""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from mambaad_cli.data import images
from mambaad_cli.inspection.heatmap import ColourScale, overlay
from mambaad_cli.report import page, pictures
from mambaad_cli.report.content import Entry, Report, worst_first
from tests.report.browser import Browser
from tests.report.rows import rows_of

ROUNDS = 5
TIMES = """(() => {
  const [entry] = performance.getEntriesByType('navigation');
  const [paint] = performance.getEntriesByName('first-contentful-paint');
  return [entry.loadEventEnd, paint ? paint.startTime : NaN];
})()"""


def measure(photos: Path, n: int) -> None:
    """Print the size, and the median of the times until the page is painted and until it is loaded."""
    limits = pictures.limits_for(min(n, 2000))
    made = []
    for file in images.find([photos]):
        photo = images.read(file.path)
        small = pictures.thumbnail(photo, limits.side)
        hot = cv2.GaussianBlur(np.random.default_rng(len(made)).normal(0, 9, (64, 64)).astype(np.float32), (0, 0), 4)
        glowing = pictures.encoded(overlay(small, hot, ColourScale(0.0, float(hot.max()) * 0.7)), limits)
        made.append(
            pictures.Pictures(pictures.encoded(small, limits), glowing, small.shape[1], small.shape[0], photo.shape[:2])
        )
    entries = [
        Entry(row, made[i % len(made)] if i < 2000 else None, row.path) for i, row in enumerate(worst_first(rows_of(n)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        page.write(Report(f"{n} images", entries, []), path)
        browser = Browser()
        times = []
        for _ in range(ROUNDS):
            browser.open(path)
            browser.js("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))")
            times.append(browser.js(TIMES))
        browser.close()
        loaded, painted = np.median(np.array(times, np.float64), axis=0)
        size = path.stat().st_size / 1e6
    print(
        f"{n} images: {size:.1f} MB; painted after {painted:.0f} ms, loaded after {loaded:.0f} ms (median of {ROUNDS})"
    )


if __name__ == "__main__":
    measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
