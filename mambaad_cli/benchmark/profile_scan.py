"""python -m mambaad_cli.benchmark.profile_scan: the selective scan and the network beside a matrix product, in one run.

Every figure is a ratio of times measured in turn (A B A B …), the median over rounds with its 10–90 % range, so that it
means something on a machine that is not quiet.

With --profile: the operators in which both presets spend a pass from images to maps, and their decoders a training
step.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mambaad_cli.benchmark.detectors import maps_of
from mambaad_cli.benchmark.flops import count_flops
from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.benchmark.passes import scoring_pass
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.model import mambaad
from mambaad_cli.model.encoder import build_encoder, for_inference
from mambaad_cli.model.kernels import plain_scan
from mambaad_cli.model.kernels import selective_scan as scan
from mambaad_cli.model.mambaad import MambaAD
from mambaad_cli.model.scan_orders import directions
from mambaad_cli.model.settings import PRESETS

SMALL = (24, 48, 120)  # channels of the default encoder
STAGES = ((512, 8, 3), (256, 16, 4), (128, 32, 6), (64, 64, 3))  # the paper's at 256²: channels, side, blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="time by operator instead of ratios")
    args = parser.parse_args()
    say_backend()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if args.profile:
        for preset, channels, batch in (("small", SMALL, 8), ("paper", (64, 128, 256), 2)):
            forward, step = decoder_tasks(preset, channels, batch)
            operators(f"{preset}, batch {batch}: images to maps", whole_pass(preset, batch))
            operators(f"{preset}, batch {batch}: decoder, forward", forward)
            operators(f"{preset}, batch {batch}: decoder, training step", step)
        return
    product = matrix_product()
    stages = list(paper_scans())
    show("scan forward, paper's 16 at 256², batch 1 / matrix product", lambda: scan_forward(stages), product)
    show("scan forward + backward / matrix product", lambda: scan_backward(stages), product)
    with torch.inference_mode():
        network()
    training(product)


def show(name: str, task: Callable[[], object], reference: Callable[[], object], rounds: int = 9) -> float:
    """Print task's time over reference's; returns the median."""
    ratios, times = [], []
    for _ in range(rounds + 1):  # the first warms up
        below, above = seconds(reference), seconds(task)
        ratios.append(above / below)
        times.append(above)
    deciles = statistics.quantiles(ratios[1:], n=10)
    median = statistics.median(ratios[1:])
    time_of = statistics.median(times[1:]) * 1e3
    print(f"{name}: {median:.2f} ({deciles[0]:.2f}–{deciles[-1]:.2f}), {time_of:.1f} ms", flush=True)
    return median


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def matrix_product() -> Callable[[], Tensor]:
    """One float32 product of 2048 × 2048 matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: a @ b


def paper_scans() -> Iterator[tuple[list[Tensor], int]]:
    """Random inputs of each stage's scan, and how many of them there are."""
    for c, side, blocks in STAGES:
        l, k, d, n, r = side * side, 8, 2 * c, 16, c // 16
        step = torch.exp(torch.rand(k, d) * 4.6 - 6.9)
        A = -torch.arange(1.0, n + 1).expand(k, d, n).contiguous()
        tensors = [torch.randn(1, l, d), torch.randn(1, l, k, r + 2 * n), 0.1 * torch.randn(k, d, r) * r**-0.5]
        tensors += [torch.log(torch.expm1(step)), A, torch.ones(k, d)]
        yield [*tensors, torch.from_numpy(directions("hilbert", side, side, k).copy())], blocks


def scan_forward(stages: list[tuple[list[Tensor], int]]) -> None:
    with torch.no_grad():
        for tensors, blocks in stages:
            for _ in range(blocks):
                scan.selective_scan(*tensors)


def scan_backward(stages: list[tuple[list[Tensor], int]]) -> None:
    for tensors, blocks in stages:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[:-1]]
        for _ in range(blocks):
            y = scan.selective_scan(*[*leaves, tensors[-1]])
            torch.autograd.grad(y, leaves, y)


def network() -> None:
    """The paper's network beside its encoder alone, per pixel at two sizes, and beside the plain recurrence."""
    encoder = for_inference(build_encoder("resnet34", (4, 8, 16)))
    detector = MambaAD(encoder.channels, **PRESETS["paper"].options).eval()
    single, batch_of_8, large = (torch.rand(n, 3, side, side) for n, side in ((1, 256), (8, 256), (1, 1024)))

    def whole(images: Tensor) -> list[Tensor]:
        return detector(encoder(images))

    def plain() -> None:
        with patch.object(mambaad, "selective_scan", plain_scan.reference_scan):
            whole(single)

    share = count_flops(lambda: encoder(single))[0] / count_flops(lambda: whole(single))[0]
    ratio = show("paper, batch 8 at 256² / its encoder", lambda: whole(batch_of_8), lambda: encoder(batch_of_8), 5)
    print(f"  per multiply-add, at the encoder's rate: {ratio * share:.2f}")
    ratio = show("paper at 1024² / batch 8 at 256²", lambda: whole(large), lambda: whole(batch_of_8), 3)
    print(f"  per pixel: {ratio / 2:.2f}")
    show("paper, one image at 256², plain recurrence / ours", plain, lambda: whole(single), 3)


def training(product: Callable[[], Tensor]) -> None:
    """A training step of the default decoder on cached features, beside a matrix product and its forward pass."""
    forward, step = decoder_tasks("small", SMALL, 8)
    show("training step of the default decoder, batch 8 / matrix product", step, product, 5)
    show("training step of the default decoder, batch 8 / its forward pass", step, forward, 5)
    print(f"  {8 / seconds(step):.1f} images/s in training")


def decoder_tasks(
    preset: str, channels: tuple[int, int, int], batch: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A forward pass and a training step of a preset's decoder on the features of 256 × 256 pixels."""
    detector = MambaAD(channels, **PRESETS[preset].options)
    features = [torch.randn(batch, s, s, c).permute(0, 3, 1, 2) for c, s in zip(channels, (64, 32, 16), strict=True)]
    optimizer = detector.optimizer()

    def forward() -> None:
        with torch.inference_mode():
            detector.eval()(features)

    def step() -> None:
        loss = detector.train().loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return forward, step


def whole_pass(preset: str, batch: int) -> Callable[[], Tensor]:
    """Encoder, decoder and anomaly map of images of 256 × 256 pixels, with random weights."""
    network = new_network(replace(PRESETS[preset], own_aspect=False, detail=1.0))
    network.detector.eval()
    network = network.with_encoder(for_inference(network.encoder))
    return scoring_pass(maps_of(network, ModelRecord(network)), network.settings.size, batch)


def operators(name: str, task: Callable[[], object], least: float = 0.01) -> None:
    """Print the operators that take at least this share of the task's time, what they call left out."""
    task()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        task()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"{name}, {total / 1e3:.0f} ms")
    for row in rows:
        if row.self_cpu_time_total >= least * total:
            share, milliseconds = row.self_cpu_time_total / total, row.self_cpu_time_total / 1e3
            print(f"  {share:6.1%} {milliseconds:8.1f} ms {row.count:5d} × {row.key}")


if __name__ == "__main__":
    main()
