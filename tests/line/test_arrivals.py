import os
from pathlib import Path

from mambaad_cli.line.arrivals import Arrival, Arrivals, Version


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
    for name, time in (("10.png", 7), ("9.png", 7), ("z/1.JPG", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(time, time))
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["z/1.JPG", "9.png", "10.png"]


def test_hidden_files_other_files_and_loops_of_links_are_left_out(tmp_path: Path) -> None:
    for name in (".a.png", "a.txt", "a.png.part", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(Arrivals(tmp_path, nothing_known, settle=0.0).list_new(0.0)) == ["b.png"]


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
