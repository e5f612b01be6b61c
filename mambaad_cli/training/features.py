"""The encoder's features of the training images, computed once and cached: in memory, or in a file.

Letters: n images, b batch, c channels, h × w positions of a stage, H × W pixels.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mambaad_cli.data.augmentation import moves, with_moved
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import Box, at_size, on_device, read_ahead, within
from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics
from mambaad_cli.inspection.model_record import Example
from mambaad_cli.inspection.product import Size
from mambaad_cli.side_by_side import split_over_threads
from mambaad_cli.training.cache import Cache, fill
from mambaad_cli.training.examples import box_of, inside_of, pixels_of
from mambaad_cli.training.job import Job
from mambaad_cli.training.progress import Progress

ENCODED = 8  # images that go through the encoder together
Moves = tuple[int, int, bool, bool]  # how many moved views, and their seed, flips and turned: see `moved`
NOT_MOVED: Moves = (0, 0, False, False)


class Views(NamedTuple):
    """How many views of each image are learnt: itself and moved ones, which may be mirrored as well."""

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
    close    (r, h, w, c): what a close view sees of each image itself, then of the moved views that a memory remembers
    """

    stages: list[Tensor]
    members: list[int]  # the images' numbers, in the order of the stages
    remembered: list[int]  # views of each, itself among them, that a memory remembers
    close: Tensor | None = None  # where the memory has a close view too

    @property
    def grid(self) -> tuple[int, ...]:
        """The sides of all maps that the decoder sees."""
        return tuple(side for stage in self.stages for side in stage.shape[1:3])

    def and_those_of(self, other: "Group", first: int) -> "Group":
        """These images, then the other's, whose numbers begin with `first`."""
        stages = [_joined(stage, more) for stage, more in zip(self.stages, other.stages, strict=True)]
        close = [part for part in (self.close, other.close) if part is not None]
        members = self.members + [first + i for i in other.members]
        joined = _joined(*close) if len(close) == 2 else next(iter(close), None)
        return Group(stages, members, self.remembered + other.remembered, joined)


def _joined(rows: Tensor, more: Tensor) -> Tensor:
    return torch.cat([rows.to(more.dtype), more])


class Seen(NamedTuple):
    """What is known of an image besides its features."""

    box: Box | None = None  # where it lies in its letterbox
    inside: Tensor | None = None  # (H, W) bool: its region of interest, as large as its map; None: all of it
    photo: PhotoStatistics | None = None  # how it was taken
    digest: bytes = b""  # of what the encoder sees: equal for copies of one photo
    moves: Tensor | None = None  # (v, 2, 3): how its moved views that a memory remembers were moved, see `moves`


