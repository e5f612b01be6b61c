"""The encoder's features of the training images, computed once and cached: in memory, or in a file.

Letters: n images, b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
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

    def remembered(self, name: str) -> int:
        """How many views of an image of a class a memory remembers: the image alone, or all where they show the part as
        new photos may."""
        return self.number if self.flips or name in self.turned else 1


class Group(NamedTuple):
    """Features of the images that the model sees at one size.

    stages   (m · views, h, w, c) each: of each of m images itself, then of its moved views
    close    (r, h, w, c): what a close look sees of each image itself, then of the views that a memory remembers
    """

    stages: list[Tensor]
    members: list[int]  # the images' numbers, in the order of the stages
    remembered: list[int]  # views of each, itself among them, that a memory remembers
    close: Tensor | None = None  # where the model looks closely too

    @property
    def grid(self) -> tuple[int, ...]:
        """The sides of all maps."""
        maps = self.stages if self.close is None else [*self.stages, self.close]
        return tuple(side for one in maps for side in one.shape[1:3])

    def and_those_of(self, other: "Group", first: int) -> "Group":
        """These images, then the other's, whose numbers begin with `first`."""
        stages = [_joined(own, new) for own, new in zip(self.stages, other.stages, strict=True)]
        close = None if self.close is None or other.close is None else _joined(self.close, other.close)
        members = self.members + [first + i for i in other.members]
        return Group(stages, members, self.remembered + other.remembered, close)


def _joined(own: Tensor, new: Tensor) -> Tensor:
    return torch.cat([own.to(new.dtype), new])


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
        self._close_row_of: dict[int, int] = {}
        for group in self.groups:
            rows = accumulate(group.remembered, initial=0)
            self._close_row_of |= dict(zip(group.members, rows, strict=False))

    def __getitem__(self, chosen: Tensor) -> list[Tensor]:
        """Those of some images of one size: one (b, c, h, w) a stage, channels last in memory, float32."""
        return self._looks(chosen, torch.zeros_like(chosen))

    def any_view(self, chosen: Tensor) -> list[Tensor]:
        """The same for the decoder, of a view of each at random."""
        return self._rows(
            chosen, torch.randint(self.views, chosen.shape) if self.views > 1 else torch.zeros_like(chosen)
        )

    def remembered_views(self, image: int) -> list[Tensor]:
        """Those of one image and of its moved views that a memory remembers: one (v, c, h, w) a stage."""
        views = self.groups[self.group_of[image]].remembered[self._row_of[image]]
        return self._looks(torch.full((views,), image), torch.arange(views))

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
        groups = {group.grid: group for group in self.groups}
        for group in others.groups:
            known = groups.get(group.grid)
            if known is None:
                groups[group.grid] = group._replace(members=[first + i for i in group.members])
            else:
                groups[group.grid] = known.and_those_of(group, first)
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
        return [_of_rows(stage, rows) for stage in group.stages]

    def _looks(self, chosen: Tensor, view: Tensor) -> list[Tensor]:
        images, found = chosen.tolist(), self._rows(chosen, view)
        close = self.groups[self.group_of[images[0]]].close
        if close is None:
            return found
        return [*found, _of_rows(close, torch.tensor([self._close_row_of[i] for i in images]) + view)]


def _of_rows(stage: Tensor, rows: Tensor) -> Tensor:
    return stage[rows].float().permute(0, 3, 1, 2)


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
        encoders[sizes[i]].add(own, len(readable), views.remembered(classes[i]))
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
        moved = with_moved(pixels, views.number, i, views.flips, turned)
        encoders[size].add(moved, i, views.remembered(one.class_name))
        photos.append(photo_statistics(within(pixels, boxes[i])))
    return Features([encoder.group() for encoder in encoders.values()], boxes, views.number, insides, photos)


def features_of_pixels(
    model: FittedModel, pictures: Iterable[Tensor], most: int, run: RunOptions, for_memory: bool = True
) -> Features:
    """Features of at most so many pictures (3, H, W) of one size, or only what the decoder sees of them."""
    encoding = _Encoding(model, most, run)
    count = 0
    for picture in pictures:
        encoding.add([picture], count, int(for_memory))
        count += 1
    return Features([encoding.group()], [None] * count)


class _Encoding:
    """Pictures of one size on their way through the encoder, a few at a time, into a cache for at most so many."""

    def __init__(self, model: FittedModel, most: int, run: RunOptions) -> None:
        model = model.for_inference()
        self.members: list[int] = []
        self.remembered: list[int] = []
        self.all = _Encoded(model.far_features, most, run)
        self.close = (
            _Encoded(lambda pixels: [model.close_look(pixels)], most, run) if model.settings.two_looks else None
        )

    def add(self, pictures: Iterable[Tensor], member: int, remembered: int = 1) -> None:
        """The views (3, H, W) of one image, of which a memory remembers the first ones, or none."""
        self.members.append(member)
        self.remembered.append(remembered)
        for view, picture in enumerate(pictures):
            self.all.add(picture)
            if self.close is not None and view < remembered:
                self.close.add(picture)

    def group(self) -> Group:
        """What was encoded."""
        close = [] if self.close is None else self.close.finished()
        return Group(self.all.finished(), self.members, self.remembered, close[0] if close else None)


class _Encoded:
    """Maps (n, h, w, c) of at most so many pictures, which are encoded a few at a time."""

    def __init__(self, encode: Callable[[Tensor], list[Tensor]], most: int, run: RunOptions) -> None:
        self.encode, self.most, self.run = encode, most, run
        self.waiting: list[Tensor] = []
        self.maps: list[Tensor] = []
        self.done = 0

    def add(self, picture: Tensor) -> None:
        self.waiting.append(picture)
        if len(self.waiting) == ENCODED:
            self._encode()

    def finished(self) -> list[Tensor]:
        """The maps of all pictures."""
        if self.waiting:
            self._encode()
        return [one[: self.done] for one in self.maps]

    @torch.inference_mode()
    def _encode(self) -> None:
        pixels = torch.stack(self.waiting).to(self.run.device)
        maps = [one.permute(0, 2, 3, 1) for one in self.encode(pixels)]
        self.maps = self.maps or _room(self.most, [tuple(found.shape[1:]) for found in maps], self.run)
        for own, found in zip(self.maps, maps, strict=True):
            own[self.done : self.done + len(found)] = found
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
