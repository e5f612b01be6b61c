"""Detectors side by side: parameters, FLOPs, latency, throughput and memory, with random weights: speed and size alone.

What is timed is what scoring does after an image is read: encoder with its batch norms folded, detector, anomaly map.
The detectors take turns, one pass each a round, at all resolutions, so that a noisy machine slows all of them alike;
ratios are taken within a round. In each round a large matrix product is timed as well: it tells how fast the machine's
arithmetic is.

Letters: b batch, H × W pixels.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import detectors, memory
from mambaad_cli.benchmark.detectors import BuiltDetector, DetectorSpec
from mambaad_cli.benchmark.flops import count_flops
from mambaad_cli.benchmark.machine import conditions
from mambaad_cli.benchmark.passes import FAILURES, Maps, Size, Task, reason, scoring_pass, training_step
from mambaad_cli.inspection.runtimes import SUFFIXES
from mambaad_cli.model import onnx_encoder

BATCHES = (1, 2, 4, 8, 16)
MAX_BATCH_PIXELS = 2**22  # that go through a detector at once when batches are tried: 16 images of 512 × 512
MIN_ROUNDS, MAX_ROUNDS = 3, 200
PRODUCT = 2048  # rows and columns of the matrices whose product tells the speed of the machine's arithmetic


@dataclass(frozen=True)
class Timing:
    """How the detectors are timed."""

    seconds: float = 12.0  # about, for a detector at one resolution, if three rounds need no more
    batch: int | None = None  # the only one to try; None: the fastest up to 16 is found
    threads: int | None = None  # of the CPU; None: as many as torch has now
    device: str = "cpu"
    precision: str = "fp32"  # or bf16: autocast
    train: bool = False  # training steps are timed too
    runtime: str = "torch"  # or onnxruntime: of the default encoder


@dataclass
class SpeedResult:
    """A detector at a resolution. Times are seconds of a pass, one a round; empty where it failed."""

    spec: DetectorSpec
    size: Size
    parameters: int = 0  # of encoder and detector
    trained: int = 0
    dense_flop: int = 0  # of one image's convolutions and matrix products: two FLOP a multiply-accumulate
    scan_flop: int = 0
    latency: list[float] = field(default_factory=list)  # of one image
    batch: int = 1  # the fastest one
    throughput: list[float] = field(default_factory=list)  # of `batch` images
    training: list[float] = field(default_factory=list)  # of a step on TRAINING_BATCH images' features
    peak_memory: int | None = None  # bytes
    error: str = ""


@dataclass
class Benchmark:
    """All measurements. Results of a resolution stand together, the smallest resolution first."""

    machine: dict[str, str]
    results: list[SpeedResult]
    product: list[float] = field(default_factory=list)  # seconds of a product of two PRODUCT × PRODUCT matrices, fp32


def run(
    specs: Sequence[DetectorSpec],
    resolutions: Sequence[Size],
    timing: Timing | None = None,
    on_progress: Callable[[str], None] = lambda doing: None,
) -> Benchmark:
    """Measure every detector at every resolution (H, W).

    Where a detector fails, for example out of memory, its results hold the error, and the others are measured.
    """
    timing = timing or Timing()
    if timing.runtime == "onnxruntime":
        onnx_encoder.need_packages()
    sizes = sorted(set(resolutions), key=lambda size: (math.prod(size), size))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(timing.threads or threads_before)
    try:
        built, failed = [], []
        for spec in specs:
            on_progress(f"{spec.name}: building")
            try:
                built.append(detectors.build(spec, timing.device, timing.runtime))
            except FAILURES as error:
                failed += [SpeedResult(spec, size, error=reason(error)) for size in sizes]
        by_size = [
            [SpeedResult(detector.spec, size, detector.parameters, detector.trained) for detector in built]
            for size in sizes
        ]
        for detector, *detector_results in zip(built, *by_size, strict=True):
            on_progress(f"{detector.spec.name}: memory")
            _measure_memory(detector_results, timing)
        measured = [result for results in by_size for result in results]
        product = _time(built * len(sizes), measured, timing, on_progress)
        done = [*failed, *measured]
        done.sort(key=lambda result: (math.prod(result.size), result.size, specs.index(result.spec)))
        return Benchmark(conditions(timing.device, timing.precision, timing.runtime), done, product)
    finally:
        torch.set_num_threads(threads_before)


def _measure_memory(results: Sequence[SpeedResult], timing: Timing) -> None:
    """The peak memory of a detector, at the resolution of each result."""
    peaks = memory.peak_memory(results[0].spec, [result.size for result in results], timing.device, timing.precision)
    for result, peak in zip(results, peaks, strict=True):
        if isinstance(peak, str):
            result.error = peak
        else:
            result.peak_memory = peak


def _time(
    built: Sequence[BuiltDetector],
    results: Sequence[SpeedResult],
    timing: Timing,
    on_progress: Callable[[str], None],
) -> list[float]:
    """Time `built[i]` at the resolution of `results[i]`, for all i; returns the times of the matrix product."""
    on_progress("latency")
    product = _time_latency(built, results, timing)
    on_progress("throughput")
    _time_throughput(built, results, timing)
    if timing.train:
        on_progress("training")
        _time_training(built, results, timing)
    return product


def _time_latency(built: Sequence[BuiltDetector], results: Sequence[SpeedResult], timing: Timing) -> list[float]:
    end = time.perf_counter() + 0.4 * timing.seconds * len(results)
    tasks = [
        scoring_pass(detector.maps, result.size, 1, timing.device, timing.precision)
        for detector, result in zip(built, results, strict=True)
    ]
    for result, task in zip(results, tasks, strict=True):
        counted = _attempt(result, partial(_count, result.spec, result.size, timing.device))
        result.dense_flop, result.scan_flop = counted or (0, 0)
        _attempt(result, task)  # warms up
    left, right = torch.randn(2, PRODUCT, PRODUCT, device=timing.device)
    seconds: list[float] = []

    def product() -> None:
        start = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)

    product()  # warms up
    seconds.clear()
    for result, times in zip(results, interleaved(results, tasks, end, each_round=product), strict=True):
        result.latency = times
    return seconds


def _count(spec: DetectorSpec, size: Size, device: str) -> tuple[int, int]:
    """FLOP of one image, without the zeros that `for_inference` adds to kernels."""
    if spec.file is not None and spec.file.suffix.lower() in SUFFIXES:
        raise MambaADError("the operations of an exported model cannot be counted")
    record = detectors.as_published(spec).to(device)
    return count_flops(scoring_pass(detectors.maps_of(record.network, record), size, 1, device))


def _time_throughput(built: Sequence[BuiltDetector], results: Sequence[SpeedResult], timing: Timing) -> None:
    """A third of the time to find each detector's best batch, the rest to time it."""
    seconds = 0.6 * timing.seconds
    end = time.perf_counter() + seconds * len(results)
    tasks: list[Task] = []
    for detector, result in zip(built, results, strict=True):
        tried = [timing.batch] if timing.batch else list(_batches(result.size))
        seconds_of = partial(_seconds_of_batch, detector.maps, result.size, timing)
        result.batch = _attempt(result, partial(best_batch, seconds_of, tried, seconds / 3), "throughput: ") or 1
        tasks.append(scoring_pass(detector.maps, result.size, result.batch, timing.device, timing.precision))
    for result, times in zip(results, interleaved(results, tasks, end, "throughput: "), strict=True):
        result.throughput = times


