"""What `mambaad doctor` tells: what is here, what is missing, and what that costs."""

import math
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mambaad_cli import MambaADError, __version__
from mambaad_cli.model.encoder import DEFAULT, pretrained_encoder
from mambaad_cli.model.kernels import selective_scan as scan
from mambaad_cli.model.scan_orders import directions


def facts() -> dict[str, Any]:
    """One value a line of the report; strings, numbers and flat dicts, fit for JSON."""
    return {
        "mambaad": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu features": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **_scan_facts(),
        "gpu": _gpu(),
        **{f"gpu scan, {name}": found for name, found in _gpu_scans().items()},
        "default encoder": _weights(),
        "cache of other encoders": _cache(),
        "cache of features": _temporary(),
    }


def _scan_facts() -> dict[str, Any]:
    """Which scan runs on the CPU, and its speed beside the chunked PyTorch path, in one run."""
    library = scan.kernel()
    plain = _nanoseconds(scan.chunked_scan)
    if library is None:
        return {
            "cpu scan": "chunked PyTorch: the compiled kernel is missing. Install a C compiler (gcc or clang), then "
            "pip install --force-reinstall --no-deps mambaad",
            "cpu scan speed": f"{plain:.1f} ns per position, direction and channel",
        }
    fused = _nanoseconds(scan.selective_scan)
    return {
        "cpu scan": f"compiled kernel, {scan.ISA[library.mambaad_isa]}",
        "cpu scan threads": "torch's own" if library.mambaad_parallel else "started for each scan: libgomp not found",
        "cpu scan speed": f"{fused:.1f} ns per position, direction and channel; without it {plain / fused:.0f} × that",
    }


def _nanoseconds(function: Any) -> float:
    """The best of a few runs on a 32 × 32 grid of 128 channels, 8 directions and 16 states."""
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


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE)
    count = len(list(path.glob("models--timm--*"))) if path.is_dir() else 0
    return f"{path}, {count} timm models"


def _temporary() -> str:
    folder = tempfile.gettempdir()
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free, for what --cache-memory does not hold"
