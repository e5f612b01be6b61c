import itertools
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.video import Follower, Frame, Source, frames_of, sources_among
from mambaad_cli.inspection.frames import confirmed, predict_frames
from mambaad_cli.inspection.overlay_video import OverlayVideo, VideoOptions, write_overlay_videos
from mambaad_cli.inspection.overlays import colour_scale, framed_overlay
from mambaad_cli.inspection.predict import predict, predict_images
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.rows import row
from tests.conftest import picture, with_products, with_scores
from tests.data.videos import FakeCamera, decoded, grey, write_video

VIDEO = Source("a.mp4", "a.mp4")


def never() -> bool:
    return False


def scored(model: FittedModel, path: Path, fps: float | None = None, **options: object) -> list[Prediction]:
    frames = frames_of(sources_among([str(path)]), fps, never)
    return list(predict_frames(model.scorer, frames, PredictOptions(**options)))  # type: ignore[arg-type]


# ---- scores ----


def test_a_frame_scores_as_its_picture_does(tiny_model: FittedModel, tmp_path: Path) -> None:
    path = write_video(tmp_path / "nut" / "a.mp4", [picture(i) for i in range(11)])
    pictures = decoded(path)
    assert len(pictures) == 11
    expected = predict_images(tiny_model.scorer, pictures, PredictOptions("nut"))
    found = scored(tiny_model, path)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], rel=1e-5)
    for i, rgb in enumerate(pictures):
        images.write(tmp_path / "photos" / "nut" / f"{i}.png", rgb)
    files = images.find([tmp_path / "photos"])
    assert [one.score for one in found] == pytest.approx([one.score for one in predict(tiny_model.scorer, files)], 1e-5)


def test_a_row_names_the_video_and_the_time_and_its_folder_names_the_product(
    tiny_model: FittedModel, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "bolt" / "a.mp4", [picture(i) for i in range(4)])
    rows = [row(one) for one in scored(tiny_model, path, fps=5)]
    assert [one["path"] for one in rows] == [f"{path}#t=00:00:00.000", f"{path}#t=00:00:00.200"]
    assert {one["class"] for one in rows} == {"bolt"}


def test_an_unreadable_video_is_an_error_between_the_others(tiny_model: FittedModel, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [picture(0)])
    (tmp_path / "b.mp4").write_text("text")
    frames = frames_of(sources_among([str(tmp_path / name) for name in ("b.mp4", "a.mp4")]), None, never)
    error, good = predict_frames(tiny_model.scorer, frames, PredictOptions("nut"))
    assert (error.verdict, error.file.name) == ("error", str(tmp_path / "b.mp4"))
    assert error.error == "damaged, or of a kind that OpenCV does not decode"
    assert good.score is not None


def test_frames_of_a_camera_are_judged_one_by_one(tiny_model: FittedModel) -> None:
    """The prediction is there before the next frame is asked for, whatever the batch."""
    asked = 0

    def frames() -> Iterator[Frame]:
        nonlocal asked
        while True:
            asked += 1
            yield Frame(Source("camera:0", "camera:0"), "2026", picture(asked))

    predictions = predict_frames(tiny_model.scorer, frames(), PredictOptions("nut", batch=8), live=True)
    for count in range(1, 4):
        assert next(predictions).score is not None
        assert asked == count


def test_a_camera_whose_photos_have_masks_of_their_own_is_refused(tiny_model: FittedModel) -> None:
    model = with_products(tiny_model, replace(tiny_model.products["nut"], own_masks=True))
    with pytest.raises(MambaADError, match="a camera has no mask of its own"):
        list(predict_frames(model.scorer, [Frame(VIDEO, "", picture())], PredictOptions(), live=True))


def test_no_more_frames_live_than_a_few_batches_however_long_a_video_is(tiny_model: FittedModel) -> None:
    alive, most, count = set(), 0, 300

    def frames() -> Iterator[Frame]:
        nonlocal most
        for number in range(count):
            rgb = picture(number, 40, 40)
            alive.add(number)
            weakref.finalize(rgb, alive.discard, number)
            most = max(most, len(alive))
            frame = Frame(VIDEO, str(number), rgb)
            del rgb
            yield frame
            del frame

    for _ in predict_frames(tiny_model.scorer, frames(), PredictOptions("nut", batch=4, workers=2)):
        pass
    assert most < 30


# ---- frames in a row ----


def predictions(*verdicts: str, source: str = "a.mp4") -> list[Prediction]:
    frames = [Frame(Source(source, source), f"{i:02}") for i in range(len(verdicts))]
    return [
        Prediction(frame.file, "nut", 5.0, 3.0, verdict, "") for frame, verdict in zip(frames, verdicts, strict=True)
    ]


def test_a_frame_is_anomalous_once_so_many_in_a_row_are() -> None:
    A, G = "anomalous", "good"
    found = list(confirmed(predictions(A, A, G, A, A, A, A, "error", A), 3))
    assert [one.verdict for one in found] == ["review"] * 2 + [G] + ["review"] * 2 + [A, A, "error", "review"]
    assert found[1].warning == "above the threshold in 2 of 3 frames in a row"
    assert [one.warning for one in found if one.verdict != "review"] == [""] * 4
    assert {(one.score, one.threshold) for one in found} == {(5.0, 3.0)}


