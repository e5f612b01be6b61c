import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mambaad_cli.line import placing
from mambaad_cli.line.placing import place, withdraw


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "x.png"
    path.parent.mkdir()
    path.write_text("photo")
    os.utime(path, ns=(10**9, 10**9))
    return path


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int, only_across: Path | None = None) -> None:
    """Let os.link fail, as on a FAT disk, or where the source lies on another disk."""
    link: Callable[..., None] = os.link

    def refused(source: Path, target: Path) -> None:
        if only_across is None or Path(source).is_relative_to(only_across):
            raise OSError(number, os.strerror(number))
        link(source, target)

    monkeypatch.setattr(os, "link", refused)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WAYS = ("links", "another disk", "FAT")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, photo: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "another disk":
        refuse_links(monkeypatch, errno.EXDEV, photo.parent)
    elif request.param == "FAT":
        refuse_links(monkeypatch, errno.EPERM)
    return str(request.param)


def test_nothing_is_written_over_and_nothing_is_left_beside(way: str, photo: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    done.mkdir()
    (done / "x.png").write_text("of another line")
    (done / "x_2.png").symlink_to("nowhere")
    assert place(photo, done / "x.png") == done / "x_3.png"
    assert (done / "x.png").read_text() == "of another line"
    assert (done / "x_3.png").read_text() == photo.read_text() == "photo"
    assert (done / "x_3.png").stat().st_mtime_ns == 10**9
    assert names(done) == ["x.png", "x_2.png", "x_3.png"]
    withdraw(done / "x_3.png")
    assert names(done) == ["x.png", "x_2.png"]


def test_lines_that_move_to_the_same_folder_at_once_lose_no_photo(way: str, photo: Path, tmp_path: Path) -> None:
    placed: list[Path] = []

    def line(number: int) -> None:
        for i in range(20):
            own = tmp_path / f"line{number}" / f"{i}.png"
            own.parent.mkdir(exist_ok=True)
            own.write_text(f"{number} {i}")
            placed.append(place(own, tmp_path / "done" / f"{i}.png"))

    threads = [threading.Thread(target=line, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(placed)) == 80
    assert {path.read_text() for path in placed} == {f"{number} {i}" for number in range(4) for i in range(20)}


def test_a_name_of_an_interrupted_run_is_taken_again(photo: Path, tmp_path: Path) -> None:
    assert place(photo, tmp_path / "done" / "x.png") == place(photo, tmp_path / "done" / "x.png")


def test_a_copy_and_its_name_are_on_disk_before_it_is_told(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EXDEV, photo.parent)
    synced: list[str] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    place(photo, tmp_path / "done" / "x.png")
    half, folder = synced
    assert Path(half).parent == Path(folder) == (tmp_path / "done").resolve()
    assert Path(half).name.startswith(".")


def test_a_copy_that_fails_leaves_nothing(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch, errno.EXDEV, photo.parent)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(placing.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        place(photo, tmp_path / "done" / "x.png")
    assert names(tmp_path / "done") == []
    assert photo.read_text() == "photo"


def test_a_relative_link_leads_to_its_photo_from_the_new_folder_too(photo: Path, tmp_path: Path) -> None:
    (photo.parent / "link.png").symlink_to("x.png")
    assert place(photo.parent / "link.png", tmp_path / "done" / "sub" / "link.png").read_text() == "photo"
