import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.data import video
from mambaad_cli.data.video import Follower, Frame, Source, frames_of, is_source, name_of, sources_among
from tests.data.videos import FakeCamera, grey, mjpeg_stream, write_video

CAMERA = Source("camera:0", "camera:0")


def never() -> bool:
    return False


def frames(path: Path, fps: float | None = None) -> list[Frame]:
    return list(frames_of(sources_among([str(path)]), fps, never))


def levels(found: list[Frame]) -> list[int]:
    """How bright each frame is, in steps of 10; a codec changes it by less than a half of that."""
    return [round(float(frame.picture.mean()) / 10) * 10 for frame in found if frame.picture is not None]


# ---- what is a source ----


@pytest.mark.parametrize(
    "given", ["camera:0", "camera:12", "rtsp://h/1", "RTSPS://h/1", "http://h/a", "a.mp4", "b/A.MOV"]
)
def test_videos_cameras_and_streams_are_sources(given: str) -> None:
    assert is_source(given)


@pytest.mark.parametrize("given", ["0", "camera:", "camera:x", "camera:0/", "a.png", "ftp://h/a", "incoming"])
def test_folders_photos_and_bare_numbers_are_none(given: str) -> None:
    assert not is_source(given)


def test_a_folder_that_is_named_like_a_video_is_one_of_photos(tmp_path: Path) -> None:
    (tmp_path / "belt.mp4").mkdir()
    assert sources_among([str(tmp_path / "belt.mp4")]) == []


def test_names_hold_no_password_and_no_query_and_differ_all_the_same() -> None:
    given = ["rtsp://a:b@line3:554/cam?channel=1", "rtsp://a:b@line3:554/cam?channel=2"]
    found = sources_among([*given, given[0]])
    assert [one.name for one in found] == ["rtsp://line3:554/cam", "rtsp://line3:554/cam (2)"]
    assert [one.given for one in found] == given
    assert name_of("http://user:p@ss@[::1]:80/x") == "http://[::1]:80/x"


@pytest.mark.parametrize(
    "given",
    [
        "rtsp://user:pa/ss@host/cam",
        "rtsp://user:pa#ss@host/cam",
        "rtsp://user:pa?ss@host/cam",
        "rtsp://user:/pass@host/cam",
        "rtsp://user:12/pass@host/cam",
        "rtsp://user:a@b:c/pass@host/cam",
    ],
)
def test_an_address_that_may_hold_half_a_password_in_its_path_is_refused_without_it(given: str) -> None:
    with pytest.raises(MambaADError) as refused:
        sources_among([given])
    assert str(refused.value) == (
        "an address of a stream cannot be read: write / # ? of a password as %2F %23 %3F, and @ of a path as %40"
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rtsp://user:pa%2Fss@host/cam", "rtsp://host/cam"),
        ("http://host/@line3/live", "http://host/@line3/live"),
        ("http://user:pw@host:80/cam@1", "http://host:80/cam@1"),
        ("http://user:pw@host/cam@1", "http://host/cam@1"),
        ("http://[::1]:80/cam@1", "http://[::1]:80/cam@1"),
        ("http://[::1]/cam@1", "http://[::1]/cam@1"),
    ],
)
def test_an_at_sign_in_a_path_is_no_password(given: str, name: str) -> None:
    assert name_of(given) == name


def test_photos_beside_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MambaADError, match="a.mp4 and b.png: score videos and photos in two runs"):
        sources_among(["a.mp4", "b.png"])


# ---- files ----


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.mov", "mp4v")]
)
def test_all_frames_of_a_video_come_in_order_with_their_times(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, [grey(20 * i) for i in range(12)], codec=codec)
    found = frames(path)
    assert levels(found) == [20 * i for i in range(12)]
    assert [frame.time for frame in found] == [f"00:00:0{i // 10}.{i % 10}00" for i in range(12)]
    assert [frame.file.name for frame in found[:2]] == [f"{path}#t=00:00:00.000", f"{path}#t=00:00:00.100"]
    assert all(frame.picture.shape == (48, 64, 3) for frame in found if frame.picture is not None)


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    (frame,) = frames(write_video(tmp_path / "a.avi", [red], codec="MJPG"))
    assert frame.picture is not None
    assert np.abs(frame.picture.mean((0, 1)) - [200, 0, 0]).max() < 6


