"""Videos, cameras and streams where photos may be named as well."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import typer

from mambaad_cli import MambaADError, distributed
from mambaad_cli.cli.output import no_progress

if TYPE_CHECKING:
    from mambaad_cli.data.video import Source
    from mambaad_cli.inspection.prediction import Prediction, PredictOptions
    from mambaad_cli.inspection.scorer import Scorer


class FrameOptions(NamedTuple):
    """Which frames are scored, and which of them may be anomalous, as it was typed."""

    fps: float | None = None
    in_a_row: int = 1


def sources_among(typed: Sequence[str], options: FrameOptions) -> "list[Source]":
    """The videos, cameras and streams that were typed; none where photos were, for which there are no such options."""
    from mambaad_cli.data import video

    sources = video.sources_among(typed)
    for option, chosen in (("--fps", options.fps is not None), ("--frames", options.in_a_row > 1)):
        if chosen and not sources:
            raise typer.BadParameter("needs a video, a camera or a stream", param_hint=option)
    if sources and distributed.world() > 1:
        raise MambaADError("several processes share photos, not frames: score videos and cameras without torchrun")
    return sources


def is_live(sources: "Sequence[Source]") -> bool:
    return any(source.live for source in sources)


def refuse(options: dict[str, object], why: str) -> None:
    """Report the first of these options that was chosen."""
    for option, chosen in options.items():
        if chosen:
            raise typer.BadParameter(why, param_hint=option)


def running(
    scorer: "Scorer", sources: "Sequence[Source]", predict: "PredictOptions", options: FrameOptions
) -> "Iterator[Prediction]":
    """Predictions of frames as they come, with their number on stderr if that is a terminal."""
    from tqdm import tqdm

    from mambaad_cli.data import video
    from mambaad_cli.inspection import frames

    found = video.frames_of(sources, options.fps, lambda: False)
    predictions = frames.predict_frames(scorer, found, predict, is_live(sources))
    confirmed = frames.confirmed(predictions, options.in_a_row)
    return iter(tqdm(confirmed, unit="frame", leave=False, disable=no_progress(), file=sys.stderr))