class Features:
    """The encoder's features of n images, in memory or in a file, of any type: a group for each size."""

    def __init__(self, groups: Sequence[Group], seen: Sequence[Seen], views: int = 1) -> None:
        self.groups = [group for group in groups if group.members]
        self.seen = list(seen)
        self.views = views
        self.group_of = {i: number for number, group in enumerate(self.groups) for i in group.members}
        self._row_of = {i: row for group in self.groups for row, i in enumerate(group.members)}
        self._remembered = {i: n for group in self.groups for i, n in zip(group.members, group.remembered, strict=True)}
        copies: dict[bytes, list[int]] = {}
        for i, image in enumerate(self.seen):
            copies.setdefault(image.digest or str(i).encode(), []).append(i)
        self._alike = {i: group for group in copies.values() for i in group}
        self._close_row_of: dict[int, int] = {}
        for group in self.groups:
            rows = accumulate(group.remembered, initial=0)
            self._close_row_of |= dict(zip(group.members, rows, strict=False))

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, chosen: Tensor) -> list[Tensor]:
        """Those of some images of one size: one (b, c, h, w) a stage, channels last in memory, float32.

        What a close view sees comes last, where it is known of all of them.
        """
        return self._with_close(chosen, torch.zeros_like(chosen))

    def any_view(self, chosen: Tensor) -> list[Tensor]:
        """The same for the decoder, of a view of each at random."""
        some = torch.randint(self.views, chosen.shape) if self.views > 1 else torch.zeros_like(chosen)
        return self._rows(chosen, some)

    def remembered_views(self, image: int) -> list[Tensor]:
        """Those of one image and of its moved views that a memory remembers: one (v, c, h, w) a stage."""
        views = self._remembered[image]
        return self._with_close(torch.full((views,), image), torch.arange(views))

    def batches(self, chosen: Sequence[int], device: str) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Some images and their features, a batch of one size at a time, on the device."""
        for number in dict.fromkeys(self.group_of[i] for i in chosen):
            members = [i for i in chosen if self.group_of[i] == number]
            for start in range(0, len(members), ENCODED):
                batch = members[start : start + ENCODED]
                yield batch, [stage.to(device) for stage in self[torch.tensor(batch)]]

    def and_those_of(self, others: "Features") -> "Features":
        """These features, then the others', whose images are numbered on; groups of the same grids become one."""
        first = len(self)
        groups = {group.grid: group for group in self.groups}
        for group in others.groups:
            known = groups.get(group.grid)
            if known is None:
                groups[group.grid] = group._replace(members=[first + i for i in group.members])
            else:
                groups[group.grid] = known.and_those_of(group, first)
        joined = Features(list(groups.values()), [*self.seen, *others.seen], others.views)
        joined.group(self._alike.values())
        joined.group([first + i for i in images] for images in others._alike.values())
        return joined

    def inside(self, chosen: Sequence[int], size: Size) -> Tensor | None:
        """The regions of interest of some images of one size as (b, *size) of bool; None where all of them counts."""
        regions = [self.seen[i].inside for i in chosen]
        if all(region is None for region in regions):
            return None
        whole = torch.ones(size, dtype=torch.bool)
        return torch.stack([whole if region is None else at_size(region, size) for region in regions])

    def coarsest(self, chosen: Sequence[int]) -> Tensor:
        """The coarsest stage (b, c, h, w) that the decoder sees of some images of one size."""
        numbers = torch.tensor(chosen)
        return self._rows(numbers, torch.zeros_like(numbers))[-1]

    # ---- images that show the same ----

    def group(self, groups: Iterable[Sequence[int]]) -> None:
        """Note that the images of each group show nearly the same. Copies are known already."""
        for images in groups:
            joined = sorted({alike for i in images for alike in self._alike[i]})
            self._alike |= dict.fromkeys(joined, joined)

    def alike(self, image: int) -> list[int]:
        """The images that show the same or nearly so, this one among them."""
        return self._alike[image]

    def first_of_alike(self, images: Iterable[int]) -> list[int]:
        """One of the images for each that shows something else, in order."""
        firsts: dict[int, int] = {}
        for i in images:
            firsts.setdefault(self._alike[i][0], i)
        return list(firsts.values())

    def distinct(self, images: Iterable[int]) -> list[int]:
        """The images without exact copies, in order."""
        firsts: dict[bytes, int] = {}
        for i in images:
            firsts.setdefault(self.seen[i].digest or str(i).encode(), i)
        return list(firsts.values())

    def _rows(self, chosen: Tensor, view: Tensor) -> list[Tensor]:
        numbers = chosen.tolist()
        group = self.groups[self.group_of[numbers[0]]]
        rows = torch.tensor([self._row_of[i] for i in numbers]) * self.views + view
        return [_of_rows(stage, rows) for stage in group.stages]

    def _with_close(self, chosen: Tensor, view: Tensor) -> list[Tensor]:
        numbers, stages = chosen.tolist(), self._rows(chosen, view)
        close = self.groups[self.group_of[numbers[0]]].close
        if close is None or not all(self._remembered[i] for i in numbers):
            return stages
        return [*stages, _of_rows(close, torch.tensor([self._close_row_of[i] for i in numbers]) + view)]


def _of_rows(stage: Tensor, rows: Tensor) -> Tensor:
    return stage[rows].float().permute(0, 3, 1, 2)


def features_of_files(
    job: Job,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    views_for: Callable[[int], Views] = lambda images: Views(),
) -> tuple[Features, list[int]]:
    """Run the encoder once over the files, each at the size of its class: its features, and the indices of the files
    that could be read.

    Each image has the views that `views_for` says for that many images.
    """
    features, readable = _encode_files(job, files, classes, views_for(len(files)))
    views = views_for(len(readable))
    if not readable or views.number == features.views:
        return features, readable
    # files that cannot be read leave no trace: the views are those of the readable ones alone
    files, classes = [files[i] for i in readable], [classes[i] for i in readable]
    return _encode_files(replace(job, progress=Progress()), files, classes, views)[0], readable


def _encode_files(
    job: Job, files: Sequence[ImageFile], classes: Sequence[str], views: Views
) -> tuple[Features, list[int]]:
    sizes = [job.input_size(name) for name in classes]
    cache = Cache(job.run)
    encoders = {size: _Encoding(job, views.number * count, cache) for size, count in Counter(sizes).items()}
    seen: list[Seen] = []
    readable: list[int] = []
    paths, device = [file.path for file in files], job.run.device
    for i, image in enumerate(read_ahead(paths, job.preparation.wanted(classes))):
        job.progress.image()
        if isinstance(image, ImageError):
            job.progress.unreadable(image)
            continue
        turned, remembered = classes[i] in views.turned, views.remembered(classes[i])
        chosen = (views.number - 1, len(readable) + 1, views.flips, turned)
        encoders[sizes[i]].add(on_device(image.pixels, device), len(readable), remembered, chosen)
        how = moves(sizes[i], *chosen) if remembered > 1 else None
        readable.append(i)
        inside = None if image.inside is None else at_size(image.inside, job.network.map_size(sizes[i]))
        photo = photo_statistics(within(image.pixels, image.box))
        seen.append(Seen(image.box, inside, photo, _digest(image.pixels), how))
    return Features([encoder.group() for encoder in encoders.values()], seen, views.number), readable


