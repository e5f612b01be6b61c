"""Images are read ahead in order, and what is ahead fits into memory whatever the size of the photos."""

import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data import images, loading
from mambaad_cli.data.image_headers import Header
from mambaad_cli.data.images import ImageError, Opened
from mambaad_cli.data.loading import BATCH, Input, Wanted, read_ahead, within

SMALL, LARGE = (10, 10), (1000, 500)  # h, w; LARGE takes 1.5 MB
LARGE_BYTES = 3 * LARGE[0] * LARGE[1]
PIXELS_BYTES = 4 * 3 * 8 * 8  # of an Input of 8 × 8 pixels


class Photos:
    """Stands in for `images.opened`: photo i has the shape `shape_of(i)`; counts the bytes of photos that are alive."""

    def __init__(self, shape_of: Callable[[int], tuple[int, int]]) -> None:
        self.shape_of, self.lock = shape_of, threading.RLock()  # a photo may die while we hold the lock
        self.started = self.running = self.alive = self.most_alive = 0

    def opened(self, path: Path) -> Opened:
        """A file of which `read` is what it decodes to."""
        photos = self

        class Fake(Opened):
            @property
            def shape(self) -> tuple[int, int]:
                return photos.shape_of(int(self.path.name))

            def decoded(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
                return photos.read(self.path)

        return Fake(path, Header(1, 1, b""))

    def read(self, path: Path) -> np.ndarray:
        with self.lock:
            self.started += 1
            self.running += 1
        photo = np.full((*self.shape_of(int(path.name)), 3), int(path.name) % 256, np.uint8)
        self._count(photo.nbytes)
        weakref.finalize(photo, self._count, -photo.nbytes)
        time.sleep(0.002)
        with self.lock:
            self.running -= 1
        return photo

    def _count(self, change: int) -> None:
        with self.lock:
            self.alive += change
            self.most_alive = max(self.most_alive, self.alive)

    def settled(self) -> int:
        """How many photos were begun once no more is begun."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 0.2:
            if self.started != seen or self.running:
                seen, since = self.started, time.monotonic()
            time.sleep(0.005)
        return seen


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], tuple[int, int]]], Photos]:
    def stand_in(shape_of: Callable[[int], tuple[int, int]]) -> Photos:
        fake = Photos(shape_of)
        monkeypatch.setattr(images, "opened", fake.opened)
        return fake

    return stand_in


def paths(count: int) -> Iterator[Path]:
    return (Path(str(i)) for i in range(count))


def numbers(found: list[Input | ImageError]) -> list[int]:
    return [round(float(one.pixels.mean()) * 255) for one in found if isinstance(one, Input)]


def test_images_come_in_order_with_box_and_shape_and_an_unreadable_one_as_its_error(tmp_path: Path) -> None:
    picture = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
    files = [tmp_path / f"{i}.png" for i in range(30)]
    for i, file in enumerate(files):
        images.write(file, np.roll(picture, i, 0))
    files[3].write_bytes(b"no image")
    found = list(read_ahead(files, Wanted((16, 16), letterbox=True, pictures=True), workers=3))
    assert len(found) == 30
    for i, one in enumerate(found):
        if i == 3:
            assert isinstance(one, ImageError)
            assert (one.path, one.reason) == (files[3], "not an image: expected PNG, JPEG, BMP, TIFF or WebP")
            assert (one.__traceback__, one.__context__) == (None, None)  # they would keep the file's bytes in memory
            continue
        assert isinstance(one, Input)
        assert torch.equal(one.pixels, images.letterbox(np.roll(picture, i, 0), (16, 16))[0])
        assert one.picture is not None
        assert np.array_equal(one.picture, np.roll(picture, i, 0))
        assert (one.box, one.shape) == ((4, 0, 8, 16), (20, 40))
    plain = next(read_ahead(files, Wanted((16, 16))))
    assert isinstance(plain, Input)
    assert (plain.box, plain.picture) == (None, None)
    assert torch.equal(plain.pixels, images.resize(picture, (16, 16)))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_large_photos_that_are_kept_wait_within_the_budget(photos, monkeypatch, workers: int) -> None:
    budget = 13 * LARGE_BYTES // 2
    monkeypatch.setattr(loading, "BYTES_AHEAD", budget)
    fake = photos(lambda i: LARGE)
    stream = read_ahead(paths(60), Wanted((8, 8), pictures=True), workers=workers)
    found = []
    for _ in range(60):
        found += numbers([next(stream)])
        if len(found) in (1, 2, 30):
            ahead = fake.settled() - len(found)
            assert 6 <= ahead < 6 + workers  # one that others overtook is read whatever there is, so that it comes
            assert fake.alive == ahead * LARGE_BYTES  # what was taken is forgotten
    assert found == list(range(60))
    assert next(stream, None) is None
    assert fake.most_alive <= budget + (workers + 1) * LARGE_BYTES  # one more is in our hands


def test_large_photos_after_small_ones_exceed_the_budget_by_no_more_than_the_workers_hold(photos, monkeypatch) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", 2 * LARGE_BYTES)
    fake = photos(lambda i: SMALL if i < 40 else LARGE)
    stream = read_ahead(paths(80), Wanted((8, 8), pictures=True), workers=2)
    found = []
    for _ in range(80):
        found += numbers([next(stream)])
        if len(found) % 10 == 0:
            fake.settled()
    assert found == list(range(80))
    assert fake.most_alive <= (2 + 2 + 1) * LARGE_BYTES + 20 * 3 * SMALL[0] * SMALL[1]


def test_of_photos_that_are_not_kept_only_those_being_decoded_take_memory(photos, monkeypatch) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", 3 * LARGE_BYTES)
    fake = photos(lambda i: LARGE)
    stream = read_ahead(paths(100), Wanted((8, 8)), workers=2)
    next(stream)
    assert fake.settled() == 4 * 2 + BATCH + 1  # all that may be ahead in number, although 17 photos exceed the budget
    assert fake.alive == 0
    assert fake.most_alive <= 2 * LARGE_BYTES
    stream.close()  # type: ignore[attr-defined]


def test_scaled_images_count_as_well(photos, monkeypatch) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", 4 * PIXELS_BYTES)
    fake = photos(lambda i: (1, 1))
    stream = read_ahead(paths(100), Wanted((8, 8)), workers=1)
    next(stream)
    assert fake.settled() - 1 <= 5
    assert numbers(list(stream)) == list(range(1, 100))


def test_however_large_the_photos_all_workers_are_at_work(monkeypatch) -> None:
    """Both have to be in `read` at once for either to leave it."""
    both = threading.Barrier(2, timeout=10)

    def read(path: Path) -> np.ndarray:
        both.wait()
        return np.full((4, 4, 3), int(path.name), np.uint8)

    fake = Photos(lambda i: (4, 4))
    monkeypatch.setattr(fake, "read", read)
    monkeypatch.setattr(images, "opened", fake.opened)
    monkeypatch.setattr(loading, "BYTES_AHEAD", 0)
    found = []
    stream = read_ahead(paths(20), Wanted((8, 8), pictures=True), workers=2)
    for one in stream:
        found.append(one)
        del one
    assert numbers(found) == list(range(20))


def test_whoever_stops_taking_leaves_no_worker_waiting_for_memory(photos, monkeypatch) -> None:
    monkeypatch.setattr(loading, "BYTES_AHEAD", LARGE_BYTES)
    fake = photos(lambda i: LARGE)
    before = threading.active_count()
    stream = read_ahead(paths(60), Wanted((8, 8), pictures=True), workers=3)
    next(stream)
    begun = fake.settled()
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert (fake.started, begun < 8) == (begun, True)


def test_a_wrong_setting_ends_the_stream_and_its_workers(monkeypatch, tmp_path: Path) -> None:
    images.write(tmp_path / "0.png", np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setenv("MAMBAAD_MAX_PIXELS", "many")
    monkeypatch.setattr(loading, "BYTES_AHEAD", 0)
    before = threading.active_count()
    with pytest.raises(MambaADError, match="MAMBAAD_MAX_PIXELS"):
        list(read_ahead([tmp_path / "0.png"] * 30, Wanted((8, 8)), workers=2))
    assert threading.active_count() == before


def test_whatever_goes_wrong_with_one_file_the_others_come(monkeypatch, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        images.write(file, np.zeros((4, 4, 3), np.uint8))
    files[0].write_bytes(b"II+\0" + struct.pack("<HHQ", 8, 0, 2**63 + 5) + bytes(64))

    def region(place: int, path: Path, shape: tuple[int, int]) -> None:
        if place == 1:
            raise ZeroDivisionError("of the second file")

    first, second, third = read_ahead(files, Wanted((8, 8), region=region))
    assert isinstance(first, ImageError)
    assert isinstance(second, ImageError)
    assert (first.path, first.reason.partition(":")[0]) == (files[0], "cannot be read")
    assert str(second) == f"{files[1]}: cannot be read: ZeroDivisionError: of the second file"
    assert (second.__traceback__, second.__context__) == (None, None)
    assert isinstance(third, Input)


def test_the_part_of_a_map_within_a_box_is_the_image() -> None:
    grid = torch.arange(20).reshape(4, 5)
    assert within(grid, (1, 2, 2, 3)).tolist() == [[7, 8, 9], [12, 13, 14]]
    assert within(grid, None) is grid


def test_what_is_kept_of_a_photo_does_not_change_what_the_model_sees(tmp_path: Path) -> None:
    """With its whole picture for an overlay or without, a large JPEG is scaled from the same smaller one."""
    path = tmp_path / "large.jpg"
    images.write(path, np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    plain, kept = (next(read_ahead([path], Wanted((32, 32), pictures=p, sources=p))) for p in (False, True))
    assert isinstance(plain, Input)
    assert isinstance(kept, Input)
    assert torch.equal(plain.pixels, kept.pixels)
    assert plain.shape == kept.shape == (300, 400)
    assert (plain.picture, plain.source) == (None, None)
    assert kept.picture is not None
    assert kept.source is not None
    assert (kept.picture.shape, kept.source.shape) == ((300, 400, 3), (75, 100, 3))
    largest = next(read_ahead([path], Wanted((32, 32), sources=True, largest=(32, 150))))
    assert isinstance(largest, Input)
    assert largest.source is not None
    assert largest.source.shape == (300, 400, 3)
