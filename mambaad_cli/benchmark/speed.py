"""Detectors side by side: parameters, FLOPs, latency, throughput and memory, with random weights: speed and size alone.

What is timed is what scoring does after an image is read: encoder with its batch norms folded, detector, anomaly map.
The detectors take turns, one pass each a round, so that a noisy machine slows all of them alike; ratios are taken
within a round.

Letters: b batch, H × W pixels.
"""

import dataclasses
import math
import multiprocessing
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mambaad_cli import MambaADError, __version__
from mambaad_cli.inspection import model_file as modelfile
from mambaad_cli.inspection.model_file import Model, Settings
from mambaad_cli.model import DETECTORS
from mambaad_cli.model.encoder import for_inference
from mambaad_cli.model.kernels import selective_scan as scan
from mambaad_cli.training.fit import PRESETS

BATCHES = (1, 2, 4, 8, 16)
MOST_PIXELS = 2**22  # that go through a detector at once when batches are tried: 16 images of 512 × 512
TRAINING_BATCH = 8
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
STATUS = Path("/proc/self/status")
OUT_OF_MEMORY = "out of memory"
FAILURES = (MambaADError, RuntimeError, MemoryError, ValueError, AssertionError)  # of one detector; the rest go on

Size = tuple[int, int]  # H, W
Task = Callable[[], object]


class Row(NamedTuple):
    """One line of the table: a detector on an encoder, or the fitted model in `file`."""

    name: str
    detector: str
    encoder: str
    options: dict[str, Any]
    file: Path | None = None


ROWS = (
    Row("MambaAD paper", "mambaad", PRESETS["paper"]["encoder"], PRESETS["paper"]["options"]),
    Row("MambaAD small (default)", "mambaad", PRESETS["small"]["encoder"], PRESETS["small"]["options"]),
    Row("RD4AD (WideResNet50)", "rd4ad", "wide_resnet50_2", {"bottleneck_width": 64}),
    Row("RD4AD, ResNet34", "rd4ad", "resnet34", {"bottleneck_width": 128}),
    Row("UniAD (EfficientNet-B4)", "uniad", "efficientnet_b4", {}),
    Row("UniAD, ResNet34", "uniad", "resnet34", {}),
)


@dataclass
class Result:
    """One detector at one resolution. Times are seconds of a pass, one a round; none where they could not be had."""

    row: Row
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
    """All that was measured. Results of one resolution stand together, smallest first."""

    machine: dict[str, str]
    results: list[Result]


# Which detectors


def choose(names: Sequence[str] = ()) -> list[Row]:
    """The rows of these detectors (rd4ad) or names (rd4ad-resnet34), in the table's order; all of them without names.

    >>> [row.name for row in choose(["rd4ad-resnet34", "MambaAD"])]
    ['MambaAD paper', 'MambaAD small (default)', 'RD4AD, ResNet34']
    """
    known = [*DETECTORS, *(as_typed(row.name) for row in ROWS)]
    wanted = [as_typed(name) for name in names]
    for name in wanted:
        if name not in known:
            raise MambaADError(f"no detector {name!r}: choose from {', '.join(known)}")
    return [row for row in ROWS if not wanted or row.detector in wanted or as_typed(row.name) in wanted]


def fitted(path: Path) -> Row:
    """The row of a model file. Raises MambaADError where it is none."""
    settings = modelfile.read_facts(path)["settings"]
    return Row(path.name, settings["detector"], settings["encoder"], settings["options"], path)


def as_typed(name: str) -> str:
    """A name as it is typed.

    >>> as_typed("UniAD (EfficientNet-B4)")
    'uniad-efficientnet-b4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Contestant(NamedTuple):
    """A row's model, ready to score."""

    row: Row
    model: Model
    parameters: int
    trained: int


