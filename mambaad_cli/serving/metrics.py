"""What a server has done so far, as text that Prometheus reads (its text exposition format, version 0.0.4)."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # upper bounds of the histogram


class Metrics:
    """Counts requests and images. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()  # by path and HTTP status
        self._verdicts: Counter[str] = Counter()
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self._batches = self._failures = self._reloads = 0

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered. The histogram tells the seconds of those that scored something."""
        with self._lock:
            self._requests[path, str(status)] += 1
            if path == "/score" and status < 300:
                self._buckets[bisect_left(SECONDS, seconds)] += 1
                self._seconds += seconds

    def count_batch(self) -> None:
        """Some images go through the model together."""
        with self._lock:
            self._batches += 1

    def count_image(self, verdict: str) -> None:
        """An image has its verdict."""
        with self._lock:
            self._verdicts[verdict] += 1

    @property
    def images(self) -> int:
        """How many images have a row."""
        return sum(self._verdicts.values())

    def count_failure(self) -> None:
        """An image could be read, but not scored."""
        with self._lock:
            self._failures += 1

    def count_reload(self) -> None:
        """The model was replaced."""
        with self._lock:
            self._reloads += 1

    def text(self, waiting: int, model: str) -> str:
        """All metrics. waiting: images in the queue; model: the first digits of its file's SHA-256.

        >>> metrics = Metrics()
        >>> for verdict in ("good", "good", "error"):
        ...     metrics.count_image(verdict)
        >>> [line for line in metrics.text(2, "ab12").splitlines() if line.startswith("mambaad_verdicts")]
        ['mambaad_verdicts_total{verdict="error"} 1', 'mambaad_verdicts_total{verdict="good"} 2']
        """
        with self._lock:
            return "\n".join(self._lines(waiting, model)) + "\n"

    def _lines(self, waiting: int, model: str) -> Iterator[str]:
        requests = {
            f'{{path="{path}",status="{status}"}}': count for (path, status), count in sorted(self._requests.items())
        }
        verdicts = {f'{{verdict="{verdict}"}}': count for verdict, count in sorted(self._verdicts.items())}
        refused = {
            f'{{status="{status}"}}': sum(n for (_, other), n in self._requests.items() if other == status)
            for status in sorted({status for _, status in self._requests if status >= "400"})
        }
        yield from _metric("mambaad_requests_total", "counter", "Requests by path and HTTP status.", requests)
        yield from _metric("mambaad_errors_total", "counter", "Requests that were answered by an error.", refused)
        yield from _metric("mambaad_images_total", "counter", "Images that have a row.", {"": self.images})
        yield from _metric("mambaad_verdicts_total", "counter", "Images by verdict.", verdicts)
        failures = {"": self._failures}
        yield from _metric("mambaad_failures_total", "counter", "Images that the model failed to score.", failures)
        yield from _metric("mambaad_batches_total", "counter", "Batches that were scored.", {"": self._batches})
        yield from _metric("mambaad_reloads_total", "counter", "Models taken up since the start.", {"": self._reloads})
        yield from _metric("mambaad_queue_length", "gauge", "Images that wait to be scored.", {"": waiting})
        yield from _metric("mambaad_model_info", "gauge", "The model that scores.", {f'{{model="{model}"}}': 1})
        name = "mambaad_score_seconds"
        yield f"# HELP {name} Seconds from the head of a request that scores to its answer."
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self._buckets, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {total}"


def _metric(name: str, kind: str, meaning: str, values: Mapping[str, int]) -> Iterator[str]:
    """A metric with a value for each set of labels."""
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {value}"
