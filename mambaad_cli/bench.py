"""Detectors side by side: parameters, FLOPs, latency, throughput and memory, with random weights: speed and size alone.

What is timed is what scoring does after an image is read: encoder with its batch norms folded, detector, anomaly map.
The detectors take turns, one pass each a round, so that a noisy machine slows all of them alike; ratios are taken
within a round.

Letters: b batch, H × W pixels.
"""

import dataclasses
import io
import json
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
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mambaad_cli import MambaADError, __version__, modelfile
from mambaad_cli.files import written_whole
from mambaad_cli.fit import PRESETS
from mambaad_cli.model import DETECTORS, scan
from mambaad_cli.model.encoder import fold_batch_norms
from mambaad_cli.modelfile import Model, Settings
from mambaad_cli.report import csv_line

BATCHES = (1, 2, 4, 8, 16)
MOST_PIXELS = 2**22  # that go through a detector at once when batches are tried: 16 images of 512 × 512
TRAINING_BATCH = 8
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
UNKNOWN = "–"
STATUS = Path("/proc/self/status")
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


class Spread(NamedTuple):
    """Of several rounds: the median, and the range that four fifths of them lie in."""

    median: float
    low: float
    high: float


# Which detectors


def choose(names: Sequence[str] = ()) -> list[Row]:
    """The rows of these detectors (rd4ad) or names (rd4ad-resnet34), in the table's order; all of them without names.

    >>> [row.name for row in choose(["rd4ad-resnet34", "MambaAD"])]
    ['MambaAD paper', 'MambaAD small (default)', 'RD4AD, ResNet34']
    """
    known = [*DETECTORS, *(_short(row.name) for row in ROWS)]
    wanted = [_short(name) for name in names]
    for name in wanted:
        if name not in known:
            raise MambaADError(f"no detector {name!r}: choose from {', '.join(known)}")
    return [row for row in ROWS if not wanted or row.detector in wanted or _short(row.name) in wanted]


def fitted(path: Path) -> Row:
    """The row of a model file. Raises MambaADError where it is none."""
    settings = modelfile.read_facts(path)["settings"]
    return Row(path.name, settings["detector"], settings["encoder"], settings["options"], path)


def _short(name: str) -> str:
    """A name as it is typed.

    >>> _short("UniAD (EfficientNet-B4)")
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
    settings = Settings(row.detector, row.encoder, options=row.options)
    model = modelfile.new_model(settings) if row.file is None else modelfile.load(row.file)
    model.detector.eval()
    trained = sum(p.numel() for p in model.detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.encoder.parameters())
    model = dataclasses.replace(model, encoder=fold_batch_norms(model.encoder)).to(device)
    return Contestant(row, model, frozen + trained, trained)


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
    sizes = sorted(set(resolutions), key=math.prod)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        contestants = []
        for row in rows:
            on_progress(f"{row.name}: building")
            contestants.append(build(row, device))
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
        return Benchmark(machine(device, precision), [result for results in by_size for result in results])
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
        result.dense_flop, result.scan_flop = _attempt(result, partial(count_flops, task)) or (0, 0)  # warms up, too
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
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search("out of|allocate|enough memory", text):
        return "out of memory"
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
    model = build(row, device).model
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
    rest = "out of memory" if child.exitcode == -signal.SIGKILL else None
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


# Numbers from times


def ratio(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Round by round, how many times as long as the reference's.

    >>> ratio([2.0, 6.0, 20.0], [1.0, 2.0, 2.0])
    Spread(median=3.0, low=2.2, high=8.6)
    """
    low, median, high = np.percentile(np.divide(times, reference), [10, 50, 90])
    return Spread(*(round(float(value), 9) for value in (median, low, high)))


def fit_exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float | None:
    """p of seconds ∝ pixels^p, by least squares of the logarithms; None for fewer than two resolutions.

    >>> round(fit_exponent([1, 4, 16], [3.0, 6.0, 12.0]), 9)
    0.5
    """
    if len(set(pixels)) < 2:
        return None
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def scaling(benchmark: Benchmark) -> dict[str, float]:
    """By name, the exponent of a pass's median time against pixels, where there are two resolutions or more."""
    exponents = {}
    for name in dict.fromkeys(result.row.name for result in benchmark.results):
        timed = [result for result in benchmark.results if result.row.name == name and result.latency]
        pixels = [math.prod(result.size) for result in timed]
        exponent = fit_exponent(pixels, [float(np.median(result.latency)) for result in timed])
        if exponent is not None:
            exponents[name] = exponent
    return exponents


