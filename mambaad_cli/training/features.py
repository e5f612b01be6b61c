"""The encoder's features of the training images, computed once and cached: in memory, or in a file.

Letters: n images, b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.augmentation import with_moved
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import Box, at_size, read_ahead, within
from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.training.examples import box_of, inside_of, pixels_of
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RunOptions

ENCODED = 8  # images that go through the encoder together
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Views(NamedTuple):
    """How many views of each image are learnt: itself and moved ones, which may be mirrored too."""

    number: int = 1
    flips: bool = False
    turned: frozenset[str] = frozenset()  # classes whose views are rotated by any angle


class Group(NamedTuple):
    """Features of the images that the model sees at one size.

    stages   (m · views, h, w, c) each: of each of m images itself, then of its moved views
    """

    stages: list[Tensor]
    members: list[int]  # the images' numbers, in the order of the stages


class Features:
    """The encoder's features of n images, in memory or in a file, fp32 or bf16: a group for each size."""

    def __init__(
        self,
        groups: Sequence[Group],
        boxes: Sequence[Box | None],
        views: int = 1,
        insides: Sequence[Tensor | None] = (),
        photos: Sequence[PhotoStatistics] = (),
    ) -> None:
        self.groups = [group for group in groups if group.members]
        self.boxes = list(boxes)
        # (H, W) bool each: their regions of interest, as large as their maps
        self.insides = list(insides) or [None] * len(self.boxes)
        self.photos = list(photos)  # of each image, where its file was read
        self.views = views
        self.group_of = {i: number for number, group in enumerate(self.groups) for i in group.members}
        self._row_of = {i: row for group in self.groups for row, i in enumerate(group.members)}

    def __getitem__(self, chosen: Tensor) -> list[Tensor]:
        """Those of some images of one size: one (b, c, h, w) a stage, channels last in memory, float32."""
        return self._rows(chosen, torch.zeros_like(chosen))

    def any_view(self, chosen: Tensor) -> list[Tensor]:
        """The same, of a view of each at random."""
        return self._rows(
            chosen, torch.randint(self.views, chosen.shape) if self.views > 1 else torch.zeros_like(chosen)
        )

    def all_views(self, image: int) -> list[Tensor]:
        """Those of one image and its moved views: one (views, c, h, w) a stage."""
        return self._rows(torch.full((self.views,), image), torch.arange(self.views))

    def batches(self, chosen: Sequence[int], device: str) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Some images and their features, a batch of one size at a time, on the device."""
        for number in dict.fromkeys(self.group_of[i] for i in chosen):
            own = [i for i in chosen if self.group_of[i] == number]
            for start in range(0, len(own), ENCODED):
                batch = own[start : start + ENCODED]
                yield batch, [stage.to(device) for stage in self[torch.tensor(batch)]]

    def and_those_of(self, others: "Features") -> "Features":
        """These features, then the others', whose images are numbered on; groups of the same grids become one."""
        first = len(self.boxes)
        groups = {_grid(group): group for group in self.groups}
        for group in others.groups:
            members = [first + i for i in group.members]
            known = groups.get(_grid(group))
            if known is None:
                groups[_grid(group)] = Group(group.stages, members)
            else:
                pairs = zip(known.stages, group.stages, strict=True)
                stages = [torch.cat([own.to(other.dtype), other]) for own, other in pairs]
                groups[_grid(group)] = Group(stages, known.members + members)
        boxes, insides = [*self.boxes, *others.boxes], [*self.insides, *others.insides]
        return Features(list(groups.values()), boxes, others.views, insides, [*self.photos, *others.photos])

    def inside(self, chosen: Sequence[int], size: tuple[int, int]) -> Tensor | None:
        """The regions of interest of some images of one size as (b, *size) of bool; None where all of them counts."""
        found = [self.insides[i] for i in chosen]
        if all(one is None for one in found):
            return None
        whole = torch.ones(size, dtype=torch.bool)
        return torch.stack([whole if one is None else at_size(one, size) for one in found])

    def _rows(self, chosen: Tensor, view: Tensor) -> list[Tensor]:
        images = chosen.tolist()
        group = self.groups[self.group_of[images[0]]]
        rows = torch.tensor([self._row_of[i] for i in images]) * self.views + view
        return [stage[rows].float().permute(0, 3, 1, 2) for stage in group.stages]


def _grid(group: Group) -> tuple[int, ...]:
    return tuple(side for stage in group.stages for side in stage.shape[1:3])


