"""Progress bars on stderr for reading images and for training; none where stderr is not a terminal."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from mambaad_cli.cli.output import no_progress, warn
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.training.progress import Progress


class FitProgress(Progress):
    """Shows the progress of `mambaad fit`, and counts what it prints at the end."""

    def __init__(self, images: int) -> None:
        self.silent = no_progress()
        self.reading = tqdm(total=images, desc="encode", unit="image", leave=False, disable=self.silent)
        self.training: Any = None
        self.skipped = 0
        self.odd: list[tuple[ImageFile, float, tuple[float, float]]] = []
        self.dropped = 0
        self.not_setting: dict[str, list[tuple[ImageFile, float, tuple[float, float]]]] = {}
        self.same: dict[str, list[Sequence[ImageFile]]] = {}
        self.losses: list[float] = []
        self.start = time.monotonic()

    def __enter__(self) -> "FitProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.close()
        if self.training is not None:
            self.training.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def image(self) -> None:
        self.reading.update()

    def unreadable(self, error: ImageError) -> None:
        self.skipped += 1
        self.reading.clear()
        warn(f"left out {error}")

    def alike(self, name: str, groups: Sequence[Sequence[ImageFile]]) -> None:
        self.same[name] = list(groups)

    def suspects(self, found: Sequence[tuple[ImageFile, float, tuple[float, float]]], dropped: int) -> None:
        self.odd, self.dropped = list(found), dropped

    def passed_over(self, name: str, found: Sequence[tuple[ImageFile, float, tuple[float, float]]]) -> None:
        self.not_setting[name] = list(found)

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        self.losses.append(loss)
        if self.training is None:
            self.reading.close()
            self.training = tqdm(
                total=steps, initial=step - 1, desc="train", unit="step", leave=False, disable=self.silent
            )
        self.training.update()
        rate = self.training.format_dict["rate"] or 0.0
        self.training.set_postfix_str(f"loss {loss:.4f}, {rate * images:.0f} images/s", refresh=False)