def _time_training(built: Sequence[BuiltDetector], results: Sequence[SpeedResult], timing: Timing) -> None:
    end = time.perf_counter() + timing.seconds * len(results)
    tasks: list[Task] = []
    for detector, result in zip(built, results, strict=True):
        prepare = partial(training_step, detector.network, result.size, timing.device, timing.precision)
        tasks.append(_attempt(result, prepare, "training: ") or (lambda: None))
        _attempt(result, tasks[-1], "training: ")
    for result, times in zip(results, interleaved(results, tasks, end, "training: "), strict=True):
        result.training = times
    for detector in built:
        if detector.network is not None:
            detector.network.detector.eval().zero_grad(set_to_none=True)


def interleaved(
    results: Sequence[SpeedResult],
    tasks: Sequence[Task],
    end: float,
    doing: str = "",
    each_round: Task = lambda: None,
) -> list[list[float]]:
    """Seconds of each task, one a round: A B C A B C … for three rounds at least, and until the clock shows `end`.

    The task of a result with an error is left out. A task that fails has no times, and its result holds the error.
    `each_round` runs at the end of each round.
    """
    times: list[list[float]] = [[] for _ in tasks]
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for result, task, seconds in zip(results, tasks, times, strict=True):
            start = time.perf_counter()
            _attempt(result, task, doing)
            seconds.append(time.perf_counter() - start)
        each_round()
    return [[] if result.error else seconds for result, seconds in zip(results, times, strict=True)]


def best_batch(seconds_of: Callable[[int], float], tried: Sequence[int], seconds: float) -> int:
    """The batch with most images a second. Each is tried once, while the next is expected to fit into `seconds`.

    A batch that fails ends the search; if the first batch fails, its error is raised.

    >>> best_batch({1: 1.0, 2: 1.0, 4: 3.0, 8: 4.0}.get, [1, 2, 4, 8], seconds=5)
    2
    """
    rates: dict[int, float] = {}
    spent = took = 0.0
    for batch in tried:
        if rates and spent + took * batch / max(rates) > seconds:
            break
        try:
            took = seconds_of(batch)
        except FAILURES:
            if not rates:
                raise
            break
        spent += took
        rates[batch] = batch / took
    return max(rates, key=lambda batch: rates[batch])


def _batches(size: Size) -> Iterator[int]:
    """The batches to try at this resolution.

    >>> list(_batches((1024, 1024)))
    [1, 2, 4]
    """
    return (batch for batch in BATCHES if batch == 1 or batch * math.prod(size) <= MAX_BATCH_PIXELS)


def _seconds_of_batch(maps: Maps, size: Size, timing: Timing, batch: int) -> float:
    task = scoring_pass(maps, size, batch, timing.device, timing.precision)
    if timing.device != "cpu":  # a GPU chooses its algorithms at the first pass of a shape
        task()
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def _attempt(result: SpeedResult, task: Callable[[], Any], doing: str = "") -> Any:
    """What the task returns; None if it fails, with the reason in the result, or if the result has an error already."""
    if result.error:
        return None
    try:
        return task()
    except FAILURES as error:
        result.error = doing + reason(error)
        return None
