"""Overlays of frames as videos: one for each video, camera or stream."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.video import Source, rate_of, source_of
from mambaad_cli.files import shown
from mambaad_cli.inspection.overlays import REGIONS, colour_scale, framed_overlay
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.rows import Lines, json_line, json_row
from mambaad_cli.inspection.scorer import Scorer

USUAL_FPS = 10.0  # of the overlay video of a camera whose frames come as fast as they are scored


@dataclass(frozen=True)
class VideoOptions:
    """How overlay videos are written, and what else."""

    fps: float | None = None  # frames a second that are scored; None: all of a video
    regions: bool = False  # a frame around each region, and folder/regions.jsonl with a row for each frame

    def rate(self, source: Source) -> float:
        """How many frames a second the overlay video shows, so that it takes the time that the video took."""
        own = rate_of(source)
        return min(rate for rate in (self.fps, own or self.fps or USUAL_FPS) if rate)


def overlay_paths(sources: Sequence[Source], folder: Path) -> dict[str, Path]:
    """The overlay video of each source by its name; no two are the same, on whatever disk.

    >>> sources = [Source(name, name) for name in ("in/a.mp4", "A.avi", "camera:0", "rtsp://line3/1")]
    >>> [path.as_posix() for path in overlay_paths(sources, Path("maps")).values()]
    ['maps/a.overlay.mp4', 'maps/A_2.overlay.mp4', 'maps/camera_0.overlay.mp4', 'maps/rtsp_line3_1.overlay.mp4']
    """
    paths: dict[str, Path] = {}
    taken: set[str] = set()
    for source in sources:
        stem = plain_name(source.name if source.live else source.path.stem)
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        paths[source.name] = folder / f"{name}.overlay.mp4"
    return paths


def plain_name(name: str) -> str:
    """A name of a file on any system.

    >>> plain_name("camera:0#t=2026-11-28T10:30:42.963Z")
    'camera_0_t_2026-11-28T10_30_42.963Z'
    """
    return re.sub(r"[^\w.-]+", "_", name)


def write_overlay_videos(
    predictions: Iterable[Prediction],
    sources: Sequence[Source],
    scorer: Scorer,
    folder: Path,
    options: VideoOptions | None = None,
    on_unreadable: Callable[[Prediction], None] = lambda prediction: None,
) -> "Counter[str]":
    """Write a video into `folder` for each source, a frame of it for each that was scored; returns the verdicts.

    What was written stays, whatever ends it. Raises MambaADError where an output would overwrite a source.
    """
    options = options or VideoOptions()
    paths = overlay_paths(sources, folder)
    inputs = {os.path.realpath(source.path) for source in sources if not source.live}
    for path in paths.values():
        if os.path.realpath(path) in inputs:
            raise MambaADError(f"{shown(path)} is one of the videos: choose another --output folder")
    counts: Counter[str] = Counter()
    with ExitStack() as stack, Lines(folder / REGIONS) if options.regions else nullcontext() as lines:
        videos = {source.name: OverlayVideo(paths[source.name], options.rate(source)) for source in sources}
        for video in videos.values():
            stack.callback(video.close)
        for prediction in predictions:
            counts[prediction.verdict] += 1
            if lines is not None:
                lines.write(json_line(json_row(prediction, scorer.sha256, regions=True)))
            if prediction.anomaly_map is None or prediction.picture is None:
                on_unreadable(prediction)
                continue
            scale = colour_scale(scorer.products, prediction.class_name)
            videos[source_of(prediction.file)].write(framed_overlay(prediction, scale))
    return counts


class OverlayVideo:
    """A video that grows frame by frame. It has its name once it is closed, and is not there without a frame."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self._half = path.with_name(f".{path.name}")
        self._size = (0, 0)  # width, height
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: np.ndarray) -> None:
        """Add a picture (h, w, 3) RGB of uint8; one of another size than the first is scaled to that.

        Encoders want even sizes: an edge is repeated. Raises MambaADError where the video cannot be written.
        """
        even = cv2.copyMakeBorder(picture, 0, picture.shape[0] % 2, 0, picture.shape[1] % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._size = (even.shape[1], even.shape[0])
            self._writer = self._opened()
        if (even.shape[1], even.shape[0]) != self._size:
            even = cv2.resize(even, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._half.replace(self.path)

    def _opened(self) -> cv2.VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._half.touch()
        except OSError as error:
            raise MambaADError(f"cannot write {shown(self.path)}: {error.strerror}") from error
        writer = cv2.VideoWriter(str(self._half.absolute()), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, self._size)
        if not writer.isOpened():
            self._half.unlink(missing_ok=True)
            raise MambaADError(f"cannot write {shown(self.path)}: this OpenCV writes no MPEG-4 videos")
        return writer
