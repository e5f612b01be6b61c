"""Frames of video files, cameras and network streams, one after the other, each with its time. None is kept.

A file is read from its first frame to its last. A camera or a stream is read by a thread of its own, which holds its
newest frame alone: one that nobody has taken when the next one comes is left out.
"""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong with a video stands in its row
import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.image_files import VIDEO_SUFFIXES, ImageFile
from mambaad_cli.files import shown

if "OPENCV_LOG_LEVEL" not in os.environ:
    quiet = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # by the version of OpenCV
    quiet(0)

CAMERA = re.compile(r"camera:(\d+)", re.ASCII)
STREAM = re.compile(r"(rtsps?|https?)://", re.IGNORECASE)
TIME = "#t="  # between the name of a source and the time of a frame, as in W3C's Media Fragments
ANSWER_TIMEOUT = 10_000  # milliseconds, of a stream
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a lost source is opened again
MISSING = 1.0  # seconds that may lack at the end of a video before it counts as truncated, or this share of it:
MISSING_SHARE = 0.05
MAX_WAITING = 3  # of one camera: a frame, a loss, and a frame after it
LOOK = 0.2  # seconds between two looks at whether to stop

Capture: TypeAlias = Any  # cv2.VideoCapture, or what behaves like one


@dataclass(frozen=True)
class Source:
    """A video file, a camera or a stream."""

    given: str  # as it was typed; it may hold a password
    name: str  # as rows and messages have it

    @property
    def live(self) -> bool:
        """Whether it has no end: a camera or a stream."""
        return is_live(self.given)

    @property
    def path(self) -> Path:
        """Of a file; a camera or a stream has none."""
        return Path() if self.live else Path(self.given)


class Frame(NamedTuple):
    """One frame, or what went wrong with its source."""

    source: Source
    time: str = ""  # in a video 00:00:01.240, of a camera in UTC; empty where the error is not of one frame
    picture: np.ndarray | None = None  # (h, w, 3) RGB, uint8
    error: str = ""

    @property
    def file(self) -> ImageFile:
        """What a row calls it."""
        name = f"{self.source.name}{TIME}{self.time}" if self.time else self.source.name
        if self.source.live:
            return ImageFile(Path(), Path(), "", name)
        return ImageFile(self.source.path, Path(self.source.path.name), "", name)


def source_of(file: ImageFile) -> str:
    """The name of the source that a frame is of.

    >>> source_of(ImageFile(Path("a.mp4"), Path("a.mp4"), "", "a.mp4#t=00:00:01.240"))
    'a.mp4'
    """
    return file.frame.rpartition(TIME)[0] or file.frame


def rate_of(source: Source) -> float | None:
    """How many frames a second a video file says that it has; None where it does not say it, and of a camera."""
    if source.live or not source.path.is_file():
        return None
    capture = opened(source)
    try:
        return _positive(capture.get(cv2.CAP_PROP_FPS)) or None
    finally:
        capture.release()


def is_live(given: str) -> bool:
    return bool(CAMERA.fullmatch(given) or STREAM.match(given))


def is_source(given: str) -> bool:
    """Whether something typed names a video file, a camera or a stream, not photos. A folder never does.

    >>> [is_source(given) for given in ("camera:0", "0", "rtsp://line3/1", "a.MP4", "a.png")]
    [True, False, True, True, False]
    """
    return is_live(given) or (given.lower().endswith(VIDEO_SUFFIXES) and not Path(given).is_dir())


def name_of(given: str) -> str:
    """A source as rows and messages have it: an address without user, password and query, which may hold a secret.

    >>> name_of("rtsp://user:secret@line3:554/stream?token=1"), name_of("parts/a.mp4")
    ('rtsp://line3:554/stream', 'parts/a.mp4')
    """
    if not STREAM.match(given):
        return given
    try:
        parts = urlsplit(given)
    except ValueError:
        raise MambaADError("an address of a stream cannot be read: expected rtsp://HOST/PATH or http://…") from None
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and _may_be_password(parts.netloc):
        raise MambaADError(
            "an address of a stream cannot be read: write / # ? of a password as %2F %23 %3F, and @ of a path as %40"
        )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _may_be_password(netloc: str) -> bool:
    """Whether what stands after the last colon, before the path, may begin a password: it is of no host with a port.

    >>> [_may_be_password(netloc) for netloc in ("user:pa", "user:12", "user:pw@line3:554", "line3", "[::1]:80")]
    [True, True, False, False, False]
    """
    user, _, host = netloc.rpartition("@")
    _, colon, port = host.rpartition("]")[2].rpartition(":")
    numbered = port.isascii() and port.isdecimal()
    return bool(colon) and not (numbered and (user or host.startswith("[")))


