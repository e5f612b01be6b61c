"""A folder that is watched: each photo that arrives gets one row, and what else was asked for."""

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.image_files import describe_unread
from mambaad_cli.files import DISK_FULL, shown
from mambaad_cli.inspection.heatmap import framed, overlay
from mambaad_cli.inspection.overlays import colour_scale
from mambaad_cli.inspection.predict import check_class, predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.rows import COLUMNS, csv_line, json_line, json_row
from mambaad_cli.inspection.rows import row as csv_row
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.line import ledger, moving
from mambaad_cli.line.arrivals import Arrival, Arrivals, Version, version_of
from mambaad_cli.line.changes import changes
from mambaad_cli.line.delivery import Delivery, Say
from mambaad_cli.line.journal import Journal
from mambaad_cli.line.ledger import Photo
from mambaad_cli.line.moving import Mover

LISTING_SHARE = 4  # listing the folder may take one part in this many of the time
MAX_FAILURES = 16  # photos in a row that the model cannot score, after which the model is to blame
HOUSEKEEPING = 1.0  # seconds between two looks at the photos that are still to be moved, or were moved a moment ago


@dataclass(frozen=True)
class WatchOptions:
    """What is done with each photo besides its row."""

    predict: PredictOptions = field(default_factory=PredictOptions)
    settle: float = 0.5  # see Arrivals
    patience: float = 60.0  # see Arrivals and Mover
    once: bool = False  # end when no photo waits
    regions: bool = False  # JSON rows list them
    maps: Path | None = None  # a folder for overlays
    move_to: Path | None = None  # a folder with one for each verdict
    renewed: Callable[[], Scorer | None] = lambda: None  # another scorer, once the model was replaced
    fps: float | None = None  # of a video or a camera, see data.video.frames_of
    in_a_row: int = 1  # see inspection.frames.confirmed


