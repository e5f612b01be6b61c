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
from mambaad_cli.recognition import Recognised

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
    verdict: str  # good, anomalous, unknown (like no product), uncalibrated or error
    error: str
    anomaly_map: np.ndarray | None = None  # (H, W) float32 of the image itself, where it was asked for
    picture: np.ndarray | None = None
    certainty: float | None = None  # 0 … 1 that it is this class, where that was recognised and not told


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
    folders say; what neither tells is recognised.
    """
    model = dataclasses.replace(model, encoder=fold_batch_norms(model.encoder))
    inputs = read_ahead([file.path for file in files], model.settings.size, model.settings.letterbox, workers, maps)
    pairs = zip(files, inputs, strict=True)
    while group := list(itertools.islice(pairs, batch)):
        told = [class_name or class_of(file, model) for file, _ in group]
        readable = [i for i, (_, one) in enumerate(group) if isinstance(one, Input)]
        pixels = [one for _, one in group if isinstance(one, Input)]
        results = iter(_run(model, pixels, [told[i] for i in readable], device))
        for (file, one), name in zip(group, told, strict=True):
            if isinstance(one, ImageError):
                yield Prediction(file, name, None, None, "error", one.reason)
                continue
            anomaly_map, look = next(results)
            certainty = None
            if not name and look is not None:
                name, certainty = look.name if look.known else "", look.certainty
            unknown = certainty is not None and not name
            score, threshold = float(anomaly_map.max()), None if unknown else model.threshold(name)
            if not math.isfinite(score):  # NaN exceeds no threshold, and must not pass for good
                yield Prediction(file, name, None, None, "error", "the model gives no finite score: fit it anew")
                continue
            if threshold is None:
                verdict = "unknown" if unknown else "uncalibrated"
            else:
                verdict = "anomalous" if exceeds(score, threshold) else "good"
            prediction = Prediction(file, name, score, threshold, verdict, "", certainty=certainty)
            yield prediction._replace(anomaly_map=anomaly_map.numpy(), picture=one.picture) if maps else prediction


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
def _run(
    model: Model, inputs: Sequence[Input], classes: Sequence[str], device: str
) -> list[tuple[Tensor, Recognised | None]]:
    """Of each input the anomaly map (H, W), cut to the image where that was letterboxed, and what it looks like."""
    if not inputs:
        return []
    stacked = torch.stack([one.pixels for one in inputs]).to(device)
    features = model.encoder(stacked)
    looks: list[Recognised | None] = [None] * len(inputs)
    if model.recogniser is not None and not all(classes):
        looks[:] = model.recognised(features)
        classes = [name or look.name for name, look in zip(classes, looks, strict=True) if look]
    maps = model.maps_of(features, (stacked.shape[2], stacked.shape[3]), classes).float().cpu()
    return [(within(one_map, one.box), look) for one, one_map, look in zip(inputs, maps, looks, strict=True)]


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