def sources_among(given: Sequence[str]) -> list[Source]:
    """The videos, cameras and streams that were typed, each once; none where only photos were.

    Addresses that differ in nothing that rows may show are numbered. Raises MambaADError where there are photos, too.
    """
    chosen = list(dict.fromkeys(one for one in given if is_source(one)))
    others = [one for one in given if not is_source(one)]
    if chosen and others:
        raise MambaADError(f"{name_of(chosen[0])} and {shown(others[0])}: score videos and photos in two runs")
    seen: Counter[str] = Counter()
    found = []
    for one in chosen:
        name = name_of(one)
        seen[name] += 1
        found.append(Source(one, f"{name} ({seen[name]})" if seen[name] > 1 else name))
    return found


def opened(source: Source) -> Capture:
    """A capture of OpenCV, which may have failed to open."""
    if camera := CAMERA.fullmatch(source.given):
        return cv2.VideoCapture(int(camera[1]))
    if source.live:
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, ANSWER_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, ANSWER_TIMEOUT]
        return cv2.VideoCapture(source.given, cv2.CAP_FFMPEG, timeouts)
    # an absolute path, because FFmpeg takes what stands before a colon for the name of a protocol
    return cv2.VideoCapture(str(source.path.absolute()), cv2.CAP_FFMPEG)


def frames_of(
    sources: Sequence[Source], fps: float | None, stopping: Callable[[], bool]
) -> Generator[Frame, None, None]:
    """The frames of videos, one video after the other; then those of cameras and streams, side by side, without end.

    fps: how many frames a second; None: all of a video, and of a camera as many as are taken.
    stopping: is asked again and again, whether to end. Raises MambaADError for a camera that cannot be opened.
    """
    live = [source for source in sources if source.live]
    follower = Follower(live, fps) if live else None
    try:
        for source in sources:
            if not source.live:
                yield from frames_of_file(source, fps, stopping)
        if follower is not None:
            yield from follower.frames(stopping)
    finally:
        if follower is not None:
            follower.close()


