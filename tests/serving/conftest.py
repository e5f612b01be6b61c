"""A server in this process, and one in a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import mambaad_cli
from mambaad_cli.api import FittedModel
from mambaad_cli.data.loading import Input
from mambaad_cli.inspection.scorer import Judgement, Scorer
from mambaad_cli.serving.batching import Batcher, BatchOptions
from mambaad_cli.serving.metrics import Metrics
from tests.conftest import picture

ROOT = Path(mambaad_cli.__file__).parent.parent
LOOPBACK = "http://127.0.0.1"
Answering = Callable[..., Any]  # gives a TestClient


def needs_the_extra() -> None:
    """Skip where the extra `serve` is not installed."""
    for package in ("starlette", "uvicorn", "httpx", "python_multipart"):
        pytest.importorskip(package, reason=f"the extra `serve` is not installed: {package} is missing")


class Watched:
    """A scorer that notes how many images it is given at once, waits where it is told to, and fails at black ones."""

    side_by_side = 1

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.sizes: list[int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def expecting(self, images: int | None) -> "Watched":
        return self

    def judge(self, images: Sequence[Input], told: Sequence[str], distances: bool = False) -> list[Judgement]:
        self.begun.set()
        assert self.may_go_on.wait(60)
        self.sizes.append(len(images))
        if any(float(image.pixels.max()) == 0 for image in images):
            raise RuntimeError("the model fails at black photos")
        return self.scorer.judge(images, told, distances)


@pytest.fixture
def watched(tiny_model: FittedModel) -> Watched:
    return Watched(tiny_model.scorer)


@pytest.fixture
def client(watched: Watched) -> Iterator[Answering]:
    """Start a server in this process; `limits` are fields of Limits, `more` arguments of Batcher."""
    needs_the_extra()
    from starlette.testclient import TestClient

    from mambaad_cli.serving.app import build_app
    from mambaad_cli.serving.asked import Limits

    batchers = []

    def start(
        options: BatchOptions | None = None, limits: dict[str, int] | None = None, token: str = "", **more: Any
    ) -> TestClient:
        batchers.append(Batcher(watched, options or BatchOptions(), Metrics(), **more))
        app = build_app(batchers[-1], Limits(**(limits or {})), token)
        return TestClient(app, base_url=LOOPBACK, raise_server_exceptions=False)

    yield start
    watched.may_go_on.set()
    for batcher in batchers:
        batcher.close()


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture
def photo() -> bytes:
    """A PNG file of 96 × 80 pixels."""
    return encoded(picture())


class Server:
    """`mambaad serve` in a process of its own."""

    def __init__(self, model: Path, *options: object, token: str = "") -> None:
        command = [sys.executable, "-m", "mambaad_cli", "serve", "-m", model, "--port", 0, *options]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MAMBAAD_TOKEN": token}
        self.process = subprocess.Popen([str(one) for one in command], env=env, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.first_line = self.process.stderr.readline()
        found = re.search(r"http://\S+:(\d+)", self.first_line)
        assert found is not None, self.first_line + self.process.stderr.read()
        self.url, self.port = found[0], int(found[1])

    def end(self) -> tuple[int, str]:
        """End it in order; its exit status and what it has said since it began to answer."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


@pytest.fixture
def serving(tiny_model: FittedModel, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the tiny model, which lies in m.safetensors."""
    needs_the_extra()
    tiny_model.save(tmp_path / "m.safetensors")
    with contextlib.ExitStack() as stack:

        def start(*options: object, token: str = "") -> Server:
            server = Server(tmp_path / "m.safetensors", *options, token=token)
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
            return server

        yield start
