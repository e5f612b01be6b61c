"""Images in, one Prediction each out, in order: decoded in worker threads while the model works.

Letters: b batch, H × W pixels of the model's input.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import images
from mambaad_cli.images import ImageError, ImageFile
from mambaad_cli.model.encoder import fold_batch_norms
from mambaad_cli.modelfile import Model

BATCH = 8
WORKERS = 2
Box = tuple[int, int, int, int]  # top, left, height, width


class Input(NamedTuple):
    """One image as the model takes it."""

    pixels: Tensor  # (3, H, W) in 0 … 1
    box: Box | None  # where the image itself lies in it, if it was letterboxed
    picture: np.ndarray | None  # (h, w, 3) as read, where it was asked for


class Prediction(NamedTuple):
    """What is known of one image. `score` is None exactly where there is an error."""

    file: ImageFile
    class_name: str
    score: float | None
    threshold: float | None
    verdict: str  # good, anomalous, uncalibrated or error
    error: str
    anomaly_map: np.ndarray | None = None  # (H, W) float32 of the image itself, where it was asked for
    picture: np.ndarray | None = None


def predict(
    model: Model,
    files: Sequence[ImageFile],
    *,
    class_name: str | None = None,
    batch: int = BATCH,
    workers: int = WORKERS,
    device: str = "cpu",
    maps: bool = False,
) -> Iterator[Prediction]:
    """Score files in their order, each on its own merits: an unreadable one gives a Prediction with its error.

    With `maps` a Prediction carries its anomaly map and the picture as read. `class_name` overrides what the files'
    folders say.
    """
    model = dataclasses.replace(model, encoder=fold_batch_norms(model.encoder))
    inputs = read_ahead([file.path for file in files], model.settings.size, model.settings.letterbox, workers, maps)
    pairs = zip(files, inputs, strict=True)
    while group := list(itertools.islice(pairs, batch)):
        readable = [one for _, one in group if isinstance(one, Input)]
        results = iter(list(_maps(model, readable, device)))
        for file, one in group:
            name = class_name or class_of(file, model)
            if isinstance(one, ImageError):
                yield Prediction(file, name, None, None, "error", one.reason)
                continue
            anomaly_map = next(results)
            score, threshold = float(anomaly_map.max()), model.threshold(name)
            if not math.isfinite(score):  # NaN exceeds no threshold, and must not pass for good
                yield Prediction(file, name, None, None, "error", "the model gives no finite score: fit it anew")
                continue
            verdict = "uncalibrated" if threshold is None else "anomalous" if exceeds(score, threshold) else "good"
            kept = (anomaly_map.numpy(), one.picture) if maps else ()
            yield Prediction(file, name, score, threshold, verdict, "", *kept)


def exceeds(score: float, threshold: float) -> bool:
    """Whether a score lies above, in the six digits that are printed: the seventh depends on the batch.

    >>> exceeds(3.0000001, 3.0), exceeds(3.0001, 3.0)
    (False, True)
    """
    return float(f"{score:.6g}") > float(f"{threshold:.6g}")


def class_of(file: ImageFile, model: Model) -> str:
    """The product of a file: a folder on its way that is named like one, or the only product there is."""
    known = list(model.trained_on)
    if len(known) == 1:
        return known[0]
    return next((part for part in reversed(file.path.absolute().parts[:-1]) if part in known), "")


@torch.inference_mode()
def _maps(model: Model, inputs: Sequence[Input], device: str) -> Iterator[Tensor]:
    """One anomaly map (H, W) an input, cut to the image where it was letterboxed."""
    if not inputs:
        return
    stacked = torch.stack([one.pixels for one in inputs]).to(device)
    for one, anomaly_map in zip(inputs, model.anomaly_maps(stacked).float().cpu(), strict=True):
        yield within(anomaly_map, one.box)


def within(anomaly_map: Tensor, box: Box | None) -> Tensor:
    """The part of a map (H, W) that lies on the image: padding is neither shown nor scored."""
    if box is None:
        return anomaly_map
    top, left, height, width = box
    return anomaly_map[top : top + height, left : left + width]


def read_ahead(
    paths: Iterable[Path],
    size: tuple[int, int],
    letterbox: bool = False,
    workers: int = WORKERS,
    pictures: bool = False,
) -> Iterator[Input | ImageError]:
    """Read and scale images in worker threads, a few ahead of whoever takes them, in the order given.

    A file that cannot be read comes out as its error. Memory holds what is ahead and no more.
    """

    def read(path: Path) -> Input | ImageError:
        try:
            picture = images.read(path)
        except ImageError as error:
            return error
        if letterbox:
            pixels, box = images.letterbox(picture, size)
            return Input(pixels, box, picture if pictures else None)
        return Input(images.resize(picture, size), None, picture if pictures else None)

    waiting: deque[Future[Input | ImageError]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for path in itertools.islice(remaining, 4 * workers + BATCH):
                waiting.append(pool.submit(read, path))
            while waiting:
                done = waiting.popleft().result()
                for path in itertools.islice(remaining, 1):
                    waiting.append(pool.submit(read, path))
                yield done
        finally:
            for future in waiting:
                future.cancel()
