"""A video, a camera or a stream that is watched: each frame that is scored gets a row, and what else was asked for."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.image_files import ImageFile
from mambaad_cli.data.video import Frame, Source, frames_of, source_of
from mambaad_cli.inspection.frames import confirmed, predict_frames
from mambaad_cli.inspection.overlay_video import plain_name
from mambaad_cli.inspection.overlays import colour_scale, framed_overlay
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.rows import COLUMNS, csv_line, json_line, json_row
from mambaad_cli.inspection.rows import row as csv_row
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.line.arrivals import Version, version_of
from mambaad_cli.line.delivery import Delivery, Say
from mambaad_cli.line.journal import Journal
from mambaad_cli.line.ledger import Photo
from mambaad_cli.line.watching import MAX_FAILURES, WatchOptions, raise_if_not_of_one_photo


class Following:
    """Scores the frames of a source until it ends, or until `stopping` is set, which a signal handler may do.

    The ledger knows which frames of a video file have a row, so that none gets a second one. A camera's frames are gone
    once they are scored; its ledger knows only where the rows end.
    """

    def __init__(
        self,
        scorer: Scorer,
        source: Source,
        output: Path,
        options: WatchOptions,
        deliveries: Sequence[Delivery] = (),
        say: Say = lambda line: None,
    ) -> None:
        """Open the rows. Raises MambaADError where they belong to something else."""
        if options.maps is not None:
            colour_scale(scorer.products, "")  # refuses a model without a threshold
        self.scorer, self.source, self.options, self.deliveries, self.say = scorer, source, options, deliveries, say
        self.as_json = output.suffix.lower() != ".csv"
        self.version = None if source.live else version_of(source.path)  # None: no frame is there a second time
        of = Path("/", plain_name(source.name)) if source.live else source.path
        self.journal = Journal(output, of, scorer.sha256, "" if self.as_json else csv_line(COLUMNS))
        self.stopping = False
        self.counts: Counter[str] = Counter()
        self._failures = 0  # frames in a row that the model could not score
        for line in self.journal.notices:
            say(line)

    def run(self) -> "Counter[str]":
        """Score until the end; returns the verdicts of the frames that were scored."""
        frames = frames_of([self.source], self.options.fps, lambda: self.stopping)
        with closing(frames):
            predictions = confirmed(self._predictions(frames), self.options.in_a_row)
            while together := list(itertools.islice(predictions, self._at_once)):
                self._record(together)
                if self._failures >= MAX_FAILURES:
                    raise MambaADError(f"{self._failures} frames in a row cannot be scored: {together[-1].error}")
        return self.counts

    def close(self) -> None:
        """Let the deliveries end, and open the rows to others."""
        for delivery in self.deliveries:
            delivery.close()
        self.journal.close()

    @property
    def _at_once(self) -> int:
        return 1 if self.source.live else self.options.predict.batch

    def _predictions(self, frames: Iterator[Frame]) -> Iterator[Prediction]:
        """A prediction for each frame without a row, by the model that is there when the frame comes."""
        fresh = (frame for frame in frames if not self._has_row(frame))
        while group := list(itertools.islice(fresh, self._at_once)):
            if (scorer := self.options.renewed()) is not None:
                self.scorer = scorer
                self.journal.go_on_with(scorer.sha256)
                self.say(f"the model was replaced: frames are scored by {scorer.sha256} from now on")
            yield from self._scored(group)

    def _scored(self, frames: Sequence[Frame]) -> list[Prediction]:
        """A prediction for each frame. Where the model fails at one frame, that one has the verdict `error`."""
        wanted = replace(self.options.predict, maps=self.options.maps is not None)
        try:
            scored = list(predict_frames(self.scorer, frames, wanted, self.source.live))
        except Exception as error:
            raise_if_not_of_one_photo(error)
            if len(frames) > 1:
                return [prediction for frame in frames for prediction in self._scored([frame])]
            self._failures += 1
            reason = f"cannot be scored: {type(error).__name__}: {error}"
            return [Prediction(frames[0].file, "", None, None, "error", reason)]
        if any(frame.picture is not None for frame in frames):
            self._failures = 0
        return scored

    def _has_row(self, frame: Frame) -> bool:
        if self.version is None:
            return False
        names = (_ledger_name(frame.file), frame.file.name)  # the second is of ledgers that went by the name as typed
        return any(self.journal.has(name, self.version) for name in names)

    def _record(self, predictions: Sequence[Prediction]) -> None:
        """Rows of some frames on disk; then whatever else is done with them."""
        json_rows = [json_line(json_row(one, self.scorer.sha256, self.options.regions)) for one in predictions]
        rows = json_rows if self.as_json else [csv_line(csv_row(one).values()) for one in predictions]
        for prediction in predictions:
            self._write_overlay(prediction)
        self.journal.record(rows, [] if self.version is None else _photos(predictions, self.version))
        self.counts.update(prediction.verdict for prediction in predictions)
        for delivery in self.deliveries:
            for row in json_rows:
                delivery.put(row.encode())

    def _write_overlay(self, prediction: Prediction) -> None:
        """Write the overlay of an anomalous frame, whose picture is nowhere else."""
        if self.options.maps is None or prediction.verdict != "anomalous" or prediction.picture is None:
            return
        scale = colour_scale(self.scorer.products, prediction.class_name)
        path = self.options.maps / f"{plain_name(prediction.file.name)}.png"
        images.write(path, framed_overlay(prediction, scale))


def _photos(predictions: Sequence[Prediction], version: Version) -> list[Photo]:
    return [Photo(_ledger_name(prediction.file), version, prediction.verdict) for prediction in predictions]


def _ledger_name(file: ImageFile) -> str:
    """What the ledger calls a frame of a video file, however that was typed.

    >>> _ledger_name(ImageFile(Path("./in/a.mp4"), Path("a.mp4"), "", "./in/a.mp4#t=00:00:01.240"))
    'a.mp4#t=00:00:01.240'
    """
    return f"{file.path.resolve().name}{file.frame.removeprefix(source_of(file))}"