def test_each_camera_has_its_own_row_of_frames() -> None:
    first, second = (predictions(*["anomalous"] * 2, source=name) for name in ("camera:0", "camera:1"))
    mixed = list(itertools.chain(*zip(first, second, strict=True)))
    assert [one.verdict for one in confirmed(mixed, 2)] == ["review", "review", "anomalous", "anomalous"]


def test_one_frame_in_a_row_changes_nothing() -> None:
    given = predictions("anomalous", "good", "review", "unknown")
    assert list(confirmed(given, 1)) == given


# ---- overlay videos ----


def test_an_overlay_video_shows_the_overlay_of_each_frame(tiny_model: FittedModel, tmp_path: Path) -> None:
    path = write_video(tmp_path / "nut" / "a.mp4", [picture(i) for i in range(10)])
    found = scored(tiny_model, path, maps=True)
    counts = write_overlay_videos(found, sources_among([str(path)]), tiny_model.scorer, tmp_path / "maps")
    assert sum(counts.values()) == 10
    shown = decoded(tmp_path / "maps" / "a.overlay.mp4")
    scale = colour_scale(tiny_model.products, "nut")
    overlays = [framed_overlay(one, scale) for one in found]
    assert [one.shape for one in shown] == [one.shape for one in overlays]
    for i, frame in enumerate(shown):  # nearer to its own overlay than to any other, and than to the plain frame
        distances = [np.abs(frame.astype(float) - one).mean() for one in overlays]
        assert int(np.argmin(distances)) == i
        plain = found[i].picture
        assert plain is not None
        if not np.array_equal(plain, overlays[i]):
            assert distances[i] < np.abs(frame.astype(float) - plain).mean()
    assert [file.name for file in (tmp_path / "maps").iterdir()] == ["a.overlay.mp4"]


def test_an_overlay_video_takes_the_time_that_the_video_took(tmp_path: Path) -> None:
    source = sources_among([str(write_video(tmp_path / "a.mp4", [grey(9)], fps=25))])[0]
    camera = Source("camera:0", "camera:0")
    assert VideoOptions().rate(source) == VideoOptions(60).rate(source) == 25
    assert VideoOptions(5).rate(source) == VideoOptions(5).rate(camera) == 5
    assert VideoOptions().rate(camera) == 10


def test_what_an_overlay_video_has_stays_when_it_is_stopped(tiny_model: FittedModel, tmp_path: Path) -> None:
    path = write_video(tmp_path / "nut" / "a.mp4", [picture(i) for i in range(3)])
    found = scored(tiny_model, path, maps=True)

    def stopped() -> Iterator[Prediction]:
        yield from found
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay_videos(stopped(), sources_among([str(path)]), tiny_model.scorer, tmp_path / "maps")
    assert len(decoded(tmp_path / "maps" / "a.overlay.mp4")) == 3


def test_frames_of_odd_or_other_sizes_fit_into_one_video(tmp_path: Path) -> None:
    video = OverlayVideo(tmp_path / "new" / "a.mp4", 10)
    for height, width in ((41, 63), (80, 100)):
        video.write(grey(100, height, width))
    video.close()
    assert [one.shape for one in decoded(tmp_path / "new" / "a.mp4")] == [(42, 64, 3)] * 2


def test_an_overlay_video_never_takes_the_place_of_a_video(tiny_model: FittedModel, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [grey(9)])
    (tmp_path / "a.overlay.mp4").symlink_to(path)
    with pytest.raises(MambaADError, match="is one of the videos"):
        write_overlay_videos([], sources_among([str(path)]), tiny_model.scorer, tmp_path)


def test_the_rows_of_regions_are_those_of_the_frames(tiny_model: FittedModel, tmp_path: Path) -> None:
    path = write_video(tmp_path / "nut" / "a.mp4", [picture(i) for i in range(3)])
    model = with_scores(tiny_model, {"nut": [0.1, 0.2]})
    found = scored(model, path, maps=True, min_area=0)
    options = VideoOptions(regions=True)
    write_overlay_videos(found, sources_among([str(path)]), model.scorer, tmp_path / "maps", options)
    rows = [json.loads(line) for line in (tmp_path / "maps" / "regions.jsonl").read_text().splitlines()]
    assert [one["path"] for one in rows] == [one.file.name for one in found]
    assert all(one["regions"] for one in rows)


def test_a_lost_camera_has_an_error_row_and_no_frame_in_the_video(tiny_model: FittedModel, tmp_path: Path) -> None:
    captures = iter([FakeCamera(iter([90])), FakeCamera(itertools.repeat(90))])
    (camera,) = sources_among(["camera:0"])
    following = Follower([camera], None, lambda source: next(captures), first_pause=0.0)
    frames = itertools.islice(following.frames(), 3)
    options = PredictOptions("nut", maps=True)
    unreadable: list[Prediction] = []
    found = predict_frames(tiny_model.scorer, frames, options, live=True)
    counts = write_overlay_videos(found, [camera], tiny_model.scorer, tmp_path, on_unreadable=unreadable.append)
    following.close()
    assert counts["error"] == len(unreadable) == 1
    assert unreadable[0].error == "lost: no frames come any more"
    assert len(decoded(tmp_path / "camera_0.overlay.mp4")) == 2
