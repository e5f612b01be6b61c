"""The encoder's features of the training images, computed once and cached: in memory, or in a file.

Letters: n images, b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.augmentation import with_moved
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import WORKERS, Box, read_ahead
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.training.examples import box_of, pixels_of
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RunOptions

ENCODED = 8  # images that go through the encoder together
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Features:
    """The encoder's features of n images, in memory or in a file, fp32 or bf16.

    stages   (n · views, h, w, c) each: for each image first the image itself, then its moved views
    """

    def __init__(self, stages: list[Tensor], boxes: list[Box | None], views: int = 1) -> None:
        self.stages = stages
        self.boxes = boxes
        self.views = views

    def __getitem__(self, chosen: Tensor) -> list[Tensor]:
        """The features of some images: one (b, c, h, w) per stage, channels last in memory, float32."""
        return self._rows(chosen * self.views)

    def any_view(self, chosen: Tensor) -> list[Tensor]:
        """The same, for a random view of each image."""
        first = chosen * self.views
        return self._rows(first if self.views == 1 else first + torch.randint(self.views, first.shape))

    def batches(self, chosen: Sequence[int], device: str) -> Iterator[list[Tensor]]:
        """The features of some images, a batch at a time, on the device."""
        for start in range(0, len(chosen), ENCODED):
            yield [stage.to(device) for stage in self[torch.tensor(chosen[start : start + ENCODED])]]

    def and_those_of(self, others: "Features") -> "Features":
        """These features, then the others'."""
        pairs = zip(self.stages, others.stages, strict=True)
        stages = [torch.cat([own.to(other.dtype), other]) for own, other in pairs]
        return Features(stages, [*self.boxes, *others.boxes], others.views)

    def _rows(self, rows: Tensor) -> list[Tensor]:
        return [stage[rows].float().permute(0, 3, 1, 2) for stage in self.stages]


def features_of_files(
    model: FittedModel,
    files: Sequence[ImageFile],
    run: RunOptions,
    progress: Progress | None = None,
    views_for: Callable[[int], int] = lambda images: 1,
    flips: bool = False,
) -> tuple[Features, list[int]]:
    """Run the encoder once over the files; return its features and the indices of the files that could be read.

    `views_for` gives the number of views per image for a number of images. With `flips` moved views are mirrored too.
    """
    progress = progress or Progress()
    features, readable = _encode_files(model, files, run, progress, views_for(len(files)), flips)
    views = views_for(len(readable))
    if not readable or views == features.views:
        return features, readable
    # files that cannot be read must not change the result: the views are those for the readable ones alone
    features, _ = _encode_files(model, [files[i] for i in readable], run, Progress(), views, flips)
    return features, readable


def _encode_files(
    model: FittedModel, files: Sequence[ImageFile], run: RunOptions, progress: Progress, views: int, flips: bool
) -> tuple[Features, list[int]]:
    boxes: list[Box | None] = []
    readable: list[int] = []

    def pictures() -> Iterator[Tensor]:
        size, letterbox = model.settings.size, model.settings.letterbox
        for i, one in enumerate(read_ahead([file.path for file in files], size, letterbox, WORKERS)):
            progress.image()
            if isinstance(one, ImageError):
                progress.unreadable(one)
                continue
            readable.append(i)
            boxes.append(one.box)
            yield from with_moved(one.pixels, views, len(readable), flips)

    stages = encoded(model, pictures(), views * len(files), run)
    return Features(stages, boxes, views), readable


def features_of_examples(model: FittedModel, run: RunOptions, views: int = 1) -> Features:
    """Features of the images that the model carries: of each image itself and of `views` − 1 moved views."""
    size = model.settings.size
    pictures = (view for i, one in enumerate(model.examples) for view in with_moved(pixels_of(one, size), views, i))
    stages = encoded(model, pictures, views * len(model.examples), run)
    return Features(stages, [box_of(one, size) for one in model.examples], views)


@torch.inference_mode()
def encoded(model: FittedModel, pictures: Iterable[Tensor], most: int, run: RunOptions) -> list[Tensor]:
    """The encoder's features of at most `most` pictures (3, H, W): one (n, h, w, c) per stage, cached as `run` says."""
    stages: list[Tensor] = []
    folded, pictures, done = model.for_inference(), iter(pictures), 0
    while some := list(itertools.islice(pictures, ENCODED)):
        maps = [stage.permute(0, 2, 3, 1) for stage in folded.features(torch.stack(some).to(run.device))]
        stages = stages or _room(most, [tuple(found.shape[1:]) for found in maps], run)
        for stage, found in zip(stages, maps, strict=True):
            stage[done : done + len(found)] = found
        done += len(some)
    return [stage[:done] for stage in stages]


def _room(n: int, shapes: Sequence[tuple[int, ...]], run: RunOptions) -> list[Tensor]:
    """Uninitialised (n, h, w, c) tensors: in memory, or in an unnamed temporary file if they are large."""
    dtype, sizes = DTYPES[run.cache_dtype], [n * math.prod(shape) for shape in shapes]
    needed = dtype.itemsize * sum(sizes)
    if needed <= run.cache_memory:
        return [torch.empty(n, *shape, dtype=dtype) for shape in shapes]
    folder = tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):  # if the disk fills up under a mapping, the process is killed
        raise MambaADError(
            f"the features take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: set TMPDIR to "
            "a larger disk, or give --cache-dtype bf16 or --cache-memory"
        )
    return [_mapped(size, dtype).view(n, *shape) for size, shape in zip(sizes, shapes, strict=True)]


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    handle, path = tempfile.mkstemp(prefix="mambaad-")
    os.close(handle)
    try:
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    finally:
        Path(path).unlink()  # the mapping keeps the data until the process ends
