import os
import time
from pathlib import Path

import pytest

from mambaad_cli.line.arrivals import Arrival, Arrivals, Version, version_of


def names(arrived: list[Arrival]) -> list[str]:
    return [str(one.file.relative) for one in arrived]


def nothing_known(name: str, version: Version) -> bool:
    return False


def test_a_photo_is_given_out_once_its_size_and_time_stand_still(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path, nothing_known, settle=1.0)
    photo = tmp_path / "a.png"
    photo.write_bytes(b"1")
    assert arrivals.list_new(0.0) == []
    photo.write_bytes(b"12")
    assert arrivals.list_new(0.9) == []
    assert arrivals.list_new(1.8) == []
    assert arrivals.due(1.8) == 1.9 - 1.8
    os.utime(photo, ns=(5, 5))  # the same size, another time
    assert arrivals.list_new(1.9) == []
    (complete,) = arrivals.list_new(2.9)
    assert complete == Arrival(complete.file, complete.version)
    assert complete.version[:2] == (2, 5)
    assert complete.file.path == photo


def test_without_settling_a_photo_is_complete_when_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["a.png"]


def test_photos_come_in_the_order_of_their_times_then_of_their_names(tmp_path: Path) -> None:
    for name, mtime in (("10.png", 7), ("9.png", 7), ("z/1.JPG", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(mtime, mtime))
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["z/1.JPG", "9.png", "10.png"]


def test_hidden_files_other_files_and_loops_of_links_are_left_out(tmp_path: Path) -> None:
    for name in (".a.png", "a.txt", "a.png.part", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["b.png"]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "System Volume Information"])
def test_folders_of_a_nas_and_of_other_systems_are_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "a.png").mkdir(parents=True)
    (tmp_path / name / "a.png" / "SYNOPHOTO_THUMB_M.jpg").touch()
    (tmp_path / f"no {name}").mkdir()
    (tmp_path / f"no {name}" / "b.png").touch()
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == [f"no {name}/b.png"]


def test_another_file_of_the_same_name_size_and_time_is_another_version(tmp_path: Path) -> None:
    """As where `cp -p` writes it, or a disk counts in steps of two seconds."""
    photo = tmp_path / "a.bmp"
    photo.write_bytes(b"1")
    os.utime(photo, ns=(5, 5))
    versions = [version_of(photo)]
    for content in (b"2", b"3"):
        time.sleep(0.02)  # the kernel's clock ticks a hundred times a second or more
        photo.write_bytes(content)
        os.utime(photo, ns=(5, 5))
        versions.append(version_of(photo))
    (tmp_path / "b.bmp").write_bytes(b"4")
    os.utime(tmp_path / "b.bmp", ns=(5, 5))
    (tmp_path / "b.bmp").rename(photo)
    versions.append(version_of(photo))
    assert {version[:2] for version in versions} == {(1, 5)}
    assert len(set(versions)) == 4
    assert versions[0].inode == versions[1].inode != versions[3].inode


def test_a_photo_with_a_row_is_asked_for_once(tmp_path: Path) -> None:
    asked = []

    def has_row(name: str, version: Version) -> bool:
        asked.append(name)
        return True

    (tmp_path / "a.png").touch()
    arrivals = Arrivals(tmp_path, has_row, settle=0.0)
    for second in range(3):
        assert arrivals.list_new(float(second)) == []
    (tmp_path / "a.png").write_bytes(b"1")
    arrivals.list_new(3.0)
    (tmp_path / "a.png").unlink()
    arrivals.list_new(4.0)
    assert asked == ["a.png", "a.png"]
    assert arrivals._done == {}


def test_a_photo_that_vanishes_and_one_that_never_ends_are_told_once(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path, nothing_known, settle=1.0, patience=3.0)
    (tmp_path / "gone.png").touch()
    assert arrivals.list_new(0.0) == []
    (tmp_path / "gone.png").unlink()
    found = []
    for second in range(1, 8):
        (tmp_path / "slow.png").write_bytes(b"x" * second)
        found += arrivals.list_new(float(second))
    assert [(str(one.file.relative), one.problem) for one in found] == [
        ("gone.png", "vanished before it was complete"),
        ("slow.png", "still changes after 3 s"),
    ]
    assert [(str(one.file.relative), one.problem) for one in arrivals.list_new(8.0)] == [("slow.png", "")]


def test_a_folder_that_disappears_takes_no_photo_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").touch()
    arrivals = Arrivals(folder, nothing_known, settle=1.0)
    assert arrivals.list_new(0.0) == []
    folder.rename(tmp_path / "away")
    assert arrivals.list_new(5.0) == []
    assert not arrivals.present
    (tmp_path / "away").rename(folder)
    assert names(arrivals.list_new(6.0)) == ["a.png"]
    assert arrivals.present


def test_a_link_to_nothing_is_given_out_to_be_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["a.png"]
