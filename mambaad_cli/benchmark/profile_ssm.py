"""python -m mambaad_cli.benchmark.profile_ssm: the decoder's two recurrences, in turns: the selective scan (mamba) and
gated linear attention (gla).

It measures the default decoder on features of 256 × 256 pixels: a pass and a training step in PyTorch, with the
compiled kernels and without them, and a pass in ONNX Runtime, as in an exported file.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.benchmark.profile_scan import seconds
from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.mambaad import BLOCKS, MambaAD
from mambaad_cli.model.settings import PRESETS

CHANNELS, SIDES = (24, 40, 112), (64, 32, 16)  # of the default encoder at 256 × 256 pixels
Task = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="turns of each, of which the median counts")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch, beside single ones")
    args = parser.parse_args()
    say_backend()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':44}{'mamba':>9}{'gla':>9}{'gla/mamba':>11}")
    for name, tasks in measured(args.batch):
        times = in_turns(tasks, args.rounds)
        print(f"{name:44}{times['mamba']:9.1f}{times['gla']:9.1f}{times['gla'] / times['mamba']:11.2f}", flush=True)


def measured(batch: int) -> Iterator[tuple[str, Mapping[str, Task]]]:
    """What is measured, in milliseconds, and a task for each recurrence."""
    sizes = dict.fromkeys((1, batch))
    for kernels in (True, False):
        if kernels and cpu.kernels() is None:
            continue
        where = "PyTorch" if kernels else "PyTorch without kernels"
        for size in sizes:
            yield f"{where}, pass of {size}, ms", {ssm: forward(decoder(ssm), size, kernels) for ssm in BLOCKS}
        yield f"{where}, step of {batch}, ms", {ssm: step(decoder(ssm), batch, kernels) for ssm in BLOCKS}
    yield "ONNX Runtime, pass of 1, ms", {ssm: exported(decoder(ssm)) for ssm in BLOCKS}


def decoder(ssm: str) -> MambaAD:
    """The default one, with random weights."""
    torch.manual_seed(0)
    return MambaAD(CHANNELS, **PRESETS["small"].options | {"ssm": ssm})


def features(batch: int) -> list[Tensor]:
    """Random ones, (b, c, h, w) a stage, channels last in memory."""
    stages = zip(CHANNELS, SIDES, strict=True)
    return [torch.randn(batch, side, side, c).permute(0, 3, 1, 2) for c, side in stages]


def forward(detector: MambaAD, batch: int, kernels: bool) -> Task:
    seen = features(batch)
    detector.eval()

    def task() -> None:
        with torch.inference_mode(), _with(kernels):
            detector(seen)

    return task


def step(detector: MambaAD, batch: int, kernels: bool) -> Task:
    seen, optimizer = features(batch), detector.optimizer()
    detector.train()

    def task() -> None:
        with _with(kernels):
            loss = detector.loss(seen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return task


def exported(detector: MambaAD) -> Task:
    """A pass in ONNX Runtime; the graph is made as `mambaad export` makes it."""
    import onnxruntime

    from mambaad_cli.export.operators import OPSET, TRANSLATIONS

    seen = features(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector.eval()(seen)  # what is made once for each grid is a constant of the graph
        program = torch.onnx.export(
            _Decoder(detector), tuple(seen), dynamo=True, opset_version=OPSET, custom_translation_table=TRANSLATIONS,
            input_names=["fine", "middle", "coarse"], verbose=False,
        )  # fmt: skip
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = {one.name: stage.numpy() for one, stage in zip(session.get_inputs(), seen, strict=True)}
    return lambda: session.run(None, inputs)


class _Decoder(nn.Module):
    def __init__(self, detector: MambaAD) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> list[Tensor]:
        return self.detector([fine, middle, coarse])


def in_turns(tasks: Mapping[str, Task], rounds: int) -> dict[str, float]:
    """The median milliseconds of each task; the first turn of each warms up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            times[name].append(1e3 * seconds(task))
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def _with(kernels: bool) -> Any:
    """With the compiled kernels, or as on a machine without a C compiler."""
    return nullcontext() if kernels else patch.object(cpu, "kernels", lambda: None)


if __name__ == "__main__":
    main()
