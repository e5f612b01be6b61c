"""python -m mambaad_cli.benchmark.gpu GOOD INCOMING: all that has to be checked and measured on a GPU, in one command.

Fits models in the ways that differ on a GPU, compares its scores with those of the CPU with and without TF32, times a
training step and counts how often it waits for the GPU, and measures the selective scan beside the memory's bandwidth
and beside plain PyTorch, and the Triton scan in one pass and in three. Prints one table and writes it as JSON. Exits
with 1 where a check fails, and with 2 without a GPU.

With --device cpu it runs on the CPU, which shows that the program works and nothing about a GPU.

Letters: b batch, l positions, k directions, d channels, n states, r rank of dt.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import machine
from mambaad_cli.benchmark.passes import reason
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection import store
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model import DETECTORS, precision
from mambaad_cli.model.encoder import DEFAULT, for_inference, pretrained_encoder
from mambaad_cli.model.kernels import plain_scan
from mambaad_cli.model.kernels.selective_scan import selective_scan
from mambaad_cli.model.scan_orders import directions
from mambaad_cli.model.settings import PRESETS
from mambaad_cli.training.features import Features, Group, Seen
from mambaad_cli.training.fit import fit_request
from mambaad_cli.training.loop import TrainingLoop
from mambaad_cli.training.recipe import RECIPES, RunOptions
from mambaad_cli.training.request import FitRequest

SCORES_AGREE = 1e-3  # largest difference of a score of the GPU from that of the CPU, relative to it
SCANS_AGREE = 1e-3  # of a value of the scan, in units of the largest
SCANS = {  # batch, side of the grid, directions, channels, states, rank: those of the networks at 256 × 256 pixels
    "default, stride 4, one image": (1, 64, 2, 48, 16, 2),
    "default, stride 4, batch 8": (8, 64, 2, 48, 16, 2),
    "default, stride 4, batch 64": (64, 64, 2, 48, 16, 2),
    "default, stride 16, batch 8": (8, 16, 2, 240, 16, 8),
    "paper, stride 4, one image": (1, 64, 8, 128, 16, 4),
    "paper, stride 8, batch 8": (8, 32, 8, 256, 16, 8),
}
SMALL_SCANS = {"tiny": (2, 8, 2, 16, 16, 1)}
SMALL_PRODUCT = 4  # photos: too few for any to be held out
TEST = Path("tests", "model", "test_selective_scan_cuda.py")  # in a checkout


class Finding(NamedTuple):
    """One line of the table."""

    part: str
    what: str
    number: float | None = None
    unit: str = ""
    passed: bool | None = None  # None: a measurement, which cannot fail
    note: str = ""


Check = Callable[["Options"], Iterator[Finding]]


@dataclass(frozen=True)
class Options:
    """What the checks work on."""

    device: str
    good: Path
    incoming: Sequence[ImageFile]
    quick: bool = False  # small sizes, to try the program
    folder: Path = field(default_factory=Path)  # for files that are thrown away

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def fit(self, good: Path | None = None, **choices: Any) -> FitRequest:
        """A fit on the device by the default preset."""
        small: dict[str, Any] = {"pixels": 64, "epochs": 1, "recipe_choices": {"views": 8}} if self.quick else {}
        return replace(FitRequest(good or self.good, device=self.device), **(small | choices))

    def wait(self) -> None:
        """Return when the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("good", type=Path, help="good photos of one product")
    parser.add_argument("incoming", type=Path, help="photos to score")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the file to write")
    parser.add_argument("--quick", action="store_true", help="small sizes: to try the program")
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("mambaad: no GPU that torch can use, so nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    machine.say_backend()
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = Options(args.device, args.good, images.find([args.incoming]), args.quick, Path(folder))
        except MambaADError as error:
            raise SystemExit(f"mambaad: {error}") from None
        findings = run(options)
    facts = machine.conditions(args.device, "fp32")
    print(table(findings))
    args.json.write_text(json.dumps({"machine": facts, "findings": [one._asdict() for one in findings]}, indent=2))
    if any(one.passed is False for one in findings):
        raise SystemExit(1)


def run(options: Options) -> list[Finding]:
    """All checks in turn. One that raises an error has failed, and the others go on."""
    findings: list[Finding] = []
    for part, check in CHECKS.items():
        print(f"{part} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            for finding in check(options):
                findings.append(finding._replace(part=part))
        except Exception as error:  # whatever a driver or a kernel raises is what is looked for
            findings.append(Finding(part, "ended with an error", passed=False, note=reason(error)))
        findings.append(Finding(part, "took", time.perf_counter() - start, "s"))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """The findings as lines of text.

    >>> print(table([Finding("fit", "plain", 12.345, "s", True), Finding("scan", "tiny", note="out of memory")]))
    part  what   number   check   note
    fit   plain  12.35 s  passed
    scan  tiny                    out of memory
    """
    verdicts = {True: "passed", False: "FAILED", None: ""}
    rows = [("part", "what", "number", "check", "note")]
    for one in findings:
        number = "" if one.number is None else f"{one.number:.4g} {one.unit}".strip()
        rows.append((one.part, one.what, number, verdicts[one.passed], one.note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths, strict=True)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


# ---- the checks ----


def tests_of_the_scan(options: Options) -> Iterator[Finding]:
    """The project's own tests of the scan on a GPU, where they are at hand."""
    root = Path(__file__).parents[2]
    if not (root / TEST).exists():
        yield Finding("", "skipped", note="not a checkout: the tests are not installed")
        return
    if options.quick:
        yield Finding("", "skipped", note="--quick")
        return
    command = [sys.executable, "-m", "pytest", "-q", str(TEST)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).strip().splitlines() or ["no output"]
    yield Finding("", TEST.name, passed=done.returncode == 0, note=lines[-1])


def fits(options: Options) -> Iterator[Finding]:
    """Fits in the ways that take other paths on a GPU."""
    few = options.folder / "products"
    files = images.find([options.good])
    for number, file in enumerate(files):
        name = "few" if number < SMALL_PRODUCT else "many"
        (few / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file.path, few / name / f"{number}{file.path.suffix}")
    requests = {
        "plain": options.fit(),
        "--folds 2": options.fit(folds=2),
        f"a product of {SMALL_PRODUCT} photos": options.fit(few),
        "--precision bf16": options.fit(precision="bf16"),
    }
    for what, request in requests.items():
        start = time.perf_counter()
        try:
            record = fit_request(request)
        except Exception as error:
            yield Finding("", what, passed=False, note=reason(error))
            continue
        options.wait()
        yield Finding("", what, time.perf_counter() - start, "s", passed=True)
        if what == "plain":
            store.save(record.to("cpu"), options.folder / "model.safetensors")


def scores(options: Options) -> Iterator[Finding]:
    """The scores of the device beside those of the CPU, of the model that was fitted on the device."""
    path = options.folder / "model.safetensors"

    def on(device: str) -> tuple[list[float], float]:
        scorer = TorchScorer(store.load(path).to(device))
        start = time.perf_counter()
        found = [one.score for one in predict(scorer, options.incoming, PredictOptions()) if one.score is not None]
        return found, len(found) / (time.perf_counter() - start)

    expected, _ = on("cpu")
    found, rate = on(options.device)
    yield Finding(
        "", "largest difference from the CPU", _apart(found, expected), passed=_apart(found, expected) < SCORES_AGREE
    )
    yield Finding("", "photos a second, the first ones among them", rate)
    if options.on_gpu:
        with with_tf32():
            found, _ = on(options.device)
        yield Finding("", "largest difference with TF32", _apart(found, expected))


def _apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference of a score, relative to it."""
    if len(found) != len(expected) or not expected:
        raise MambaADError(f"{len(found)} of {len(expected)} photos have a score")
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


@contextmanager
def with_tf32() -> Iterator[None]:
    """As PyTorch computes if it is told nothing: convolutions, and here products too, in TF32."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with patch.object(precision, "_may_round", lambda device: False):
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def folded_encoder(options: Options) -> Iterator[Finding]:
    """Whether the default encoder with folded batch norms gives the same features, so that it is used."""
    encoder = pretrained_encoder(DEFAULT, (4, 8, 16)).to(options.device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = for_inference(encoder)
    yield Finding(
        "", "batch norms are folded", passed=fast is not encoder, note="; ".join(str(w.message) for w in caught)
    )


def training_steps(options: Options) -> Iterator[Finding]:
    """Time of a step of the default decoder from cached features, and how often it makes the CPU wait for the GPU."""
    channels, side, n = (24, 48, 120), 16 if options.quick else 64, 32
    stages = [torch.randn(n, side // s, side // s, c) for c, s in zip(channels, (1, 2, 4), strict=True)]
    features = Features([Group(stages, list(range(n)), [1] * n)], [Seen()] * n)
    detector = DETECTORS["mambaad"](list(channels), **PRESETS["small"].options).to(options.device)
    loop = TrainingLoop(detector, features, range(n), RECIPES["small"], RunOptions(device=options.device))
    detector.train()
    for _ in range(3):
        loop.advance()
    options.wait()
    steps = 3 if options.quick else 20
    start = time.perf_counter()
    for _ in range(steps):
        loop.advance()
    options.wait()
    yield Finding("", "a step of 8 images", (time.perf_counter() - start) / steps * 1e3, "ms")
    if options.on_gpu:
        yield Finding("", "waits for the GPU in a step", _waits(loop.advance))


def _waits(task: Callable[[], object]) -> float:
    """How often a call waits until the GPU is done, as PyTorch reports it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            task()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return float(sum("synchroniz" in str(one.message).lower() for one in caught))


def scans(options: Options) -> Iterator[Finding]:
    """The scan beside what the memory allows, and beside plain PyTorch on the same device."""
    triton = False
    if options.on_gpu:
        from mambaad_cli.model.kernels.selective_scan_cuda import backends, chosen

        states = backends()
        triton = states["triton"] == "available"
        for name, state in states.items():
            yield Finding("", name, note=state)
        yield Finding("", "used", note=chosen(torch.device(options.device, torch.cuda.current_device())))
    bandwidth = bytes_a_second(options)
    yield Finding("", "bandwidth of a copy", bandwidth / 1e9, "GB/s")
    for name, sizes in (SMALL_SCANS if options.quick else SCANS).items():
        tensors = [tensor.to(options.device) for tensor in scan_inputs(*sizes)]
        for finding in (*_scan(tensors, bandwidth, options), *(_triton_forms(tensors, options) if triton else ())):
            yield finding._replace(what=f"{name}: {finding.what}")


def _scan(tensors: list[Tensor], bandwidth: float, options: Options) -> Iterator[Finding]:
    """One scan, forward and backward."""
    with torch.inference_mode():
        y, expected = selective_scan(*tensors), plain_scan.chunked_scan(*tensors)
        apart = float((y - expected).abs().max() / expected.abs().max())
        ours = seconds(lambda: selective_scan(*tensors), options)
        plain = seconds(lambda: plain_scan.chunked_scan(*tensors), options)
    share = scan_bytes(tensors, y) / ours / bandwidth
    note = f"{share:.1%} of the bandwidth, {plain / ours:.1f} times as fast as plain PyTorch, off by {apart:.0e}"
    yield Finding("", "forward", ours * 1e3, "ms", apart < SCANS_AGREE, note)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:-1]]
    backward = seconds(lambda: _forward_and_backward(leaves, tensors[-1]), options)
    yield Finding("", "forward and backward", backward * 1e3, "ms")


def _triton_forms(tensors: list[Tensor], options: Options) -> list[Finding]:
    """The Triton scan in one pass and in three, whichever of them is taken for such a batch."""
    from mambaad_cli.model.kernels import triton_scan

    findings = []
    with torch.inference_mode(), torch.cuda.device_of(tensors[0]):
        expected = plain_scan.chunked_scan(*tensors)
        for name, scan in triton_scan.FORMS.items():
            apart = float((scan(*tensors) - expected).abs().max() / expected.abs().max())
            ms = seconds(partial(scan, *tensors), options) * 1e3
            findings.append(Finding("", f"Triton, {name}", ms, "ms", apart < SCANS_AGREE, f"off by {apart:.0e}"))
    return findings


def _forward_and_backward(leaves: list[Tensor], order: Tensor) -> None:
    y = selective_scan(*[*leaves, order])
    torch.autograd.grad(y, leaves, y)


def scan_inputs(b: int, side: int, k: int, d: int, n: int, r: int) -> list[Tensor]:
    """Random inputs of a scan over a grid of side × side positions."""
    random, l = torch.Generator().manual_seed(0), side * side
    shapes = ((b, l, d), (b, l, k, r + 2 * n), (k, d, r), (k, d))
    u, x, weight, bias = (torch.randn(shape, generator=random) for shape in shapes)
    A = -torch.arange(1.0, n + 1).expand(k, d, n).contiguous()
    order = torch.from_numpy(directions("hilbert", side, side, k).copy())
    return [u, x, 0.1 * weight, 0.1 * bias - 4, A, torch.ones(k, d), order]


def scan_bytes(inputs: Sequence[Tensor], y: Tensor) -> int:
    """What a scan reads and writes at least: each input once, and y. What ours keeps between its kernels comes on top.

    >>> scan_bytes([torch.zeros(2, 3)], torch.zeros(4))
    40
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, y))


def bytes_a_second(options: Options) -> float:
    """What a copy of a large tensor reads and writes in a second."""
    source = torch.zeros(2**20 if options.quick else 2**28 if options.on_gpu else 2**25, device=options.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds(lambda: target.copy_(source), options)


def seconds(task: Callable[[], object], options: Options, rounds: int = 9) -> float:
    """The median time of a call; the first ones warm up."""
    times = []
    for number in range(rounds + 2):
        options.wait()
        start = time.perf_counter()
        task()
        options.wait()
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


CHECKS: dict[str, Check] = {
    "tests": tests_of_the_scan,
    "fit": fits,
    "scores": scores,
    "encoder": folded_encoder,
    "training": training_steps,
    "scan": scans,
}

if __name__ == "__main__":
    main()