def records(benchmark: Benchmark) -> list[dict[str, Any]]:
    """One flat record a result, for programs; None where something is not known.

    Ratios are to the first MambaAD of the same resolution: of times for latency, of rates for throughput.
    """
    found: list[dict[str, Any]] = []
    for _, group in groupby(benchmark.results, key=lambda result: result.size):
        results = list(group)
        first = next((result for result in results if result.row.detector == "mambaad"), None)
        found += [_record(result, first) for result in results]
    return found


def _record(result: Result, first: Result | None) -> dict[str, Any]:
    p50, p95 = np.percentile(result.latency, [50, 95]) * 1e3 if result.latency else (None, None)
    known = result.dense_flop > 0
    return {
        "detector": result.row.name,
        "encoder": result.row.encoder,
        "height": result.size[0],
        "width": result.size[1],
        "parameters": result.parameters,
        "trained_parameters": result.trained,
        "gmac_without_scan": result.dense_flop / 2e9 if known else None,
        "scan_gflop": result.scan_flop / 1e9 if known else None,
        "total_gflop": (result.dense_flop + result.scan_flop) / 1e9 if known else None,
        "latency_rounds": len(result.latency),
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        **_ratio_fields("latency_ratio", result.latency, first.latency if first else []),
        "throughput_rounds": len(result.throughput),
        "batch": result.batch if result.throughput else None,
        "images_per_s": result.batch / float(np.median(result.throughput)) if result.throughput else None,
        **_ratio_fields("throughput_ratio", _per_image(first) if first else [], _per_image(result)),
        "peak_memory_mb": None if result.peak_memory is None else result.peak_memory / 1e6,
        "training_step_ms": float(np.median(result.training)) * 1e3 if result.training else None,
        "error": result.error,
    }


def _per_image(result: Result) -> list[float]:
    return [seconds / result.batch for seconds in result.throughput]


def _ratio_fields(name: str, times: Sequence[float], reference: Sequence[float]) -> dict[str, float | None]:
    spread = ratio(times, reference) if times and reference else (None, None, None)
    return dict(zip((name, f"{name}_p10", f"{name}_p90"), spread, strict=True))


# For people and programs to read


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


def notes(benchmark: Benchmark) -> list[str]:
    """What the table's figures mean, a line each."""
    rounds = [len(result.latency) for result in benchmark.results if result.latency]
    said = [
        "Random weights: speed and size alone. A pass is encoder, detector and anomaly map; the detectors took turns, "
        f"{min(rounds, default=0)} rounds or more.",
        "GMAC: 10⁹ multiply-accumulates of convolutions and matrix products. GFLOP: 10⁹ operations, two a "
        "multiply-accumulate; the scan's are nine a position, direction, channel and state, which common counters "
        "do not see.",
        "×: as many times the first MambaAD's time (or images/s), median of the rounds and the range of four fifths "
        "of them.",
        "MB: 10⁶ bytes at the peak of a pass over one image, weights included, libraries not.",
    ]
    if any((result.row.detector, result.row.encoder) == ("uniad", "efficientnet_b4") for result in benchmark.results):
        said.append(
            "UniAD is often printed with 24.52 M parameters: that counts all of EfficientNet-B4. The blocks behind its "
            "stride 16, which UniAD never looks at, are left out here."
        )
    return said


def to_table(benchmark: Benchmark) -> Group:
    """For rich to print: the machine, the table, the exponents of the scaling curve, notes."""
    heads, rows = _cells(benchmark)
    parts: list[Any] = [Text(_machine_line(benchmark)), Text()]
    parts += [_rich_table(heads, rows), Text()]
    if exponents := scaling(benchmark):
        parts += [_rich_table(*_scaling_cells(exponents)), Text()]
    return Group(*parts, *(Text(note, style="dim") for note in notes(benchmark)))


def to_markdown(benchmark: Benchmark) -> str:
    heads, rows = _cells(benchmark)
    parts = [_machine_line(benchmark), _markdown_table(heads, rows)]
    if exponents := scaling(benchmark):
        parts.append(_markdown_table(*_scaling_cells(exponents)))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(benchmark))]) + "\n"


def to_csv(benchmark: Benchmark) -> str:
    """The records alone: a header and a line each."""
    found = records(benchmark)
    text = io.StringIO()
    text.writelines([csv_line(found[0]), *(csv_line(record.values()) for record in found)] if found else [])
    return text.getvalue()