def build(row: Row, device: str = "cpu") -> Contestant:
    """Random weights, or a file's. Parameters are counted before the batch norms are folded away."""
    model = _as_published(row)
    trained = sum(p.numel() for p in model.detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.encoder.parameters())
    model = dataclasses.replace(model, encoder=for_inference(model.encoder)).to(device)
    return Contestant(row, model, frozen + trained, trained)


def _as_published(row: Row) -> Model:
    settings = Settings(row.detector, row.encoder, options=row.options)
    model = modelfile.new_model(settings) if row.file is None else modelfile.load(row.file)
    model.detector.eval()
    return model


# Measuring


def run(
    rows: Sequence[Row],
    resolutions: Sequence[Size],
    *,
    seconds: float = 12.0,
    batch: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    train: bool = False,
    on_progress: Callable[[str], None] = lambda doing: None,
) -> Benchmark:
    """Measure every row at every resolution (H, W).

    `seconds` is about what a detector's timing takes at one resolution, if three rounds need no more. `batch` is the
    only one to try, else the fastest up to 16 is found. `precision` is fp32 or bf16 (autocast). `train` times
    training steps too. A detector that fails, out of memory for one, says so in its results, and the others go on.
    """
    sizes = sorted(set(resolutions), key=lambda size: (math.prod(size), size))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        contestants, failed = [], []
        for row in rows:
            on_progress(f"{row.name}: building")
            try:
                contestants.append(build(row, device))
            except FAILURES as error:
                failed += [Result(row, size, error=reason(error)) for size in sizes]
        by_size = [[Result(one.row, size, one.parameters, one.trained) for one in contestants] for size in sizes]
        for one, *own in zip(contestants, *by_size, strict=True):
            on_progress(f"{one.row.name}: memory")
            _measure_memory(own, device, precision)
        for size, results in zip(sizes, by_size, strict=True):
            doing = f"{size[1]}x{size[0]}"
            on_progress(f"{doing}: latency")
            _time_latency(contestants, results, seconds * 0.4, device, precision)
            on_progress(f"{doing}: throughput")
            _time_throughput(contestants, results, seconds * 0.6, batch, device, precision)
            if train:
                on_progress(f"{doing}: training")
                _time_training(contestants, results, seconds, device, precision)
        done = [*failed, *(result for results in by_size for result in results)]
        done.sort(key=lambda result: (math.prod(result.size), result.size, rows.index(result.row)))
        return Benchmark(machine(device, precision), done)
    finally:
        torch.set_num_threads(threads_before)


def scoring(model: Model, size: Size, batch: int, device: str, precision: str) -> Callable[[], Tensor]:
    """One pass over `batch` random images: what scoring does after reading them. It returns when the device is done."""
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def once() -> Tensor:
        with torch.inference_mode(), _precise(device, precision):
            maps = model.anomaly_maps(images)
        _wait_for(device)
        return maps

    return once