def features_of_files(
    model: FittedModel,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    run: RunOptions,
    progress: Progress | None = None,
    views_for: Callable[[int], Views] = lambda images: Views(),
) -> tuple[Features, list[int]]:
    """Run the encoder once over the files, each at the size of its class: its features, and the indices of the files
    that could be read.

    Each image has the views that `views_for` says for that many images.
    """
    progress = progress or Progress()
    features, readable = _encode_files(model, files, classes, run, progress, views_for(len(files)))
    views = views_for(len(readable))
    if not readable or views.number == features.views:
        return features, readable
    # files that cannot be read leave no trace: the views are those of the readable ones alone
    files, classes = [files[i] for i in readable], [classes[i] for i in readable]
    return _encode_files(model, files, classes, run, Progress(), views)[0], readable


def _encode_files(
    model: FittedModel,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    run: RunOptions,
    progress: Progress,
    views: Views,
) -> tuple[Features, list[int]]:
    sizes = [model.size_of(name) for name in classes]
    encoders = {size: _Encoding(model, views.number * count, run) for size, count in Counter(sizes).items()}
    boxes: list[Box | None] = []
    insides: list[Tensor | None] = []
    photos: list[PhotoStatistics] = []
    readable: list[int] = []
    paths = [file.path for file in files]
    for i, one in enumerate(read_ahead(paths, model.wanted(lambda i, shape: sizes[i], classes))):
        progress.image()
        if isinstance(one, ImageError):
            progress.unreadable(one)
            continue
        turned = classes[i] in views.turned
        own = with_moved(one.pixels, views.number, len(readable) + 1, views.flips, turned)
        encoders[sizes[i]].add(own, len(readable))
        readable.append(i)
        boxes.append(one.box)
        insides.append(None if one.inside is None else at_size(one.inside, model.map_size(sizes[i])))
        photos.append(photo_statistics(within(one.pixels, one.box)))
    groups = [encoder.group() for encoder in encoders.values()]
    return Features(groups, boxes, views.number, insides, photos), readable


def features_of_examples(model: FittedModel, run: RunOptions, views: Views) -> Features:
    """Features of the images that the model carries, and of moved views of them."""
    sizes = [model.size_of(one.class_name) for one in model.examples]
    encoders = {size: _Encoding(model, views.number * count, run) for size, count in Counter(sizes).items()}
    boxes = [box_of(one, size) for one, size in zip(model.examples, sizes, strict=True)]
    insides = [inside_of(one, model) for one in model.examples]
    photos: list[PhotoStatistics] = []
    for i, (one, size) in enumerate(zip(model.examples, sizes, strict=True)):
        turned, pixels = one.class_name in views.turned, pixels_of(one, size)
        encoders[size].add(with_moved(pixels, views.number, i, views.flips, turned), i)
        photos.append(photo_statistics(within(pixels, boxes[i])))
    return Features([encoder.group() for encoder in encoders.values()], boxes, views.number, insides, photos)


def features_of_pixels(model: FittedModel, pictures: Iterable[Tensor], most: int, run: RunOptions) -> Features:
    """Features of at most so many pictures (3, H, W) of one size."""
    encoding = _Encoding(model, most, run)
    count = 0
    for picture in pictures:
        encoding.add([picture], count)
        count += 1
    return Features([encoding.group()], [None] * count)


class _Encoding:
    """Pictures of one size on their way through the encoder, a few at a time, into a cache for at most so many."""

    def __init__(self, model: FittedModel, most: int, run: RunOptions) -> None:
        self.model, self.most, self.run = model.for_inference(), most, run
        self.waiting: list[Tensor] = []
        self.members: list[int] = []
        self.stages: list[Tensor] = []
        self.done = 0

    def add(self, pictures: Iterable[Tensor], member: int) -> None:
        """The views (3, H, W) of one image."""
        self.members.append(member)
        for picture in pictures:
            self.waiting.append(picture)
            if len(self.waiting) == ENCODED:
                self._encode()

    def group(self) -> Group:
        """What was encoded."""
        if self.waiting:
            self._encode()
        return Group([stage[: self.done] for stage in self.stages], self.members)

    @torch.inference_mode()
    def _encode(self) -> None:
        pixels = torch.stack(self.waiting).to(self.run.device)
        maps = [stage.permute(0, 2, 3, 1) for stage in self.model.features(pixels)]
        self.stages = self.stages or _room(self.most, [tuple(found.shape[1:]) for found in maps], self.run)
        for stage, found in zip(self.stages, maps, strict=True):
            stage[self.done : self.done + len(found)] = found
        self.done += len(self.waiting)
        self.waiting = []


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
