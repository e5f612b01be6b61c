"""How soon `mambaad watch` writes the row of a photo, and how much memory it takes over many photos.

python -m mambaad_cli.benchmark.profile_watch tests/data/cookie/incoming --photos 1000 --rate 5
python -m mambaad_cli.benchmark.profile_watch tests/data/cookie/incoming --photos 20000 --rate 0 --tiny
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from mambaad_cli.data import images

MAX_SILENCE = 300.0  # seconds without a new row, as while the model loads


def main(arguments: Sequence[str] | None = None) -> None:
    """Let photos arrive in a folder at a steady rate; print the seconds from complete file to row, and the memory."""
    parser = argparse.ArgumentParser("python -m mambaad_cli.benchmark.profile_watch", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="photos that arrive, again and again")
    parser.add_argument("--model", type=Path, default=Path("mambaad.safetensors"))
    parser.add_argument(
        "--tiny", action="store_true", help="an untrained tiny model instead: what watching alone takes"
    )
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5.0, help="photos a second; 0: as fast as they are scored")
    parser.add_argument("--settle", type=float, default=0.5)
    options = parser.parse_args(arguments)
    sources = [file.path for file in images.find([options.folder])]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder)) if options.tiny else options.model.resolve()
        measure(Path(folder), sources, model, options.photos, options.rate, options.settle)


def measure(folder: Path, sources: Sequence[Path], model: Path, photos: int, rate: float, settle: float) -> None:
    """Run `mambaad watch` in `folder`; print how soon the rows came and what memory it took."""
    incoming, output = folder / "incoming", folder / "rows.jsonl"
    incoming.mkdir()
    command = [sys.executable, "-m", "mambaad_cli", "watch", str(incoming), "-o", str(output), "-m", str(model)]
    with subprocess.Popen([*command, "--settle", str(settle), "--move-to", str(folder / "done")]) as process:
        rows = Rows(output)
        try:
            _arrive(sources[0], incoming / f"warm_up{sources[0].suffix}")
            rows.wait_for(1)
            watched, sizes = psutil.Process(process.pid), []
            complete: dict[str, float] = {}
            began = time.monotonic()
            for i in range(photos):
                name = f"{i:06}{sources[i % len(sources)].suffix}"
                complete[name] = _arrive(sources[i % len(sources)], incoming / name)
                if rate:
                    rows.follow_until(began + (i + 1) / rate)
                elif i - len(rows.times) > 64:
                    rows.wait_for(len(rows.times) + 32)
                if i % max(1, photos // 20) == 0:
                    sizes.append(watched.memory_info().rss / 1e6)
            rows.wait_for(photos + 1)
            sizes.append(watched.memory_info().rss / 1e6)
        finally:
            process.terminate()
    seconds = [rows.times[name] - arrived for name, arrived in complete.items()]
    p50, p95, p99 = np.quantile(seconds, (0.5, 0.95, 0.99))
    measured = photos / (time.monotonic() - began)
    pace = f"{rate:g} a second" if rate else f"as fast as they are scored ({measured:.1f}/s)"
    print(f"{photos} photos, {pace}, --settle {settle:g}; {len(seconds)} rows")
    if rate:
        print(f"from complete file to row: p50 {p50:.2f} s, p95 {p95:.2f}, p99 {p99:.2f}, at most {max(seconds):.2f}")
    print(f"memory: {sizes[0]:.0f} MB at first, {sizes[len(sizes) // 2]:.0f} MB halfway, {sizes[-1]:.0f} MB at the end")


class Rows:
    """Follows the file of rows: when each name appeared in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.times: dict[str, float] = {}

    def follow_until(self, until: float) -> None:
        """Follow the file until that time."""
        while True:
            self._read_more()
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(0.01, left))

    def wait_for(self, count: int) -> None:
        """Wait until the file has `count` rows. Raises TimeoutError where none is added for MAX_SILENCE seconds."""
        until = time.monotonic() + MAX_SILENCE
        while len(self.times) < count:
            before = len(self.times)
            self.follow_until(time.monotonic() + 0.01)
            if len(self.times) > before:
                until = time.monotonic() + MAX_SILENCE
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.times)} of {count} rows after {MAX_SILENCE:g} s")

    def _read_more(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.at)
            data = file.read()
        complete = data.rfind(b"\n") + 1
        self.at += complete
        for line in data[:complete].splitlines():
            self.times[Path(json.loads(line)["path"]).name] = time.monotonic()


def _arrive(source: Path, target: Path) -> float:
    """Write a photo under another name and rename it into place; returns when it was complete."""
    half = target.with_name(f".{target.name}")
    half.write_bytes(source.read_bytes())
    half.rename(target)
    return time.monotonic()


def tiny_model(folder: Path) -> Path:
    """An untrained model that scores in no time."""
    from mambaad_cli.inspection import store
    from mambaad_cli.inspection.model_record import ModelRecord
    from mambaad_cli.inspection.network import new_network
    from mambaad_cli.model.encoder import build_encoder
    from mambaad_cli.model.settings import Settings

    settings = Settings(encoder="test_resnet", size=(64, 64), options={"depths": (1, 1, 1, 1), "directions": 2})
    store.save(
        ModelRecord(new_network(settings, build_encoder("test_resnet", (4, 8, 16)))), folder / "tiny.safetensors"
    )
    return folder / "tiny.safetensors"


if __name__ == "__main__":
    main()
