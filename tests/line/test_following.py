import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data import video
from mambaad_cli.data.loading import Input
from mambaad_cli.data.video import sources_among
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.scorer import Judgement
from mambaad_cli.line import following
from mambaad_cli.line.following import Following
from mambaad_cli.line.watching import WatchOptions
from tests.conftest import picture, with_scores
from tests.data.videos import FakeCamera, write_video

NUT = PredictOptions("nut", batch=4)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def followed(tiny_model: FittedModel, tmp_path: Path) -> Callable[..., tuple["Counter[str]", list[str]]]:
    """Follow a source into rows.jsonl; the verdicts, and what was delivered. stop_after: so many frames."""

    def run(given: str, stop_after: int = 0, model: FittedModel = tiny_model, **options: Any) -> Any:
        (source,) = sources_among([given])
        following = Following(model.scorer, source, tmp_path / "rows.jsonl", WatchOptions(NUT, **options))
        record = following._record

        def recorded(predictions: Any) -> None:
            record(predictions)
            following.stopping = 0 < stop_after <= sum(following.counts.values())

        following._record = recorded  # type: ignore[method-assign]
        try:
            return following.run(), following.journal.ledger.recorded
        finally:
            following.close()

    return run


def test_each_frame_of_a_video_gets_one_row_also_when_it_is_watched_again(
    followed: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(i) for i in range(10)])
    followed(str(path), stop_after=4)
    begun = rows(tmp_path / "rows.jsonl")
    assert 4 <= len(begun) < 10
    followed(str(path))
    names = [row["path"] for row in rows(tmp_path / "rows.jsonl")]
    assert names == [f"{path}#t=00:00:00.{i}00" for i in range(10)]
    assert followed(str(path)) == (Counter(), 10)
    assert rows(tmp_path / "rows.jsonl")[: len(begun)] == begun


def test_a_video_that_is_typed_in_another_way_gets_no_second_rows(
    followed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "in" / "a.mp4", [picture(i) for i in range(3)])
    assert followed(str(path))[1] == 3
    (tmp_path / "link.mp4").symlink_to(path)
    monkeypatch.chdir(path.parent)
    for given in ("a.mp4", "./a.mp4", "../in/a.mp4", "../link.mp4"):
        assert followed(given) == (Counter(), 3), given


def test_rows_of_a_ledger_that_knows_frames_as_they_were_typed_are_not_written_again(
    followed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "in" / "a.mp4", [picture(i) for i in range(3)])
    with monkeypatch.context() as before:
        before.setattr(following, "_ledger_name", lambda file: file.name)
        followed(str(path))
    assert followed(str(path)) == (Counter(), 3)


def test_frames_of_a_camera_have_rows_until_it_is_stopped_and_after_it_starts_again(
    followed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video.Follower.__init__, "__defaults__", (lambda source: FakeCamera(itertools.repeat(90)), 0.0))
    for _ in range(2):
        followed("camera:0", stop_after=3)
    found = rows(tmp_path / "rows.jsonl")
    assert len(found) == 6
    assert all(row["path"].startswith("camera:0#t=20") for row in found)
    with pytest.raises(MambaADError, match="choose another --output"):
        followed("camera:1", stop_after=3)


def test_anomalous_frames_have_overlays_once_they_are_so_in_a_row(
    followed: Callable[..., Any], tiny_model: FittedModel, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(i) for i in range(4)])
    model = with_scores(tiny_model, {"nut": [0.1, 0.2]})
    counts, _ = followed(str(path), model=model, maps=tmp_path / "maps", in_a_row=3, fps=10)
    assert counts == {"review": 2, "anomalous": 2}
    names = sorted(file.name for file in (tmp_path / "maps").iterdir())
    assert [name.partition("a.mp4")[2] for name in names] == ["_t_00_00_00.200.png", "_t_00_00_00.300.png"]


class Failing:
    """A scorer that fails at black frames."""

    side_by_side = 1

    def __init__(self, model: FittedModel) -> None:
        self.scorer = model.scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def expecting(self, images: int | None) -> "Failing":
        return self

    def judge(self, images: Sequence[Input], told: Sequence[str], distances: bool = False) -> list[Judgement]:
        if any(float(image.pixels.max()) < 0.1 for image in images):
            raise RuntimeError("black")
        return self.scorer.judge(images, told, distances)


def follow_failing(model: FittedModel, given: str, output: Path) -> "Counter[str]":
    (source,) = sources_among([given])
    scorer: Any = Failing(model)
    following = Following(scorer, source, output, WatchOptions(NUT))
    try:
        return following.run()
    finally:
        following.close()


def test_a_frame_at_which_the_model_fails_is_an_error_and_the_others_are_scored(
    tiny_model: FittedModel, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(i) * (i != 5) for i in range(8)])
    counts = follow_failing(tiny_model, str(path), tmp_path / "rows.jsonl")
    found = rows(tmp_path / "rows.jsonl")
    assert (len(found), counts["error"]) == (8, 1)
    assert [row["error"] for row in found] == 5 * [""] + ["cannot be scored: RuntimeError: black"] + 2 * [""]
    assert found[5]["path"] == f"{path}#t=00:00:00.500"


@pytest.mark.parametrize("live", [False, True])
def test_a_model_that_fails_at_frame_after_frame_ends_the_watch(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr(video.Follower.__init__, "__defaults__", (lambda source: FakeCamera(itertools.repeat(0)), 0.0))
    path = write_video(tmp_path / "a.mp4", [picture(i) * (i == 1) for i in range(30)])
    with pytest.raises(MambaADError, match="frames in a row cannot be scored: cannot be scored: RuntimeError: black"):
        follow_failing(tiny_model, "camera:0" if live else str(path), tmp_path / "rows.jsonl")
    assert len(rows(tmp_path / "rows.jsonl")) == (16 if live else 20)  # by the batch


def test_a_model_that_was_replaced_scores_the_frames_that_come(
    followed: Callable[..., Any], tiny_model: FittedModel, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", [picture(i) for i in range(8)])
    others = iter([None, with_scores(tiny_model, {"nut": [1e6, 2e6]}).scorer])
    counts, _ = followed(str(path), model=with_scores(tiny_model, {"nut": [0.1, 0.2]}), renewed=lambda: next(others))
    assert counts == {"anomalous": 4, "good": 4}
