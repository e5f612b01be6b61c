"""Photos that come together are scored together: a queue, and the one thread that owns the model."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.predict import predictions
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.serving.metrics import Metrics
from mambaad_cli.serving.photos import Photo, Reader
from mambaad_cli.side_by_side import in_order

IDLE = 1.0  # seconds between two looks at the model's file while no photo comes


class QueueFull(MambaADError):
    """No more photos are taken now."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many photos wait already: try again later")
        self.retry_after = retry_after  # seconds


class Closed(MambaADError):
    """No more photos are taken: the server ends."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class Scored(NamedTuple):
    """A photo that was scored."""

    prediction: Prediction
    model: str  # that scored it: the first digits of its file's SHA-256
    broken: bool = False  # the model failed at it


@dataclass(eq=False)
class Job:
    """A photo that is to be scored, and its answer once it is there."""

    photo: Photo
    reader: Reader
    keep_map: bool = False
    arrived: float = field(default_factory=time.monotonic)
    answer: "Future[Scored]" = field(default_factory=Future)


@dataclass(frozen=True)
class BatchOptions:
    """How photos are put together."""

    batch: int = 8  # most photos that go through the model together
    wait: float = 0.005  # most seconds that a photo waits for others
    queue: int = 64  # most photos that wait
    workers: int = 2  # threads that read photos
    review: float | None = None  # see PredictOptions


class Batcher:
    """Scores photos in the order in which they come, in one thread, which takes up a new model between two batches."""

    def __init__(
        self,
        scorer: Scorer,
        options: BatchOptions,
        metrics: Metrics,
        renewed: Callable[[], Scorer | None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """renewed: another scorer, once the model was replaced. say: prints a line for the one who runs the server."""
        self.scorer, self.options, self.metrics, self.renewed, self.say = scorer, options, metrics, renewed, say
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._seconds = 0.1  # that a photo takes, by the latest batches
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many photos wait."""
        return len(self._waiting)

    def check_room(self, photos: int = 1) -> None:
        """Raises QueueFull where so many photos do not fit into the queue, and Closed once it takes none."""
        if self._closed:
            raise Closed
        if len(self._waiting) + photos > self.options.queue:
            raise QueueFull(max(1, math.ceil(len(self._waiting) * self._seconds)))

    def put(self, jobs: Sequence[Job]) -> None:
        """Let photos be scored: all of them or, with an error as in `check_room`, none."""
        with self._changed:
            self.check_room(len(jobs))
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more photos; returns when those that were taken are scored."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # ---- in the thread of the model ----

    def _work(self) -> None:
        while True:
            jobs = self._next_batch()
            if not jobs and self._closed and not self._waiting:
                return
            self._renew()
            if jobs:
                self._score(jobs)

    def _next_batch(self) -> list[Job]:
        """The photos that wait, once they are as many as a batch or one has waited long enough; none for a while.

        Those whose requests were cancelled are left out.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, IDLE)
            if not self._waiting:
                return []
            left = self._waiting[0].arrived + self.options.wait - time.monotonic()
            if left > 0:
                self._changed.wait_for(lambda: len(self._waiting) >= self.options.batch or self._closed, left)
            taken = [self._waiting.popleft() for _ in range(min(self.options.batch, len(self._waiting)))]
            return [job for job in taken if job.answer.set_running_or_notify_cancel()]

    def _renew(self) -> None:
        try:
            scorer = self.renewed()
        except Exception as error:  # whatever is wrong with a new file, the model that is there goes on
            self.say(f"going on with the model that was there: {type(error).__name__}: {error}")
            return
        if scorer is not None:
            self.scorer = scorer
            self.metrics.count_reload()
            self.say(f"the model was replaced: photos are scored by {scorer.sha256} from now on")

    def _score(self, jobs: Sequence[Job]) -> None:
        """Answer each photo. Where the model fails at a batch, each of its photos is tried alone."""
        began = time.monotonic()
        try:
            self._answer(jobs)
        except Exception as error:
            left = [job for job in jobs if not job.answer.done()]
            if len(jobs) > 1:
                for job in left:
                    self._score([job])
                return
            if isinstance(error, MambaADError):
                left[0].answer.set_exception(error)
            else:
                left[0].answer.set_result(self._broken(left[0].photo, f"{type(error).__name__}: {error}"))
        else:
            self._seconds += 0.3 * ((time.monotonic() - began) / len(jobs) - self._seconds)

    def _broken(self, photo: Photo, reason: str) -> Scored:
        """The answer where the model fails at a photo."""
        self.metrics.count_failure()
        self.metrics.count_image("error")
        self.say(f"a photo cannot be scored: {reason}")
        path = Path(photo.name)
        prediction = Prediction(ImageFile(path, path, ""), "", None, None, "error", f"cannot be scored: {reason}")
        return Scored(prediction, self.scorer.sha256, broken=True)

    def _answer(self, jobs: Sequence[Job]) -> None:
        scorer, options = self.scorer, self.options
        wanted = PredictOptions(
            batch=options.batch, maps=any(job.keep_map for job in jobs), review=options.review, min_area=0
        )
        readings = in_order(lambda job: job.reader.read(job.photo, scorer), jobs, options.workers)
        self.metrics.count_batch()
        found = predictions(scorer.expecting(None), readings, wanted)
        for job, prediction in zip(jobs, found, strict=True):
            self.metrics.count_image(prediction.verdict)
            job.answer.set_result(Scored(prediction, scorer.sha256))
