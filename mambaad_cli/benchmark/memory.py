"""Peak memory of a detector's pass over one image, weights included."""

import multiprocessing
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mambaad_cli.benchmark import detectors
from mambaad_cli.benchmark.detectors import DetectorSpec
from mambaad_cli.benchmark.passes import FAILURES, OUT_OF_MEMORY, Size, reason, scoring_pass

STATUS = Path("/proc/self/status")


def peak_memory(spec: DetectorSpec, sizes: Sequence[Size], device: str, precision: str) -> list[int | str | None]:
    """Bytes at the peak of a pass over one image of each size (H, W), or why there was none; None if it is unknown.

    On a GPU the allocator's count. On a CPU a process of its own for each detector, forked from one that has only
    imported the libraries: what it holds at its peak (VmHWM: weights, activations and every library's scratch alike)
    less what it held before the model was built, both without the libraries' code (RssFile). Unknown where the system
    does not tell (outside Linux).
    """
    if device != "cpu":
        return list(_peaks(spec, sizes, device, precision))
    return _peaks_of_a_process(spec, sizes, precision) if STATUS.exists() else [None] * len(sizes)


def _peaks(spec: DetectorSpec, sizes: Sequence[Size], device: str, precision: str) -> Iterator[int | str]:
    before = _held(device)
    try:
        maps = detectors.build(spec, device).maps
    except FAILURES as error:
        yield from [reason(error)] * len(sizes)
        return
    for size in sizes:
        _forget_peak(device)
        try:
            scoring_pass(maps, size, 1, device, precision)()
            yield _peak(device) - before
        except FAILURES as error:
            yield reason(error)


def _peaks_of_a_process(spec: DetectorSpec, sizes: Sequence[Size], precision: str) -> list[int | str | None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "timm"])  # timm is else imported with the first encoder that needs it
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=_send_peaks, args=(theirs, spec, sizes, precision, torch.get_num_threads()), daemon=True
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


def _send_peaks(pipe: Connection, spec: DetectorSpec, sizes: Sequence[Size], precision: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    torch.set_num_threads(threads)
    for peak in _peaks(spec, sizes, "cpu", precision):
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
    """Bytes of a line of /proc/self/status."""
    line = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert line is not None
    return 1024 * int(line[1])