@pytest.mark.parametrize(
    ("fps", "expected"), [(5, [0, 2, 4, 6, 8]), (1, [0]), (10, range(10)), (60, range(10)), (2.5, [0, 4, 8])]
)
def test_fps_takes_the_first_frame_of_each_part_of_a_second(tmp_path: Path, fps: float, expected: list[int]) -> None:
    path = write_video(tmp_path / "a.avi", [grey(20 * i) for i in range(10)], codec="MJPG")
    assert levels(frames(path, fps)) == [20 * i for i in expected]


def test_a_video_whose_container_tells_no_times_counts_its_frames(tmp_path: Path) -> None:
    class Timeless(FakeCamera):
        def get(self, what: int) -> float:
            return 4.0 if what == video.cv2.CAP_PROP_FPS else 0.0

    path = tmp_path / "a.mp4"
    path.touch()
    found = list(video.frames_of_file(Source(str(path), "a"), None, never, lambda source: Timeless(iter([9, 9, 9]))))
    assert [frame.time for frame in found] == ["00:00:00.000", "00:00:00.250", "00:00:00.500"]


def test_a_file_that_is_no_video_is_an_error_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 50)
    (tmp_path / "empty.avi").touch()
    named = [str(tmp_path / name) for name in ("text.mp4", "empty.avi", "missing.mkv")]
    found = list(frames_of(sources_among(named), None, never))
    assert [frame.file.name for frame in found] == named
    kind = "damaged, or of a kind that OpenCV does not decode"
    assert [frame.error for frame in found] == [kind, kind, "no such file"]


def test_a_truncated_video_gives_the_frames_that_it_has_and_then_an_error(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.avi", [grey(10 * (i % 20)) for i in range(40)], codec="MJPG")
    content = whole.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: len(content) // 2])
    *good, error = frames(cut)
    assert 0 < len(good) < 30
    assert levels(good) == [10 * (i % 20) for i in range(len(good))]
    assert error.picture is None
    assert error.error == f"truncated or damaged: it ends after 00:00:0{len(good) / 10:.3f} of 00:00:04.000"
    assert not any(frame.error for frame in frames(whole))


def test_a_name_with_a_colon_is_a_file_to_ffmpeg_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "belt.avi", [grey(50)], codec="MJPG").rename(tmp_path / "12:30.avi")
    assert levels(frames(Path("12:30.avi"))) == [50]


def test_no_frame_is_kept_however_long_a_video_is(tmp_path: Path) -> None:
    """Frames are counted while they live: a fake video of 500 frames never has more than two."""
    alive, most = set(), 0

    class Long(FakeCamera):
        def retrieve(self) -> tuple[bool, np.ndarray]:
            return True, np.zeros((4, 4, 3), np.uint8)

    path = tmp_path / "a.mp4"
    path.touch()
    for frame in video.frames_of_file(Source(str(path), "a"), None, never, lambda source: Long(iter(range(1, 501)))):
        assert frame.picture is not None
        key = object()
        alive.add(key)
        weakref.finalize(frame.picture, alive.discard, key)
        most = max(most, len(alive))
    assert most <= 2


def test_decoding_needs_no_torch() -> None:
    code = "import sys, mambaad_cli.data.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- cameras and streams ----


def follower(*openings: Iterator[int] | None, fps: float | None = None) -> Follower:
    """Of one camera that is opened again and again; then it cannot be opened any more."""
    captures = itertools.chain(openings, itertools.repeat(None))
    return Follower([CAMERA], fps, lambda source: FakeCamera(next(captures)), first_pause=0.0)