def training(model: Model, size: Size, device: str, precision: str) -> Task:
    """One training step on features of random numbers: loss, its gradients, the optimizer, as fit does them."""
    with torch.inference_mode():
        shapes = [tuple(stage.shape[1:]) for stage in model.encoder(torch.zeros(1, 3, *size, device=device))]
    features = [
        torch.randn(TRAINING_BATCH, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]
    optimizer = model.detector.train().optimizer()

    def once() -> None:
        with _precise(device, precision):
            loss = model.detector.loss(features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.detector.parameters(), 5.0)
        optimizer.step()
        _wait_for(device)

    return once


def _count(row: Row, size: Size, device: str) -> tuple[int, int]:
    """FLOP of one image, without the zeros that `for_inference` adds to kernels."""
    return count_flops(scoring(_as_published(row).to(device), size, 1, device, "fp32"))


def count_flops(task: Task) -> tuple[int, int]:
    """FLOP of one call: of convolutions and matrix products, and of the selective scan beside them.

    The scan's operator projects dt as well, which is a matrix product.
    """
    task()  # the matrices that upsample and smooth are made once and kept: they are no part of a pass
    scan_operator = torch.ops.mambaad.selective_scan
    # older counters do not know the CPU's attention
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with (
        FlopCounterMode(display=False, custom_mapping=known) as whole,
        FlopCounterMode(display=False, custom_mapping={scan_operator: _scan_alone}) as split,
    ):
        task()
    scanned = split.get_flop_counts()["Global"].get(scan_operator, 0)
    return whole.get_total_flops() - scanned, scanned


def _attention_flops(query, key, value, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return sdpa_flop_count(query, key, value)


def _scan_alone(u, x, dt_weight, dt_bias, A, *_, out_shape=None, **__) -> int:  # type: ignore[no-untyped-def]
    return scan.scan_flops(u, x, A)[1]


def _time_latency(
    contestants: Sequence[Contestant], results: Sequence[Result], seconds: float, device: str, precision: str
) -> None:
    end = time.perf_counter() + seconds * len(results)
    tasks = [scoring(one.model, result.size, 1, device, precision) for one, result in _paired(contestants, results)]
    for result, task in zip(results, tasks, strict=True):
        counted = _attempt(result, partial(_count, result.row, result.size, device))
        result.dense_flop, result.scan_flop = counted or (0, 0)
        _attempt(result, task)  # warms up
    for result, times in zip(results, interleaved(results, tasks, end), strict=True):
        result.latency = times


def _time_throughput(
    contestants: Sequence[Contestant],
    results: Sequence[Result],
    seconds: float,
    batch: int | None,
    device: str,
    precision: str,
) -> None:
    """A third of the time to find each detector's best batch, the rest to time it."""
    end = time.perf_counter() + seconds * len(results)
    tasks: list[Task] = []
    for one, result in _paired(contestants, results):
        tried = (
            [b for b in BATCHES if b == 1 or b * math.prod(result.size) <= MOST_PIXELS] if batch is None else [batch]
        )
        seconds_of = partial(_seconds_of_batch, one.model, result.size, device, precision)
        result.batch = _attempt(result, partial(best_batch, seconds_of, tried, seconds / 3), "throughput: ") or 1
        tasks.append(scoring(one.model, result.size, result.batch, device, precision))
    for result, times in zip(results, interleaved(results, tasks, end, "throughput: "), strict=True):
        result.throughput = times


def _time_training(
    contestants: Sequence[Contestant], results: Sequence[Result], seconds: float, device: str, precision: str
) -> None:
    end = time.perf_counter() + seconds * len(results)
    tasks: list[Task] = []
    for one, result in _paired(contestants, results):
        task = _attempt(result, partial(training, one.model, result.size, device, precision), "training: ")
        tasks.append(task or (lambda: None))
        _attempt(result, tasks[-1], "training: ")
    for result, times in zip(results, interleaved(results, tasks, end, "training: "), strict=True):
        result.training = times
    for one in contestants:
        one.model.detector.eval().zero_grad(set_to_none=True)


def interleaved(results: Sequence[Result], tasks: Sequence[Task], end: float, doing: str = "") -> list[list[float]]:
    """Seconds of each task, one a round: A B C A B C … for three rounds at least, and until the clock shows `end`.

    The task of a result with an error is left out. One that fails has no times, and its result says why.
    """
    times: list[list[float]] = [[] for _ in tasks]
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for result, task, own in zip(results, tasks, times, strict=True):
            start = time.perf_counter()
            _attempt(result, task, doing)
            own.append(time.perf_counter() - start)
    return [[] if result.error else own for result, own in zip(results, times, strict=True)]


def best_batch(seconds_of: Callable[[int], float], tried: Sequence[int], seconds: float) -> int:
    """The batch with most images a second, each tried once, as long as the next is expected to fit into `seconds`.

    One that fails ends the search; the first one's error is the caller's.

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


def _seconds_of_batch(model: Model, size: Size, device: str, precision: str, batch: int) -> float:
    task = scoring(model, size, batch, device, precision)
    if device != "cpu":  # a GPU chooses its algorithms at the first pass of a shape
        task()
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def _paired(contestants: Sequence[Contestant], results: Sequence[Result]) -> Iterator[tuple[Contestant, Result]]:
    return zip(contestants, results, strict=True)


def _attempt(result: Result, task: Callable[[], Any], doing: str = "") -> Any:
    """What the task returns; None if it fails, and the result says why, or if something has failed before."""
    if result.error:
        return None
    try:
        return task()
    except FAILURES as error:
        result.error = doing + reason(error)
        return None


def reason(error: BaseException) -> str:
    """Why a detector failed, on one line.

    >>> reason(MemoryError()), reason(ValueError("too small\\nsomewhere"))
    ('out of memory', 'too small')
    """
    text = str(error)
    scarce = re.search("out of|allocate|enough memory", text) and not isinstance(error, MambaADError)
    if scarce or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    return text.splitlines()[0] if text else type(error).__name__


def _precise(device: str, precision: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# Memory


def _measure_memory(results: Sequence[Result], device: str, precision: str) -> None:
    """Peak memory of one detector's pass over one image, weights included, at each result's resolution.

    On a GPU the allocator's count. On a CPU a process of its own for each detector, forked from one that has only
    imported the libraries: what it holds at its peak (VmHWM: weights, activations and every library's scratch alike)
    less what it held before the model was built, both without the libraries' code (RssFile). Unknown where the system
    does not tell (outside Linux).
    """
    row, sizes = results[0].row, [result.size for result in results]
    if device != "cpu":
        peaks: Sequence[int | str | None] = list(_peaks(row, sizes, device, precision))
    elif STATUS.exists():
        peaks = _peaks_of_a_process(row, sizes, precision)
    else:
        return
    for result, peak in zip(results, peaks, strict=True):
        if isinstance(peak, str):
            result.error = peak
        else:
            result.peak_memory = peak


def _peaks(row: Row, sizes: Sequence[Size], device: str, precision: str) -> Iterator[int | str]:
    """Bytes at the peak of a pass, or why there was none; one a size."""
    before = _held(device)
    try:
        model = build(row, device).model
    except FAILURES as error:
        yield from [reason(error)] * len(sizes)
        return
    for size in sizes:
        _forget_peak(device)
        try:
            scoring(model, size, 1, device, precision)()
            yield _peak(device) - before
        except FAILURES as error:
            yield reason(error)


def _peaks_of_a_process(row: Row, sizes: Sequence[Size], precision: str) -> list[int | str | None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=_send_peaks, args=(theirs, row, sizes, precision, torch.get_num_threads()), daemon=True
    )
    child.start()
    theirs.close()
    peaks: list[int | str | None] = []
    with suppress(EOFError):  # it ended early
        for _ in sizes:
            peaks.append(ours.recv())
    child.join()
    rest = OUT_OF_MEMORY if child.exitcode == -signal.SIGKILL else None
    return peaks + [rest] * (len(sizes) - len(peaks))


def _send_peaks(pipe: Connection, row: Row, sizes: Sequence[Size], precision: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    torch.set_num_threads(threads)
    for peak in _peaks(row, sizes, "cpu", precision):
        pipe.send(peak)


def _held(device: str) -> int:
    return _status("VmRSS") - _status("RssFile") if device == "cpu" else torch.cuda.memory_allocated(device)


def _peak(device: str) -> int:
    return _status("VmHWM") - _status("RssFile") if device == "cpu" else torch.cuda.max_memory_allocated(device)


def _forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # then the peak of building the model counts as well
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM to VmRSS


def _status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


# What the numbers hold for


def machine(device: str, precision: str) -> dict[str, str]:
    """What the numbers hold for."""
    kernel = scan.kernel()
    backend = "chunked PyTorch" if kernel is None else f"fused C, {scan.ISA[kernel.mambaad_isa]}"
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "precision": precision,
        "scan": "GPU" if device.startswith("cuda") else backend,
        "mambaad": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found is not None:
            return found[1]
    return platform.processor() or platform.machine()
