"""Image files -> what a model takes, read and scaled in worker threads while the model works.

Letters: h × w pixels of the file's image, H × W pixels of the model's input.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mambaad_cli.data import images
from mambaad_cli.data.images import ImageError

BATCH = 8  # images that a model takes at once
WORKERS = 2
DETAIL = 2  # a JPEG is decoded so many times as large as the model sees it, along a side, or larger
BYTES_AHEAD = 512 * 2**20  # what images that are decoded or wait to be taken may occupy
Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width
SizeOf = Callable[[int, Size], Size]  # of an image by its place among the paths and its height and width as read


class Input(NamedTuple):
    """One image as the model takes it."""

    pixels: Tensor  # (3, H, W) in 0 … 1
    box: Box | None  # where the image itself lies in it, if it was letterboxed
    picture: np.ndarray | None  # (h, w, 3) as read, where it was asked for
    shape: tuple[int, int]  # h, w of the file's image
    source: np.ndarray | None = None  # what was scaled, where it was asked for: the picture, or a smaller one of it


def prepared(picture: np.ndarray, size: tuple[int, int], letterbox: bool = False, keep: bool = False) -> Input:
    """A picture (h, w, 3), as `images.read` gives it, scaled to `size` (H, W); with `keep` the Input keeps it."""
    pixels, box = images.letterbox(picture, size) if letterbox else (images.resize(picture, size), None)
    kept = picture if keep else None
    return Input(pixels, box, kept, (picture.shape[0], picture.shape[1]), kept)


class Wanted(NamedTuple):
    """How files are prepared for a model. Whatever is kept of them, the model's input is the same."""

    size: Size | SizeOf  # (H, W), of all images or of each
    letterbox: bool = False
    pictures: bool = False  # an Input keeps its picture
    sources: bool = False  # an Input keeps what was scaled
    largest: Size | None = None  # (H, W) that any size of the model fits into; None: the image's own size

    def of_file(self, place: int, path: Path) -> tuple[Input, int]:
        """A file's Input, and how many bytes were decoded for it. Raises ImageError."""
        file = images.opened(path)
        size = self.size(place, file.shape) if callable(self.size) else self.size
        source = file.decoded((DETAIL * (self.largest or size)[0], DETAIL * (self.largest or size)[1]))
        picture = source
        if self.pictures and source.shape[:2] != file.shape:
            picture = file.decoded()
        one = prepared(source, size, self.letterbox)
        decoded = source.nbytes + (0 if picture is source else picture.nbytes)
        kept = source if self.sources else None
        return one._replace(picture=picture if self.pictures else None, source=kept, shape=file.shape), decoded


def within(anomaly_map: Tensor, box: Box | None) -> Tensor:
    """The part of a map (…, H, W) that lies on the image: padding is neither shown nor scored."""
    if box is None:
        return anomaly_map
    top, left, height, width = box
    return anomaly_map[..., top : top + height, left : left + width]


def read_ahead(paths: Iterable[Path], wanted: Wanted, workers: int = WORKERS) -> Iterator[Input | ImageError]:
    """Read and scale images in worker threads, ahead of the code that takes them, in the order given.

    A file that cannot be read comes out as its ImageError. What is ahead is limited in number, to 4 for each worker and
    a batch, and in bytes, to BYTES_AHEAD; images that are larger than that are still read, `workers` of them at once.
    """
    memory = _Memory(BYTES_AHEAD, workers)

    def load(place: int, path: Path) -> Input | ImageError:
        memory.wait(place)
        whole, kept = 0, 0
        try:
            one, whole = wanted.of_file(place, path)
            kept = bytes_kept(one)
            return one
        except ImageError as error:
            return ImageError(error.path, error.reason)  # the one caught holds the file's bytes, in its traceback
        finally:
            memory.finish(whole, kept)

    waiting: deque[Future[Input | ImageError]] = deque()
    remaining = enumerate(paths)
    with ThreadPoolExecutor(workers) as pool:
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


def bytes_kept(one: Input | ImageError) -> int:
    """What an image occupies while it waits to be taken."""
    if isinstance(one, ImageError):
        return 0
    kept = {id(array): array.nbytes for array in (one.picture, one.source) if array is not None}
    return one.pixels.nbytes + sum(kept.values())


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

    def finish(self, whole: int, kept: int) -> None:
        """An image of `whole` bytes is decoded; `kept` of its bytes wait to be taken."""
        with self.changed:
            self.decoding -= 1
            self.largest = max(self.largest, whole)
            self.waiting_bytes += kept
            self.changed.notify_all()

    def take(self, one: Input | ImageError) -> Input | ImageError:
        """Hand an image over to the code that asked for it: it no longer counts."""
        with self.changed:
            self.taken += 1
            self.waiting_bytes -= bytes_kept(one)
            self.changed.notify_all()
        return one

    def close(self) -> None:
        """End the workers that wait: nobody takes images any more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