def step_by_step(*turns: threading.Semaphore) -> Iterator[int]:
    """A camera that gives its next frame when it may, then is lost."""
    for level, turn in enumerate(turns, 1):
        turn.acquire()
        yield 10 * level


def test_a_lost_camera_is_one_error_and_is_opened_again() -> None:
    """It gives a frame, is lost, cannot be opened twice, and comes back."""
    first, second, again = (threading.Semaphore(0) for _ in range(3))
    following = follower(step_by_step(first), None, None, step_by_step(second, again))
    found = following.frames()
    try:
        first.release()
        came, lost = next(found), next(found)
        second.release()
        back = next(found)
    finally:
        again.release()
        following.close()
    assert (levels([came]), levels([back])) == ([10], [10])
    assert (lost.picture, lost.error) == (None, "lost: no frames come any more")
    assert lost.file.name.startswith("camera:0#t=20")
    assert lost.file.name.endswith("Z")


def test_only_the_newest_frame_waits() -> None:
    """While the first frame is scored, three come: the last of them is the next one that is scored."""
    turns = [threading.Semaphore(0) for _ in range(4)]
    following = follower(step_by_step(*turns))
    found = following.frames()
    try:
        turns[0].release()
        first = next(found)
        for turn in turns[1:]:
            turn.release()
        with following._changed:
            following._changed.wait_for(lambda: any(frame.error for frame in following._waiting[0]), 30)
        last, lost = next(found), next(found)
    finally:
        following.close()
    assert (levels([first]), lost.error[:4], levels([last])) == ([10], "lost", [40])


def test_several_cameras_take_turns() -> None:
    endless = {"camera:0": 10, "camera:1": 20}
    sources = sources_among(list(endless))
    following = Follower(sources, None, lambda source: FakeCamera(itertools.repeat(endless[source.given])))
    found = [frame.source.name for frame in itertools.islice(following.frames(), 40)]
    following.close()
    assert set(found) == set(endless)


def test_a_camera_that_is_not_there_at_the_start_is_an_error_and_the_others_are_released() -> None:
    first = FakeCamera(iter([1]))
    captures = iter([first, FakeCamera(None)])
    with pytest.raises(MambaADError, match="cannot open camera:1: no such camera, or another program has it"):
        Follower(sources_among(["camera:0", "camera:1"]), None, lambda source: next(captures))
    assert first.released


def test_what_fails_in_the_thread_of_a_camera_is_raised_where_frames_are_taken() -> None:
    class Broken(FakeCamera):
        def grab(self) -> bool:
            raise RuntimeError("a bug")

    following = Follower([CAMERA], None, lambda source: Broken(iter([1])))
    with pytest.raises(RuntimeError, match="a bug"):
        next(following.frames())
    following.close()


def test_frames_of_a_camera_end_when_they_are_to_stop() -> None:
    cameras: list[FakeCamera] = []

    def opened(source: Source) -> FakeCamera:
        cameras.append(FakeCamera(itertools.repeat(9)))
        return cameras[-1]

    following = Follower([CAMERA], None, opened)
    taken: list[Frame] = []
    for frame in following.frames(lambda: len(taken) >= 3):
        taken.append(frame)
    following.close()
    assert len(taken) == 3
    assert cameras[0].released


def test_a_stream_over_http_is_read_and_its_end_is_a_loss() -> None:
    with mjpeg_stream(frames=30) as address:
        (source,) = sources_among([address])
        following = Follower([source], None)
        try:
            found = list(itertools.takewhile(lambda frame: not frame.error, following.frames()))
        finally:
            following.close()
    assert all(frame.picture is not None and frame.picture.shape == (48, 64, 3) for frame in found)
    host = address.partition("@")[2].partition("?")[0]
    assert source.name == f"http://{host}"


def test_a_stream_that_nobody_sends_says_so_without_the_password() -> None:
    with mjpeg_stream(frames=1) as address:
        pass
    with pytest.raises(MambaADError) as error:
        Follower(sources_among([address]), None)
    assert "no stream comes" in str(error.value)
    assert "secret" not in str(error.value)
