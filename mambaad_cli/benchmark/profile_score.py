"""python -m mambaad_cli.benchmark.profile_score: what scoring files costs beside the bare model, and its memory.

Throughput is a ratio of times measured in turn (A B A B …), the median over rounds with its range: of the bare model,
of `score`, and of reading alone, with JPEGs decoded smaller where that is enough and decoded whole. Then the time of
`mambaad score` of one image from a cold start. Options make up
photos as large as a camera's: `--photos 4000x3000`, or `--photos 2448x2048 --format png`. With `--images` the
memory of a run over that number of files, on a tiny network, is printed instead, from the first thousand to the last.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from mambaad_cli.benchmark.detectors import maps_of, remembering_noise
from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input, read_ahead
from mambaad_cli.inspection import rows, store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import BATCH, Prediction
from mambaad_cli.inspection.torch_scorer import TorchScorer, inference_network
from mambaad_cli.model.encoder import build_encoder
from mambaad_cli.model.settings import PRESETS, Settings

FULL_SIZE = (10**6, 10**6)  # pixels of a model that needs every JPEG decoded at full size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="images to score; else made-up JPEG photos")
    parser.add_argument("--model", type=Path, help="a model file; else the default preset, untrained")
    parser.add_argument("--photos", type=parse_size, default=(512, 512), help="size of made-up photos: 4000x3000")
    parser.add_argument("--format", choices=("jpg", "png", "bmp"), default="jpg", help="of made-up photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="measure memory over this number of files instead")
    args = parser.parse_args()
    say_backend()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        files = images.find([args.folder]) if args.folder else photos(Path(folder), 32, args.photos, args.format)
        if args.images and args.images < 1000:
            parser.error("--images: at least 1000")
        if args.images:
            memory(files, args.images)
        else:
            record = store.load(args.model) if args.model else untrained()
            throughput(record, files, args.rounds)
            cold_start(record, files[0], Path(folder), args.rounds)


def parse_size(text: str) -> tuple[int, int]:
    """
    >>> parse_size("4000x3000")
    (3000, 4000)
    """
    width, height = (int(side) for side in text.split("x"))
    return height, width


def photos(folder: Path, count: int, size: tuple[int, int], kind: str) -> list[ImageFile]:
    """Made-up photos: smooth colours with grain, about as many bytes as a camera's; few large ones, again and again."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    made = min(count, max(4, 2**25 // (size[0] * size[1])))
    for i in range(made):
        waves = [np.sin(x / rng.uniform(9, 90) + y / rng.uniform(9, 90)) for _ in range(3)]
        grain = rng.normal(0, 6, (*size, 1))
        images.write(folder / f"{i}.{kind}", (127 + 90 * np.stack(waves, -1) + grain).clip(0, 255).astype(np.uint8))
    files = images.find([folder])
    return [files[i % made] for i in range(count)]


def untrained() -> ModelRecord:
    """The default preset with random weights and a memory of random images: they cost the same as trained ones."""
    network = new_network(PRESETS["small"])
    network.detector.eval()
    return remembering_noise(network)


def throughput(record: ModelRecord, files: Sequence[ImageFile], rounds: int) -> None:
    """Print the time to the first score, and images/s of `score` over those of the bare model on the same batches."""
    scorer = TorchScorer(record)
    paths, wanted = [file.path for file in files], scorer.preparation.wanted(next(iter(record.products)))
    inputs = [image for image in read_ahead(paths, wanted) if isinstance(image, Input)]
    batches = [torch.stack([image.pixels for image in inputs[i : i + BATCH]]) for i in range(0, len(inputs), BATCH)]
    maps = maps_of(inference_network(record.network, {}), record)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                maps(batch).amax((1, 2))

    def score() -> None:
        for _ in predict(scorer, files):
            pass

    def read() -> None:
        for _ in read_ahead(paths, wanted):
            pass

    def read_whole() -> None:
        for _ in read_ahead(paths, wanted._replace(pictures=True, largest=FULL_SIZE)):
            pass

    first = min(seconds(lambda: next(predict(scorer, files))) for _ in range(3))
    tasks = {"bare model": bare, "score": score, "reading": read, "reading whole": read_whole}
    times = [[seconds(task) for task in tasks.values()] for _ in range(rounds + 1)][1:]  # the first warms up
    print(f"first score after {first:.2f} s; images/s, and in units of the bare model's:")
    for name, column in zip(tasks, zip(*times, strict=True), strict=True):
        ratios = [row[0] / task_time for row, task_time in zip(times, column, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"{name:14}{len(inputs) / statistics.median(column):8.1f}{spread:>20}")


def cold_start(record: ModelRecord, file: ImageFile, folder: Path, rounds: int) -> None:
    """Print the seconds of `mambaad score` of one image in a new process, and of importing torch alone."""
    store.save(record, folder / "model.safetensors")
    score = ["-m", "mambaad_cli", "score", str(file.path), "--model", str(folder / "model.safetensors"), "--csv"]
    imports = {"import torch": ["-c", "import torch"], "mambaad --version": ["-m", "mambaad_cli", "--version"]}
    for name, arguments in {"mambaad score": score, **imports}.items():

        def run(arguments: Sequence[str] = tuple(arguments)) -> None:
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

        print(f"{name}, from a cold start: {min(seconds(run) for _ in range(rounds)):.2f} s")


def memory(files: Sequence[ImageFile], count: int) -> None:
    """Print the memory of this process while `count` files, `files` again and again, are scored to CSV."""
    settings = Settings(encoder="test_resnet", size=(64, 64), options={"depths": (1, 1, 1, 1), "directions": 2})
    network = new_network(settings, build_encoder("test_resnet", (4, 8, 16)))
    network.detector.eval()
    scorer = TorchScorer(ModelRecord(network))
    many = [files[i % len(files)] for i in range(count)]
    sizes: list[float] = []

    def watched() -> Iterator[Prediction]:
        for i, prediction in enumerate(predict(scorer, many), 1):
            if i % 1000 == 0:
                sizes.append(resident())
                print(f"{i} images: {sizes[-1]:.0f} MB", file=sys.stderr, flush=True)
            yield prediction

    rows.write_rows(watched(), Path(os.devnull), as_json=False)
    print(f"{count} images: {sizes[0]:.0f} MB after 1000, at most {max(sizes):.0f} MB, {sizes[-1]:.0f} MB at the end")


def resident() -> float:
    """This process's memory in MB now, not at its peak."""
    return float(psutil.Process().memory_info().rss) / 1e6


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
