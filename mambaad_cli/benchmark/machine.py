"""Facts of the machine, for `mambaad doctor` and for the numbers of a benchmark."""

import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from mambaad_cli import MambaADError, __version__
from mambaad_cli.allocator import keep_freed_memory
from mambaad_cli.model import compiled_encoder, onnx_encoder
from mambaad_cli.model.compiled_encoder import CompiledEncoder
from mambaad_cli.model.encoder import DEFAULT, Encoder, build_encoder, for_inference, pretrained_encoder
from mambaad_cli.model.kernels import cpu, plain_scan
from mambaad_cli.model.kernels import selective_scan as scan
from mambaad_cli.model.scan_orders import directions

WATCH_SECONDS = 0.2  # for which the CPU time of other processes is watched
BUSY_SHARE = 0.1  # of the cores: from here on the machine counts as busy with other processes


def conditions(device: str, precision: str, runtime: str = "torch") -> dict[str, str]:
    """The device, the threads and the software that the numbers of a benchmark hold for."""
    on_gpu = device.startswith("cuda")
    library = cpu.kernels()
    on_cpu = "chunked PyTorch" if library is None else f"fused C, {cpu.ISA[library.mambaad_isa]}"
    encoder_runtime = {} if runtime == "torch" else {"default encoder": f"ONNX Runtime {version('onnxruntime')}"}
    return encoder_runtime | {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "precision": precision,
        "scan": "GPU" if on_gpu else on_cpu,
        "mambaad": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def say_backend() -> None:
    """The first line of the programs `python -m mambaad_cli…`: where they were imported from, and the scan they use.

    In a checkout whose kernel was not built they run many times slower, which must not go unnoticed.
    """
    keep_freed_memory()  # as the command does
    facts = conditions("cpu", "fp32")
    folder = Path(__file__).parent.parent
    print(f"mambaad of {folder}; scan: {facts['scan']}; {facts['threads']} threads", file=sys.stderr)
    if cpu.kernels() is None:
        print(
            "mambaad: the compiled scan is missing here, so this is slow: pip install -e . builds it", file=sys.stderr
        )


def _cpu_name() -> str:
    with suppress(OSError):
        model_name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if model_name is not None:
            return model_name[1]
    return platform.processor() or platform.machine()


def facts() -> dict[str, Any]:
    """The facts that `mambaad doctor` prints, one on each line: strings, numbers and flat dicts, fit for JSON."""
    load = load_fact(cores_taken_by_others(), cores())  # first, while this process is not busy itself
    return {
        "mambaad": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu features": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": load,
        **_scan_facts(),
        "gpu": _gpu(),
        **{f"gpu scan, {name}": state for name, state in _gpu_scans().items()},
        "default encoder": _weights(),
        "runtime of the default encoder": _runtimes(),
        "cache of other encoders": _cache(),
        "cache of features": _temporary(),
    }


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_taken_by_others(seconds: float = WATCH_SECONDS) -> float:
    """How many cores other processes keep busy, on average over `seconds`, as far as they are visible to us."""
    start, before = time.perf_counter(), _cpu_seconds()
    time.sleep(seconds)
    took, after = time.perf_counter() - start, _cpu_seconds()
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys()) / took


def _cpu_seconds() -> dict[int, float]:
    """CPU time of each other process since it started, by process id."""
    cpu_times = {process.pid: process.info["cpu_times"] for process in psutil.process_iter(["cpu_times"])}
    return {pid: times.user + times.system for pid, times in cpu_times.items() if times and pid != os.getpid()}


def load_fact(taken: float, cores: int) -> str:
    """Whether the machine is busy, `taken` cores of it with other processes.

    >>> load_fact(0.1, 2)
    'quiet'
    >>> load_fact(1.88, 2)
    '1.9 busy processes besides this one on 2 cores: fits and scores take longer'
    """
    if taken < BUSY_SHARE * cores:
        return "quiet"
    on_cores = f"{cores} core{'' if cores == 1 else 's'}"
    return f"{taken:.1f} busy processes besides this one on {on_cores}: fits and scores take longer"


def _scan_facts() -> dict[str, Any]:
    """Which scan runs on the CPU, and its speed beside the chunked PyTorch path, in one run."""
    library = cpu.kernels()
    plain = _nanoseconds(plain_scan.chunked_scan)
    if library is None:
        return {
            "cpu scan": "chunked PyTorch: the compiled kernel is missing. Install a C compiler (gcc or "
            "clang, on Windows clang), then pip install --force-reinstall --no-deps --no-cache-dir mambaad",
            "cpu scan speed": f"{plain:.1f} ns per position, direction and channel",
        }
    fused = _nanoseconds(scan.selective_scan)
    return {
        "cpu scan": f"compiled kernel, {cpu.ISA[library.mambaad_isa]}",
        "cpu scan threads": "torch's own" if library.mambaad_parallel else "started for each scan: libgomp not found",
        "cpu scan speed": f"{fused:.1f} ns per position, direction and channel; without it {plain / fused:.0f} × that",
    }


def _nanoseconds(function: Any) -> float:
    """The shortest of a few runs on a 32 × 32 grid of 128 channels, 8 directions and 16 states."""
    l, k, d, n, r = 1024, 8, 128, 16, 4
    A = -torch.arange(1.0, n + 1).expand(k, d, n).contiguous()
    order = torch.from_numpy(directions("hilbert", 32, 32, k).copy())
    tensors = (torch.randn(1, l, d), torch.randn(1, l, k, r + 2 * n), torch.randn(k, d, r), torch.full((k, d), -4.0))
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        with torch.no_grad():
            function(*tensors, A, torch.ones(k, d), order)
        best = min(best, time.perf_counter() - start)
    return best / (l * k * d) * 1e9


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"


def _gpu_scans() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    from mambaad_cli.model.kernels.selective_scan_cuda import backends

    return backends()


def _weights() -> str:
    try:
        pretrained_encoder(DEFAULT, (4, 8, 16))
    except MambaADError as error:
        return str(error)
    return f"{DEFAULT}, weights installed"


def _runtimes() -> str:
    """Which runtime `auto` takes for many images, and the time of each for an image of 256×256."""
    folded = for_inference(build_encoder(DEFAULT, (4, 8, 16)))
    found = [f"PyTorch {_milliseconds(folded):.1f} ms"]
    try:
        fast = onnx_encoder.with_onnx_runtime(folded)
        found.insert(0, f"ONNX Runtime {version('onnxruntime')} {_milliseconds(fast):.1f} ms")
    except MambaADError as error:
        found.append(str(error))
    if compiled_encoder.suits(folded):
        found.insert(0, f"compiled kernel {_milliseconds(CompiledEncoder(folded)):.1f} ms")
    return f"{'; '.join(found)} (an image of 256×256)"


def _milliseconds(encoder: Encoder) -> float:
    """The shortest of a few runs on one image."""
    image, best = torch.rand(1, 3, 256, 256), math.inf
    for _ in range(8):
        start = time.perf_counter()
        with torch.inference_mode():
            encoder(image)
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE)
    count = len(list(path.glob("models--timm--*"))) if path.is_dir() else 0
    return f"{path}, {count} timm models"


def _temporary() -> str:
    folder = tempfile.gettempdir()
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free, for what --cache-memory does not hold"
