"""Image files -> what a model takes, read and scaled in worker threads while the model works.

Letters: h × w pixels of the file's image, H × W pixels of the model's input.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli.data import images, roi
from mambaad_cli.data.images import ImageError, errors_of
from mambaad_cli.side_by_side import threads_here

BATCH = 8  # images that a model takes at once
WORKERS = 2
DETAIL = 2  # a JPEG is decoded at this many times the model's input size, along a side, or larger
BYTES_AHEAD = 512 * 2**20  # what images that are decoded or wait to be taken may occupy
Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width
SizeOf = Callable[[int, Size], Size]  # of an image by its place among the paths and its height and width as read
# the mask of an image (see data.roi) by its place among the paths, its path, and its height and width
RegionOf = Callable[[int, Path, Size], "np.ndarray | None"]


class Input(NamedTuple):
    """One image as the model takes it."""

    pixels: Tensor  # (3, H, W) in 0 … 1
    box: Box | None  # where the image itself lies in it, if it was letterboxed
    picture: np.ndarray | None  # (h, w, 3) as read, where it was asked for
    shape: tuple[int, int]  # h, w of the file's image
    source: np.ndarray | None = None  # what was scaled, where it was asked for: the picture, or a smaller one of it
    inside: Tensor | None = None  # (H, W) bool: the region of interest; None: all of it
    region: np.ndarray | None = None  # its mask, of any size


def prepared(
    picture: np.ndarray, size: Size, letterbox: bool = False, keep: bool = False, region: np.ndarray | None = None
) -> Input:
    """A picture (h, w, 3), as `images.read` gives it, scaled to `size` (H, W); with `keep` the Input keeps it.

    region: a mask of bool, of any size: outside it the model sees nothing of the picture.
    """
    visible = picture if region is None else roi.blanked(picture, region)
    pixels, box = images.letterbox(visible, size) if letterbox else (images.resize(visible, size), None)
    kept = picture if keep else None
    inside = None if region is None else placed(region, size, box)
    if inside is not None:
        pixels = blank_outside(pixels, inside)  # pixels half of which lie outside show nothing either
    return Input(pixels, box, kept, (picture.shape[0], picture.shape[1]), kept, inside, region)


def blank_outside(pixels: Tensor, inside: Tensor) -> Tensor:
    """An image (3, H, W) in 0 … 1 with nothing to be seen outside its region of interest (H, W)."""
    return torch.where(inside, pixels, torch.tensor(roi.BLANK)[:, None, None] / 255)


def placed(region: np.ndarray, size: Size, box: Box | None) -> Tensor:
    """A region of interest in the model's input: (H, W) bool; padding lies outside."""
    if box is None:
        return torch.from_numpy(roi.scaled(region, size))
    top, left, height, width = box
    inside = torch.zeros(size, dtype=torch.bool)
    inside[top : top + height, left : left + width] = torch.from_numpy(roi.scaled(region, (height, width)))
    return inside


class Wanted(NamedTuple):
    """How files are prepared for a model. Whatever is kept of them, the model's input is the same."""

    size: Size | SizeOf  # (H, W), of all images or of each
    letterbox: bool = False
    pictures: bool = False  # an Input keeps its picture
    sources: bool = False  # an Input keeps what was scaled
    largest: Size | None = None  # upper bound of the model's input sizes (H, W); None: `size` itself
    region: RegionOf | None = None  # the region of interest of each image
    scale: float = 0.0  # a JPEG is decoded at this share of its sides or larger: tiles need it

    def of_file(self, place: int, path: Path) -> tuple[Input, int]:
        """A file's Input, and how many bytes were decoded for it. Raises ImageError."""
        return self.of_opened(place, images.opened(path))

    def of_opened(self, place: int, file: images.Opened) -> tuple[Input, int]:
        """The same of a file whose bytes were read already."""
        size = self.size(place, file.shape) if callable(self.size) else self.size
        sides = zip(self.largest or size, file.shape, strict=True)
        height, width = (max(DETAIL * input_side, math.ceil(self.scale * side)) for input_side, side in sides)
        source = file.decoded((height, width))
        picture = source
        if self.pictures and source.shape[:2] != file.shape:
            picture = file.decoded()
        region = None if self.region is None else self.region(place, file.path, file.shape)
        image = prepared(source, size, self.letterbox, region=region)
        decoded = source.nbytes + (0 if picture is source else picture.nbytes)
        kept = source if self.sources else None
        return image._replace(picture=picture if self.pictures else None, source=kept, shape=file.shape), decoded


def within(anomaly_map: Tensor, box: Box | None, inside: Tensor | None = None) -> Tensor:
    """The part of a map (…, H, W) that lies on the image: padding is neither shown nor scored.

    inside: (H', W') bool, the region of interest at any size: outside it a map (H, W) is as cold as anywhere in it.
    """
    if inside is not None:
        anomaly_map = cold_outside(anomaly_map[None], at_size(inside, (anomaly_map.shape[0], anomaly_map.shape[1])))[0]
    if box is None:
        return anomaly_map
    top, left, height, width = box
    return anomaly_map[..., top : top + height, left : left + width]