def to_json(benchmark: Benchmark) -> str:
    """{"machine": …, "results": [records], "scaling": {name: exponent}, "notes": […]}."""
    whole = {
        "machine": benchmark.machine,
        "results": records(benchmark),
        "scaling": scaling(benchmark),
        "notes": notes(benchmark),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _machine_line(benchmark: Benchmark) -> str:
    of = benchmark.machine
    threads = f"{of['threads']} thread{'' if of['threads'] == '1' else 's'}"
    versions = f"mambaad {of['mambaad']}, torch {of['torch']}, Python {of['python']}"
    return f"{of['device']}, {threads}, {of['precision']}; scan: {of['scan']}; {versions}"


def _cells(benchmark: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table, as text of one or two lines a cell."""
    several = len({result.size for result in benchmark.results}) > 1
    trained = any(result.training or "training" in result.error for result in benchmark.results)
    heads = ["detector\nencoder", *["pixels"] * several, "M params\nall/trained", "GMAC\nno scan"]
    heads += ["GFLOP\nscan", "GFLOP\ntotal", "peak\nMB", "batch 1, ms\np50/p95", "images/s\n(batch)"]
    heads += [f"training\nms a step of {TRAINING_BATCH}"] * trained
    rows = []
    for record in records(benchmark):
        name = "\n".join(text for text in (record["detector"], record["encoder"], record["error"]) if text)
        row = [name, *[f"{record['width']}x{record['height']}"] * several]
        row += [f"{record['parameters'] / 1e6:.1f}/{record['trained_parameters'] / 1e6:.1f}"]
        row += [_number(record[key]) for key in ("gmac_without_scan", "scan_gflop", "total_gflop", "peak_memory_mb")]
        row += [_latency_cell(record), _throughput_cell(record), *[_number(record["training_step_ms"])] * trained]
        rows.append(row)
    return heads, rows


def _latency_cell(record: dict[str, Any]) -> str:
    if record["latency_ms_p50"] is None:
        return UNKNOWN
    times = f"{_number(record['latency_ms_p50'])}/{_number(record['latency_ms_p95'])}"
    return times + _ratio_lines(record, "latency_ratio")


def _throughput_cell(record: dict[str, Any]) -> str:
    if record["images_per_s"] is None:
        return UNKNOWN
    return f"{_number(record['images_per_s'])} ({record['batch']})" + _ratio_lines(record, "throughput_ratio")


def _ratio_lines(record: dict[str, Any], name: str) -> str:
    median, low, high = record[name], record[f"{name}_p10"], record[f"{name}_p90"]
    if median is None:
        return ""
    return "\n× 1" if low == median == high == 1 else f"\n× {median:.2f}\n{low:.2f}–{high:.2f}"


def _number(value: float | None) -> str:
    """Three figures, without an exponent.

    >>> _number(1234.5), _number(12.34), _number(0.1234), _number(0.0), _number(None)
    ('1234', '12.3', '0.123', '0', '–')
    """
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _scaling_cells(exponents: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    heads = ["detector", "time ∝ pixels to the power of"]
    return heads, [[name, f"{exponent:.2f}"] for name, exponent in exponents.items()]


def _rich_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |" for line in lines)


# Pictures


def check_plot(path: Path) -> None:
    """Raise MambaADError, before minutes of measuring, where a plot could not be written."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise MambaADError(f"cannot plot to {path}: name a .png or .svg file")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MambaADError("plots need matplotlib: pip install 'mambaad[plot]', or leave out --plot") from error


def plot(benchmark: Benchmark, path: Path) -> None:
    """Latency against pixels, and images/s against GFLOP, as PNG or SVG. Raises MambaADError without matplotlib."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    by_pixels, by_flop = figure.subplots(1, 2)
    timed = [record for record in records(benchmark) if record["latency_ms_p50"] is not None]
    exponents = scaling(benchmark)
    for name in dict.fromkeys(record["detector"] for record in timed):
        own = [record for record in timed if record["detector"] == name]
        label = f"{name}, power {exponents[name]:.2f}" if name in exponents else name
        by_pixels.loglog(
            [r["height"] * r["width"] for r in own], [r["latency_ms_p50"] for r in own], marker="o", label=label
        )
        fast = [record for record in own if record["images_per_s"] is not None]
        by_flop.loglog([r["total_gflop"] for r in fast], [r["images_per_s"] for r in fast], marker="o", label=name)
    by_pixels.set(xlabel="pixels", ylabel="ms an image, batch 1, median")
    by_flop.set(xlabel="GFLOP an image, the scan among them", ylabel="images/s, best batch")
    for axes in (by_pixels, by_flop):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.suptitle(_machine_line(benchmark), fontsize="small")
    with written_whole(path) as half:
        figure.savefig(half, dpi=150)