def _digest(pixels: Tensor) -> bytes:
    """Of an image as the encoder sees it, whatever its file is."""
    return hashlib.blake2b((pixels * 255).round().byte().numpy().tobytes(), digest_size=16).digest()


def features_of_examples(job: Job, examples: Sequence[Example], views: Views) -> Features:
    """What the decoder sees of the images that a model carries, and of moved views of them."""
    two = job.network.settings.two_looks
    sizes = [job.map_size(one.class_name) if two else job.input_size(one.class_name) for one in examples]
    cache = Cache(job.run)
    encoders = {size: _Encoding(job, views.number * count, cache) for size, count in Counter(sizes).items()}
    seen: list[Seen] = []
    for i, (example, size) in enumerate(zip(examples, sizes, strict=True)):
        chosen = (views.number - 1, i, views.flips, example.class_name in views.turned)
        encoders[size].add_far(on_device(pixels_of(example, size), job.run.device), i, chosen)
        seen.append(Seen(box_of(example, size), inside_of(example, size)))
    return Features([encoder.group() for encoder in encoders.values()], seen, views.number)


def features_of_pixels(job: Job, pictures: Iterable[Tensor], most: int, remembered: bool = True) -> Features:
    """Features of at most `most` pictures (3, H, W) of one size, or only what the decoder sees of them."""
    encoding = _Encoding(job, most, Cache(job.run))
    count = 0
    for picture in pictures:
        encoding.add(picture, count, int(remembered))
        count += 1
    return Features([encoding.group()], [Seen()] * count)


class _Encoding:
    """Pictures of one size on their way through the encoder, a few at a time, into a cache for at most `most`.

    Moved views are made as `moved` makes them, from its arguments behind the picture; those that no memory remembers at
    the size at which the decoder sees them.
    """

    def __init__(self, job: Job, most: int, cache: "Cache") -> None:
        self.network = network = job.fast
        self.members: list[int] = []
        self.remembered: list[int] = []
        split = (lambda encode, pixels: encode(pixels)) if network.encoder.own_threads else split_over_threads
        self.coarse = _Encoded(partial(split, network.far_features), most, cache)
        two = network.settings.two_looks
        self.close = _Encoded(partial(split, lambda pixels: [network.close_view(pixels)]), most, cache) if two else None

    def add(self, picture: Tensor, member: int, remembered: int = 1, views: Moves = NOT_MOVED) -> None:
        """An image (3, H, W) and moved views of it; a memory remembers the first `remembered`, the image itself too."""
        if remembered > 1:
            self._number(member, remembered)
            for view in with_moved(picture, *views):
                self._close(view)
                self.coarse.add(self.network.far_view(view[None])[0])
            return
        if remembered:
            self._close(picture)
        self.add_far(self.network.far_view(picture[None])[0], member, views, remembered)

    def add_far(self, picture: Tensor, member: int, views: Moves = NOT_MOVED, remembered: int = 0) -> None:
        """An image as `Network.far_view` gives it, and moved views of it."""
        self._number(member, remembered)
        for view in with_moved(picture, *views):
            self.coarse.add(view)

    def _number(self, member: int, remembered: int) -> None:
        self.members.append(member)
        self.remembered.append(remembered)

    def _close(self, picture: Tensor) -> None:
        if self.close is not None:
            self.close.add(picture)

    def group(self) -> Group:
        """What was encoded."""
        close = [] if self.close is None else self.close.finished()
        return Group(self.coarse.finished(), self.members, self.remembered, close[0] if close else None)


class _Encoded:
    """Maps (n, h, w, c) of at most `most` pictures, which are encoded a few at a time."""

    def __init__(self, encode: Callable[[Tensor], list[Tensor]], most: int, cache: "Cache") -> None:
        self.encode, self.most, self.cache = encode, most, cache
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
        return [maps[: self.done] for maps in self.maps]

    @torch.inference_mode()
    def _encode(self) -> None:
        pixels = on_device(torch.stack(self.waiting), self.cache.run.device)
        maps = [stage.permute(0, 2, 3, 1) for stage in self.encode(pixels)]
        self.maps = self.maps or self.cache.allocated(self.most, [tuple(stage.shape[1:]) for stage in maps])
        for kept, stage in zip(self.maps, maps, strict=True):
            fill(kept[self.done : self.done + len(stage)], stage)
        self.done += len(self.waiting)
        self.waiting = []
