"""python -m mambaad_cli.benchmark.profile_score: what scoring files costs beside the bare model, and its memory.

Throughput is a ratio of times measured in turn (A B A B …), the median over rounds with its range. With `--images` the
memory of a run over so many files, on a tiny network, is printed instead, from the first thousand to the last.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input, read_ahead
from mambaad_cli.inspection import model_file as modelfile
from mambaad_cli.inspection import rows as report
from mambaad_cli.inspection.fitted_model import FittedModel, new_model
from mambaad_cli.inspection.predict import BATCH, Prediction, predict
from mambaad_cli.model.encoder import build_encoder, for_inference
from mambaad_cli.model.settings import PRESETS, Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="images to score; else made-up JPEG photos")
    parser.add_argument("--model", type=Path, help="a model file; else the default preset, untrained")
    parser.add_argument("--side", type=int, default=512, help="of made-up photos, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="measure memory over so many files instead")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        files = images.find([args.folder]) if args.folder else photos(Path(folder), 32, args.side)
        if args.images and args.images < 1000:
            parser.error("--images: at least 1000")
        if args.images:
            memory(files, args.images)
        else:
            throughput(modelfile.load(args.model) if args.model else untrained("small"), files, args.rounds)


def photos(folder: Path, count: int, side: int) -> list[ImageFile]:
    """Made-up JPEG photos: smooth colours with grain, about as many bytes as a camera's."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side]
    for i in range(count):
        waves = [np.sin(x / rng.uniform(9, 90) + y / rng.uniform(9, 90)) for _ in range(3)]
        grain = rng.normal(0, 6, (side, side, 1))
        images.write(folder / f"{i}.jpg", (127 + 90 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))
    return images.find([folder])


def untrained(preset: str) -> FittedModel:
    """A model of random weights: they cost the same as trained ones."""
    model = new_model(PRESETS[preset])
    model.detector.eval()
    return model


def throughput(model: FittedModel, files: Sequence[ImageFile], rounds: int) -> None:
    """Print the time to the first score, and images/s of `score` over those of the bare model on the same batches."""
    inputs = [one for one in read_ahead([file.path for file in files], model.settings.size) if isinstance(one, Input)]
    batches = [torch.stack([one.pixels for one in inputs[i : i + BATCH]]) for i in range(0, len(inputs), BATCH)]
    folded = for_inference(model.encoder)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.maps_of(folded(batch), model.settings.size).amax((1, 2))

    def score() -> None:
        for _ in predict(model, files):
            pass

    first = min(seconds(lambda: next(predict(model, files))) for _ in range(3))
    times = [(seconds(bare), seconds(score)) for _ in range(rounds + 1)][1:]  # the first warms up
    ratios = [below / above for below, above in times]
    rates = [len(inputs) / statistics.median(column) for column in zip(*times, strict=True)]
    print(f"first score after {first:.2f} s")
    print(f"bare model {rates[0]:.1f} images/s, score {rates[1]:.1f} images/s")
    print(f"score / bare model: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


def memory(files: Sequence[ImageFile], count: int) -> None:
    """Print this process's memory while `count` files, the given ones again and again, are scored to CSV."""
    settings = Settings(encoder="test_resnet", size=(64, 64), options={"depths": (1, 1, 1, 1), "directions": 2})
    model = new_model(settings, build_encoder("test_resnet", (4, 8, 16)))
    model.detector.eval()
    many = [files[i % len(files)] for i in range(count)]
    sizes: list[float] = []

    def watched() -> Iterator[Prediction]:
        for i, one in enumerate(predict(model, many), 1):
            if i % 1000 == 0:
                sizes.append(resident())
                print(f"{i} images: {sizes[-1]:.0f} MB", file=sys.stderr, flush=True)
            yield one

    report.write_rows(watched(), Path(os.devnull), as_json=False)
    print(f"{count} images: {sizes[0]:.0f} MB after 1000, at most {max(sizes):.0f} MB, {sizes[-1]:.0f} MB at the end")


def resident() -> float:
    """This process's memory in MB now, not at its peak (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