class Pace:
    """Which frames are taken, so that there are `fps` a second: the first one in each of these parts of a second.

    >>> pace = Pace(2)
    >>> [seconds for seconds in (0.0, 0.25, 0.5, 0.75, 1.0) if pace.due(seconds)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, fps: float | None) -> None:
        self.fps, self._last = fps, -1

    def due(self, seconds: float) -> bool:
        if self.fps is None:
            return True
        part = int(seconds * self.fps + 1e-6)
        if part == self._last:
            return False
        self._last = part
        return True


# ---- a file ----


def frames_of_file(
    source: Source, fps: float | None, stopping: Callable[[], bool], open_capture: Callable[[Source], Capture] = opened
) -> Iterator[Frame]:
    """The frames of a video. What is wrong with it comes as a frame without a picture."""
    if not source.path.is_file():
        yield Frame(source, error="is a folder" if source.path.is_dir() else "no such file")
        return
    capture = open_capture(source)
    try:
        if not capture.isOpened():
            yield Frame(source, error="damaged, or of a kind that OpenCV does not decode")
            return
        rate = _positive(capture.get(cv2.CAP_PROP_FPS))
        claimed = _positive(capture.get(cv2.CAP_PROP_FRAME_COUNT)) / rate if rate else 0.0
        pace, number, seconds = Pace(fps), 0, 0.0
        while not stopping() and capture.grab():
            seconds = _seconds(capture, number, rate, seconds)
            number += 1
            if pace.due(seconds):
                yield _retrieved(capture, source, clock(seconds))
        if stopping():
            return
        read = seconds + 1 / rate if number and rate else 0.0
        if not number:
            yield Frame(source, error="holds no frames")
        elif claimed - read > max(MISSING, MISSING_SHARE * claimed):
            yield Frame(source, error=f"truncated or damaged: it ends after {clock(read)} of {clock(claimed)}")
    finally:
        capture.release()


def _positive(number: float) -> float:
    """A number that a container tells; 0 where it tells none, or what cannot be."""
    return number if 0 < number < 1e9 else 0.0


def _seconds(capture: Capture, number: int, rate: float, before: float) -> float:
    """When the frame that was just taken is shown. Where the video does not tell it, its number does."""
    told = _positive(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
    return told if told > before or not rate else number / rate


def clock(seconds: float) -> str:
    """
    >>> clock(1.24), clock(3725)
    ('00:00:01.240', '01:02:05.000')
    """
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{rest:03}"


def _retrieved(capture: Capture, source: Source, moment: str) -> Frame:
    try:
        there, picture = capture.retrieve()
    except cv2.error:
        there, picture = False, None
    if not there or picture is None:
        return Frame(source, moment, error="damaged: the frame cannot be decoded")
    return Frame(source, moment, cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB if picture.ndim == 2 else cv2.COLOR_BGR2RGB))


# ---- cameras and streams ----


class Follower:
    """Follows cameras and streams, each in a thread of its own, and opens one again that was lost.

    Raises MambaADError where one of them cannot be opened at the start.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        fps: float | None,
        open_capture: Callable[[Source], Capture] = opened,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.sources, self.fps, self.open_capture, self.first_pause = sources, fps, open_capture, first_pause
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._waiting: list[list[Frame]] = [[] for _ in sources]  # of each source, until they are taken
        self._failure: Exception | None = None
        captures: list[Capture] = []
        try:
            for source in sources:
                captures.append(open_capture(source))
                _check_live(source, captures[-1])
        except BaseException:
            for capture in captures:
                capture.release()
            raise
        work = [(place, capture) for place, capture in enumerate(captures)]
        self._threads = [threading.Thread(target=self._work, args=one, daemon=True) for one in work]
        for thread in self._threads:
            thread.start()

    def frames(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[Frame]:
        """The newest frame of each source in turn, once; and a frame without a picture when a source was lost."""
        place = 0
        while not stopping():
            with self._changed:
                self._changed.wait_for(self._anything, LOOK)
                if self._failure is not None:
                    raise self._failure
                turn = [(place + step) % len(self.sources) for step in range(len(self.sources))]
                place, frame = next(((one, frame) for one in turn if (frame := self._taken(one))), (place, None))
            if frame is not None:
                place += 1
                yield frame
                del frame  # nobody waits for the next one with this one in hand

    def close(self) -> None:
        """Let the threads end. One that waits for a camera ends when that answers."""
        self._ending.set()
        until = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _anything(self) -> bool:
        return self._failure is not None or any(self._waiting)

    def _taken(self, place: int) -> Frame | None:
        return self._waiting[place].pop(0) if self._waiting[place] else None

    def _put(self, place: int, frame: Frame) -> None:
        """Let a frame wait, in the place of an older one; a loss stands between the frames before it and after it."""
        with self._changed:
            waiting = self._waiting[place]
            if waiting and not waiting[-1].error and not frame.error:
                waiting.pop()
            self._waiting[place] = [*waiting, frame][-MAX_WAITING:]
            self._changed.notify_all()

    def _work(self, place: int, capture: Capture) -> None:
        try:
            self._follow(place, capture)
        except Exception as error:  # it is raised where frames are taken
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _follow(self, place: int, capture: Capture) -> None:
        source, pace, pause, came = self.sources[place], Pace(self.fps), self.first_pause, True
        try:
            while not self._ending.is_set():
                if capture.isOpened() and capture.grab():
                    pause, came = self.first_pause, True
                    if pace.due(time.monotonic()):
                        self._put(place, _retrieved(capture, source, _now()))
                    continue
                if came:
                    came = False
                    self._put(place, Frame(source, _now(), error="lost: no frames come any more"))
                capture.release()
                if self._ending.wait(pause):
                    return
                pause = min(2 * pause, LONGEST_PAUSE)
                capture = self.open_capture(source)
        finally:
            capture.release()


def _check_live(source: Source, capture: Capture) -> None:
    if not capture.isOpened():
        what = "no such camera, or another program has it" if CAMERA.fullmatch(source.given) else "no stream comes"
        raise MambaADError(f"cannot open {shown(source.name)}: {what}")
    if source.given.lower().startswith("http") and _positive(capture.get(cv2.CAP_PROP_FRAME_COUNT)):
        raise MambaADError(f"{shown(source.name)} is a video with an end, not a stream: download it, and name the file")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
