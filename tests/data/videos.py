"""Small videos and a stream that tests make themselves, and a camera that is none."""

import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.conftest import picture


def grey(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def write_video(path: Path, pictures: Sequence[np.ndarray], fps: float = 10.0, codec: str = "mp4v") -> Path:
    """A video of RGB pictures (h, w, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for rgb in pictures:
        writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """All frames of a video in RGB, read by OpenCV alone."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while True:
        there, bgr = capture.read()
        if not there:
            return frames
        frames.append(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


class FakeCamera:
    """Behaves as cv2.VideoCapture does: it gives these levels of grey, then it is lost. None: it cannot be opened."""

    def __init__(self, levels: Iterator[int] | None) -> None:
        self.levels, self.level, self.released = levels, 0, False

    def isOpened(self) -> bool:
        return self.levels is not None and not self.released

    def grab(self) -> bool:
        assert self.levels is not None
        level = next(self.levels, None)
        self.level = level or 0
        return level is not None

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, grey(self.level)

    def get(self, what: int) -> float:
        return -1.0

    def release(self) -> None:
        self.released = True


@contextmanager
def mjpeg_stream(frames: int) -> Iterator[str]:
    """The address of a camera's web server on this machine: each visitor gets so many JPEG pictures, then its end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for number in range(frames):
                _, jpeg = cv2.imencode(".jpg", picture(number, 48, 64))
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + jpeg.tobytes() + b"\r\n")
                except OSError:  # the visitor has gone
                    return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/video.mjpg?token=1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