def on_device(images: Tensor, device: str) -> Tensor:
    """Images on a device. Copies to a GPU start from pinned memory, so that the CPU goes on while they run."""
    if images.device.type == "cpu" and device.startswith("cuda"):
        return images.pin_memory().to(device, non_blocking=True)
    return images.to(device)


def at_size(inside: Tensor, size: Size) -> Tensor:
    """Regions of interest (…, H, W) of bool at another size: what lies inside by at least a half; never nothing."""
    if inside.shape[-2:] == size:
        return inside
    share = F.adaptive_avg_pool2d(inside.float().view(1, -1, *inside.shape[-2:]), size)
    scaled = share >= share.amax((2, 3), keepdim=True).clamp(max=0.5)
    return scaled.view(*inside.shape[:-2], *size)


def cold_outside(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps (b, H, W) with the least of their values inside at every position outside (H, W) or (b, H, W)."""
    inside = inside.to(maps.device).expand_as(maps)
    least = maps.masked_fill(~inside, math.inf).flatten(1).amin(1)
    return torch.where(inside, maps, least[:, None, None])


def read_ahead(paths: Iterable[Path], wanted: Wanted, workers: int = WORKERS) -> Iterator[Input | ImageError]:
    """Read and scale images in worker threads, ahead of the code that takes them, in the order given.

    A file that cannot be read comes out as its ImageError, whatever went wrong with it. What is ahead is limited in
    number, to 4 for each worker and a batch, and in bytes, to BYTES_AHEAD; images that are larger than that are still
    read, `workers` of them at once.
    """
    memory = _Memory(BYTES_AHEAD, workers)

    def load(place: int, path: Path) -> Input | ImageError:
        memory.wait(place)
        decoded_bytes, kept = 0, 0
        try:
            with errors_of(path):
                image, decoded_bytes = wanted.of_file(place, path)
            kept = bytes_kept(image)
            return image
        except ImageError as error:
            return ImageError(error.path, error.reason)  # the one caught holds the file's bytes, in its traceback
        finally:
            memory.finish(decoded_bytes, kept)

    waiting: deque[Future[Input | ImageError]] = deque()
    remaining = enumerate(paths)
    # with threads of torch's own each would wait for those of the model, and they for it
    with ThreadPoolExecutor(workers, initializer=lambda: threads_here(1)) as pool:
        try:
            for place, path in itertools.islice(remaining, 4 * workers + BATCH):
                waiting.append(pool.submit(load, place, path))
            while waiting:
                wait([waiting[0]])
                for place, path in itertools.islice(remaining, 1):
                    waiting.append(pool.submit(load, place, path))
                yield memory.take(waiting.popleft().result())  # no name here keeps it alive while others work with it
        finally:
            for future in waiting:
                future.cancel()
            memory.close()


def bytes_kept(image: Input | ImageError) -> int:
    """How many bytes an image occupies while it waits to be taken."""
    if isinstance(image, ImageError):
        return 0
    kept = {id(array): array.nbytes for array in (image.picture, image.source) if array is not None}
    return image.pixels.nbytes + sum(kept.values())


class _Memory:
    """Lets a worker decode an image where it will fit beside those that are being decoded or wait to be taken.

    How large an image will be is not known before it is decoded: it is expected to be as large as the largest so far.
    The next `always` images to be taken are decoded whatever there is, so that the image asked for always comes.
    """

    def __init__(self, limit: int, always: int) -> None:
        self.limit, self.always = limit, always
        self.changed = threading.Condition()
        self.taken = self.decoding = self.largest = self.waiting_bytes = 0
        self.closed = False

    def wait(self, place: int) -> None:
        """Wait until image number `place` may be decoded. Raises CancelledError once nobody takes images any more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self._fits(place))
            if self.closed:
                raise CancelledError
            self.decoding += 1

    def _fits(self, place: int) -> bool:
        expected = self.waiting_bytes + (self.decoding + 1) * self.largest
        return place < self.taken + self.always or expected <= self.limit

    def finish(self, decoded_bytes: int, kept: int) -> None:
        """An image of `decoded_bytes` bytes is decoded; `kept` of its bytes wait to be taken."""
        with self.changed:
            self.decoding -= 1
            self.largest = max(self.largest, decoded_bytes)
            self.waiting_bytes += kept
            self.changed.notify_all()

    def take(self, image: Input | ImageError) -> Input | ImageError:
        """Hand an image over to the code that asked for it: it no longer counts."""
        with self.changed:
            self.taken += 1
            self.waiting_bytes -= bytes_kept(image)
            self.changed.notify_all()
        return image

    def close(self) -> None:
        """End the workers that wait: nobody takes images any more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
