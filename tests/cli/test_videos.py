"""score, map and watch on videos, cameras and streams."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mambaad_cli.data import images, video
from tests.cli.test_commands import model, run  # noqa: F401
from tests.conftest import picture
from tests.data.videos import decoded, mjpeg_stream, write_video

pytestmark = pytest.mark.usefixtures("model")


@pytest.fixture
def belt(tmp_path: Path) -> Path:
    return write_video(tmp_path / "nut" / "belt.mp4", [picture(i) for i in range(10)])


def test_score_prints_a_row_a_frame(belt: Path) -> None:
    result = run("score", belt, "--csv", "--fps", 5)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["path"] for row in rows] == [f"{belt}#t=00:00:00.{i}00" for i in (0, 2, 4, 6, 8)]
    assert {row["class"] for row in rows} == {"nut"}


def test_score_prints_a_table_of_a_video_and_a_report(belt: Path, tmp_path: Path) -> None:
    result = run("score", belt, "--report", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "10 images: " in result.stdout
    assert "belt.mp4#t=00:00:00.300" in (tmp_path / "report.html").read_text()


def test_frames_in_a_row_are_needed_for_a_failure(belt: Path) -> None:
    lowered = ("score", belt, "--class", "nut", "--json", "--fail-on-anomaly")
    verdicts = [json.loads(line)["verdict"] for line in run(*lowered).stdout.splitlines()]
    longest = max((len(list(same)) for kind, same in itertools.groupby(verdicts) if kind == "anomalous"), default=0)
    assert run(*lowered, "--frames", longest + 1).exit_code == 0
    assert longest == 0 or run(*lowered, "--frames", longest).exit_code == 3


def test_an_unreadable_video_ends_with_status_1(belt: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.avi").write_text("text")
    result = run("score", belt, tmp_path / "bad.avi", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["error"] == "damaged, or of a kind that OpenCV does not decode"


def test_map_writes_an_overlay_video(belt: Path, tmp_path: Path) -> None:
    result = run("map", belt, "-o", tmp_path / "maps", "--fps", 5)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"5 frames with their overlay in {tmp_path / 'maps'}\n"
    assert len(decoded(tmp_path / "maps" / "belt.overlay.mp4")) == 5


def test_watch_of_a_video_ends_with_it(belt: Path, tmp_path: Path) -> None:
    result = run("watch", belt, "-o", tmp_path / "rows.csv", "--class", "nut", "--once")
    assert result.exit_code == 0, result.output
    assert "10 frames: " in result.stderr
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 11
    assert "10 frames have a row already" in run("watch", belt, "-o", tmp_path / "rows.csv", "--class", "nut").stderr


def test_watch_of_a_stream_appends_rows_until_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = video.Follower.frames

    def three(follower: video.Follower, *stopping: object) -> Iterator[video.Frame]:
        return itertools.islice(taken(follower), 3)

    monkeypatch.setattr(video.Follower, "frames", three)
    with mjpeg_stream(frames=60) as address:
        result = run("watch", address, "-o", tmp_path / "rows.jsonl", "--class", "nut")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 3
    assert all(row["path"].startswith("http://127.0.0.1:") for row in rows)
    assert "secret" not in text + result.output
    assert "token" not in text + result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "camera:0"), "a camera has no end"),
        (("score", "camera:0", "--csv", "--report", "r.html"), "a camera has no end"),
        (("score", "nut/belt.mp4", "--csv", "--shard", "1/2"), "not the frames of videos"),
        (("score", "nut", "--fps", "2"), "needs a video, a camera or a stream"),
        (("map", "nut", "-o", "maps", "--frames", "2"), "needs a video, a camera or a stream"),
        (("map", "nut/belt.mp4", "-o", "maps", "--raw", "npy"), "too many"),
        (("watch", "camera:0", "-o", "rows.jsonl", "--once"), "a camera has no end"),
        (("watch", "nut/belt.mp4", "-o", "rows.jsonl", "--move-to", "done"), "not the frames of a video"),
    ],
)
def test_what_cannot_be_wanted_of_videos_is_wrong_usage(words: tuple[str, ...], said: str, belt: Path) -> None:
    result = run(*words, COLUMNS="200")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_video_in_a_folder_is_counted_and_not_scored(belt: Path) -> None:
    images.write(belt.parent / "0.png", picture())
    result = run("score", belt.parent, "--csv")
    assert len(result.stdout.splitlines()) == 2
    assert "1 .mp4 (score, map and watch read a video that is named itself)" in result.stderr
