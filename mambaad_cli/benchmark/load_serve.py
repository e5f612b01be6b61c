"""`mambaad serve` under load: whether each photo gets its row, how soon, and how many a second, beside `mambaad score`.

python -m mambaad_cli.benchmark.load_serve mambaad.safetensors tests/data/cookie/incoming --photos 2000 --clients 8
"""

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images

ANSWER_TIMEOUT = 300.0  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Let several clients send photos at once; print the seconds that each waited, and compare with `score`."""
    parser = argparse.ArgumentParser("python -m mambaad_cli.benchmark.load_serve", description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="photos that are sent, again and again")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8, help="that send one photo after the other")
    parser.add_argument("--no-score", action="store_true", help="leave the comparison out")
    options = parser.parse_args(arguments)
    try:
        sources = [file.path for file in images.find([options.folder])]
    except MambaADError as error:
        raise SystemExit(f"load_serve: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        photos = [Path(folder) / f"{i:06}{sources[i % len(sources)].suffix}" for i in range(options.photos)]
        for i, photo in enumerate(photos):
            shutil.copy(sources[i % len(sources)], photo)  # a link would count as the same photo
        with serving(options.model) as port:
            load = Load(photos, port)
            load.run(options.clients)
        load.report(options.clients)
        if not options.no_score:
            compare(load, options.model, Path(folder))


@contextmanager
def serving(model: Path) -> Iterator[int]:
    """A server of the model; yields its port."""
    command = [sys.executable, "-m", "mambaad_cli", "serve", "--model", str(model), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "MAMBAAD_TOKEN"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+:(\d+)", line)
        if found is None:
            raise SystemExit(line + process.stderr.read())
        said: list[str] = []
        reading = threading.Thread(target=said.extend, args=(process.stderr,))  # a full pipe would stop the server
        reading.start()
        try:
            yield int(found[1])
        finally:
            process.terminate()
            reading.join()
            print("".join(said).strip())


class Load:
    """Photos that are sent to a server: the row of each, and the seconds that it took."""

    def __init__(self, photos: Sequence[Path], port: int) -> None:
        self.photos, self.port = photos, port
        self.rows: dict[str, dict[str, Any]] = {}
        self.seconds: list[float] = []
        self.refused = 0  # because the queue was full; they are sent again
        self.problems: list[str] = []
        self.total = 0.0
        self._next = iter(photos)
        self._lock = threading.Lock()

    def run(self, clients: int) -> None:
        """Send all photos; the first one once more before, so that nothing is measured that comes once."""
        try:
            self._send(http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT), self.photos[0])
        except (OSError, http.client.HTTPException) as error:
            raise SystemExit(f"load_serve: no answer: {type(error).__name__}: {error}") from None
        self.rows, self.seconds, self.problems = {}, [], []
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.total = time.monotonic() - began

    def _client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT)
        while True:
            with self._lock:
                photo = next(self._next, None)
            if photo is None:
                connection.close()
                return
            try:
                self._send(connection, photo)
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(f"{photo.name}: {type(error).__name__}: {error}")
                connection.close()  # the next request opens it again

    def _send(self, connection: http.client.HTTPConnection, photo: Path) -> None:
        began = time.monotonic()
        while True:
            connection.request("POST", f"/score?name={photo.name}", photo.read_bytes())
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 503:
                break
            self.refused += 1
            time.sleep(float(answer.headers.get("Retry-After", "1")))
        row = json.loads(text)
        if answer.status not in (200, 422) or row.get("path") != photo.name:  # 422: of a photo that cannot be read
            self.problems.append(f"{photo.name}: {answer.status} {text.decode()}")
            return
        with self._lock:
            self.rows[photo.name] = row
            self.seconds.append(time.monotonic() - began)

    def report(self, clients: int) -> None:
        lost = len(self.photos) - len(self.rows)
        print(
            f"serve: {len(self.rows)} rows of {len(self.photos)} photos, {lost} lost, {self.refused} sent again",
            flush=True,
        )
        for problem in self.problems[:10]:
            print(f"    {problem}")
        if not self.seconds:
            raise SystemExit("load_serve: no photo has a row")
        p50, p95, p99 = np.quantile(self.seconds, (0.5, 0.95, 0.99))
        print(f"{clients} clients: {len(self.rows) / self.total:.2f} images/s; seconds from request to row: "
              f"p50 {p50:.3f}, p95 {p95:.3f}, p99 {p99:.3f}, at most {max(self.seconds):.3f}", flush=True)  # fmt: skip


def compare(load: Load, model: Path, folder: Path) -> None:
    """Score the same photos by `mambaad score --json`: images a second without its start, and whether rows agree."""
    command = [sys.executable, "-m", "mambaad_cli", "score", str(folder), "--model", str(model), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rows, times = [], []
        for line in process.stdout:
            rows.append(json.loads(line))
            times.append(time.monotonic())
    if not rows:
        raise SystemExit("load_serve: mambaad score gave no rows")
    first = sum(one - times[0] < 0.01 for one in times)  # those of the first batch came at once
    seconds = max(times[-1] - times[0], 1e-9)  # a single photo takes none
    print(f"score: {(len(times) - first) / seconds:.2f} images/s after its first {first}", flush=True)
    differ = [row for row in rows if not same(row, load.rows.get(Path(row["path"]).name))]
    print(f"{len(rows) - len(differ)} of {len(rows)} rows have the same verdict, and scores within 0.1 %")


def same(row: dict[str, Any], other: dict[str, Any] | None) -> bool:
    """Whether two rows say the same of a photo."""
    if other is None or row["verdict"] != other["verdict"]:
        return False
    return row["score"] is None or abs(row["score"] - other["score"]) <= 0.001 * abs(row["score"])


if __name__ == "__main__":
    main()