class Watch:
    """Scores photos as they arrive, until `stopping` is set, which a signal handler may do."""

    def __init__(
        self,
        scorer: Scorer,
        folder: Path,
        output: Path,
        options: WatchOptions,
        deliveries: Sequence[Delivery] = (),
        say: Say = lambda line: None,
    ) -> None:
        """Open the rows. Raises MambaADError where they belong to something else, and for folders inside `folder`."""
        if not folder.is_dir():
            raise MambaADError(f"no folder {shown(folder)}")
        for option, inside in (("--maps", options.maps), ("--move-to", options.move_to)):
            if inside is not None and inside.resolve().is_relative_to(folder.resolve()):
                raise MambaADError(f"{option} {shown(inside)} lies in the folder that is watched: choose another one")
        check_class(scorer.products, options.predict.class_name)
        if options.maps is not None:
            colour_scale(scorer.products, "")  # refuses a model without a threshold
        self.scorer, self.folder, self.options, self.deliveries, self.say = scorer, folder, options, deliveries, say
        self.as_json = output.suffix.lower() != ".csv"
        self.journal = Journal(output, folder, scorer.sha256, "" if self.as_json else csv_line(COLUMNS))
        self.mover = None
        if options.move_to is not None:
            self.mover = Mover(folder, options.move_to, self.journal.ledger, options.patience, say)
        self.arrivals = Arrivals(folder, self._has_row, options.settle, options.patience)
        self.stopping = False
        self.counts: Counter[str] = Counter()
        self._unread_kinds: set[str] = set()  # of pictures that are not read, which were reported
        self._failures = 0  # photos in a row that the model could not score
        for line in self.journal.notices:
            say(line)

    def run(self) -> "Counter[str]":
        """Watch; returns the verdicts of the photos that were scored."""
        housekeeping = -HOUSEKEEPING
        with changes(self.folder) as changed:
            while not self.stopping:
                began = time.monotonic()
                if self.mover is not None and began >= housekeeping + HOUSEKEEPING:
                    self.mover.go_on()
                    housekeeping = began
                arrived = self._arrived(began)
                for start in range(0, len(arrived), self.options.predict.batch):
                    if self.stopping:
                        break
                    self._score(arrived[start : start + self.options.predict.batch])
                if self.options.once and not arrived and not self.arrivals.waiting:
                    break
                if not arrived:
                    listed = time.monotonic()
                    changed.wait((listed - began) * LISTING_SHARE, self.arrivals.due(listed))
        if self.mover is not None:
            self.mover.go_on()
        return self.counts

    def close(self) -> None:
        """Let the deliveries end, and open the rows to others."""
        for delivery in self.deliveries:
            delivery.close()
        self.journal.close()

    def _arrived(self, now: float) -> list[Arrival]:
        was_present = self.arrivals.present
        arrived = self.arrivals.list_new(now)
        if self.arrivals.present != was_present:
            self.say(f"{shown(self.folder)} is {'gone: waiting for it' if was_present else 'back'}")
        if new_kinds := set(self.arrivals.unread) - self._unread_kinds:
            self.say(f"left out {describe_unread(self.arrivals.unread)}")
            self._unread_kinds |= new_kinds
        return arrived

    def _has_row(self, name: str, version: Version) -> bool:
        """Whether a photo has a row already. Where only its place on the disk or its rights changed, it has."""
        photo = self.journal.ledger.find(name)
        if photo is None or photo.version[:2] != version[:2]:
            return False
        if photo.version != version:
            taken_over = photo.version == Version(*version[:2])  # from a ledger that did not know the other two
            if not taken_over and (photo.digest is None or photo.digest != moving.digest_of(self.folder / name)):
                return False
            photo = photo._replace(version=version)
            self.journal.ledger.update(photo)
        if photo.state == ledger.STAYS and self.mover is not None:
            self.mover.move_later(photo)
        return True

    # ---- a photo ----

    def _score(self, batch: Sequence[Arrival]) -> None:
        """Rows of some photos on disk; then whatever else is done with them."""
        self._renew()
        predictions = self._predictions(batch)
        rows, photos, json_rows = [], [], []
        for arrival, prediction in zip(batch, predictions, strict=True):
            if self.options.maps is not None:
                self._write_overlay(prediction, self.options.maps)
            photo = self._placed(arrival, prediction.verdict)
            moved_to = {"moved_to": photo.moved_to} if photo.moved_to else {}
            json_rows.append(json_line(json_row(prediction, self.scorer.sha256, self.options.regions) | moved_to))
            rows.append(json_rows[-1] if self.as_json else csv_line(csv_row(prediction).values()))
            photos.append(photo)
        try:
            if self.mover is not None:
                self.mover.sync(photos)
            self.journal.record(rows, photos)
        except MambaADError:
            if self.mover is not None:
                self.mover.withdraw(photos)
            raise
        self.counts.update(prediction.verdict for prediction in predictions)
        if self.mover is not None:
            self.mover.finish(photos)
        for delivery in self.deliveries:
            for row in json_rows:
                delivery.put(row.encode())
        if self._failures >= MAX_FAILURES:
            raise MambaADError(f"{self._failures} photos in a row cannot be scored: {predictions[-1].error}")

    def _renew(self) -> None:
        """Score by the model that took the place of the one before, if it did."""
        scorer = self.options.renewed()
        if scorer is None:
            return
        self.scorer = scorer
        self.journal.go_on_with(scorer.sha256)
        self.say(f"the model was replaced: photos are scored by {scorer.sha256} from now on")

    def _placed(self, arrival: Arrival, verdict: str) -> Photo:
        """What the ledger will know of a photo, which gets its new name now if it is to be moved."""
        name = arrival.file.relative.as_posix()
        photo = Photo(name, arrival.version, verdict, since=time.time())
        if arrival.problem:
            return photo
        digest = moving.digest_of(arrival.file.path)
        if version_of(arrival.file.path) == arrival.version:  # else it is of a later version
            photo = photo._replace(digest=digest)
        if self.mover is None:
            return photo
        before = self.journal.ledger.find(name)
        photo = photo._replace(returned=before is not None and before.returned)
        # A file that cannot be read may still be growing, and so may one that changed after it had been moved.
        if (verdict == "error" or photo.returned) and not self.options.once:
            return photo._replace(state=ledger.HELD)
        return self.mover.place(photo)

    def _predictions(self, batch: Sequence[Arrival]) -> list[Prediction]:
        """A prediction for each arrival. Where the model fails at one photo, that one has the verdict `error`."""
        files = [arrival.file for arrival in batch if not arrival.problem]
        wanted = replace(self.options.predict, maps=self.options.maps is not None, endless=True)
        try:
            scored = list(predict(self.scorer, files, wanted))
        except Exception as error:
            raise_if_not_of_one_photo(error)
            scored = []
            for arrival in (arrival for arrival in batch if not arrival.problem):
                try:
                    scored += predict(self.scorer, [arrival.file], wanted)
                    self._failures = 0
                except Exception as error:
                    raise_if_not_of_one_photo(error)
                    self._failures += 1
                    reason = f"cannot be scored: {type(error).__name__}: {error}"
                    scored.append(_without_score(arrival._replace(problem=reason)))
        else:
            self._failures = 0 if files else self._failures
        each = iter(scored)
        return [_without_score(arrival) if arrival.problem else next(each) for arrival in batch]

    def _write_overlay(self, prediction: Prediction, folder: Path) -> None:
        """Write folder/PATH.png, where PATH is the photo's, without its ending if that is .png too."""
        if prediction.anomaly_map is None or prediction.picture is None:
            return
        path = folder / prediction.file.relative
        path = path if path.suffix == ".png" else path.with_name(f"{path.name}.png")
        scale = colour_scale(self.scorer.products, prediction.class_name)
        picture = overlay(prediction.picture, prediction.anomaly_map, scale, prediction.inside)
        images.write(path, framed(picture, [region.box for region in prediction.regions or ()]))


def _without_score(arrival: Arrival) -> Prediction:
    return Prediction(arrival.file, "", None, None, "error", arrival.problem)


def raise_if_not_of_one_photo(error: Exception) -> None:
    """Let pass what ends the whole watch: a full disk, and what a user can mend, if it is not about one file."""
    disk = isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EROFS)
    if disk or (isinstance(error, MambaADError) and not isinstance(error, images.ImageError)):
        raise error
