"""A folder that is watched: each photo that arrives gets one row, and what else was asked for."""

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.heatmap import framed, overlay
from mambaad_cli.inspection.overlays import colour_scale
from mambaad_cli.inspection.predict import Prediction, PredictOptions, check_class, predict
from mambaad_cli.inspection.rows import COLUMNS, csv_line, json_line, json_row
from mambaad_cli.inspection.rows import row as csv_row
from mambaad_cli.line import arrivals
from mambaad_cli.line.arrivals import Arrival, Arrivals, Version
from mambaad_cli.line.changes import changes
from mambaad_cli.line.delivery import Delivery, Say
from mambaad_cli.line.journal import Journal

SHARE = 4  # a look may take one part in so many of the time


@dataclass(frozen=True)
class WatchOptions:
    """What is done with each photo besides its row."""

    predict: PredictOptions = field(default_factory=PredictOptions)
    settle: float = 0.5  # see Arrivals
    patience: float = 60.0
    once: bool = False  # end when no photo waits
    regions: bool = False  # JSON rows list them
    maps: Path | None = None  # a folder for overlays
    move_to: Path | None = None  # a folder with one for each verdict


class Watch:
    """Scores photos as they arrive, until `stopping` is set, which a signal handler may do."""

    def __init__(
        self,
        model: FittedModel,
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
        check_class(model, options.predict.class_name)
        if options.maps is not None:
            colour_scale(model, next(iter(model.scores), ""))  # refuses a model without a threshold
        self.model, self.folder, self.options, self.deliveries, self.say = model, folder, options, deliveries, say
        self.as_json = output.suffix.lower() != ".csv"
        self.journal = Journal(output, folder, model.sha256, "" if self.as_json else csv_line(COLUMNS))
        self.arrivals = Arrivals(folder, self.journal.has, options.settle, options.patience)
        self.stopping = False
        self.counts: Counter[str] = Counter()
        for line in self.journal.mended:
            say(line)

    def run(self) -> "Counter[str]":
        """Watch; returns the verdicts of the photos that were scored."""
        self._move_those_left()
        with changes(self.folder) as changed:
            while not self.stopping:
                began = time.monotonic()
                arrived = self._look(began)
                for start in range(0, len(arrived), self.options.predict.batch):
                    if self.stopping:
                        break
                    self._score(arrived[start : start + self.options.predict.batch])
                if self.options.once and not arrived and not self.arrivals.waiting:
                    break
                if not arrived:
                    looked = time.monotonic()
                    changed.wait((looked - began) * SHARE, self.arrivals.due(looked))
        return self.counts

    def close(self) -> None:
        """Let the deliveries end, and open the rows to others."""
        for one in self.deliveries:
            one.close()
        self.journal.close()

    def _look(self, now: float) -> list[Arrival]:
        was_present = self.arrivals.present
        arrived = self.arrivals.look(now)
        if self.arrivals.present != was_present:
            told = f"{shown(self.folder)} is gone: waiting for it" if was_present else f"{shown(self.folder)} is back"
            self.say(told)
        return arrived

    def _score(self, group: Sequence[Arrival]) -> None:
        """Rows of some photos on disk; then whatever else is done with them."""
        options = self.options
        wanted = replace(options.predict, maps=options.maps is not None)
        scored = predict(self.model, [one.file for one in group if not one.problem], wanted)
        rows, photos, sent = [], [], []
        targets: list[Path | None] = []
        for one in group:
            found = next(scored) if not one.problem else _unscored(one)
            if options.maps is not None:
                self._write_overlay(found, options.maps)
            target = None if one.problem else self._target(one.file, found.verdict, targets)
            moved_to = {} if target is None else {"moved_to": str(target)}
            row = json_line(json_row(found, self.model.sha256, options.regions) | moved_to)
            targets.append(target)
            sent.append(row)
            rows.append(row if self.as_json else csv_line(csv_row(found).values()))
            photos.append((str(one.file.relative), one.version, found.verdict))
            self.counts[found.verdict] += 1
        self.journal.record(rows, photos)
        for one, target in zip(group, targets, strict=True):
            self._move(one.file, one.version, target)
        for delivery in self.deliveries:
            for row in sent:
                delivery.put(row.encode())

    def _write_overlay(self, one: Prediction, folder: Path) -> None:
        """Write folder/PATH.png, where PATH is the photo's, without its ending if that is .png too."""
        if one.anomaly_map is None or one.picture is None:
            return
        path = folder / one.file.relative
        path = path if path.suffix == ".png" else path.with_name(f"{path.name}.png")
        glowing = overlay(one.picture, one.anomaly_map, colour_scale(self.model, one.class_name))
        images.write(path, framed(glowing, [found.box for found in one.regions or ()]))

    def _move_those_left(self) -> None:
        """Move photos that an interrupted run scored and did not move."""
        if self.options.move_to is None:
            return
        for name, entry in self.journal.known.items():
            file = arrivals.image_file(self.folder, name)
            self._move(file, entry.version, self._target(file, entry.verdict))

    def _target(self, file: ImageFile, verdict: str, taken: Collection[Path | None] = ()) -> Path | None:
        """Where a photo with this verdict is moved to, if it is."""
        if self.options.move_to is None:
            return None
        return free(self.options.move_to / verdict / file.relative, taken)

    def _move(self, file: ImageFile, version: Version, target: Path | None) -> None:
        """Move a photo that was scored; one that has been written anew since stays, to be scored."""
        if target is None or arrivals.version_of(file.path) != version:
            return
        try:
            move(file.path, target)
        except FileNotFoundError:
            pass  # it vanished: its row says so, or it was scored before
        except OSError as error:
            self.say(f"{shown(file.path)} stays where it is: {error.strerror}")


def free(target: Path, taken: Collection[Path | None] = ()) -> Path:
    """The path itself, or with a number where there is a file or the path is `taken`."""
    path, number = target, 1
    while path in taken or os.path.lexists(path):
        number += 1
        path = target.with_name(f"{target.stem}_{number}{target.suffix}")
    return path


def move(source: Path, target: Path) -> Path:
    """Move a file, to another disk as well. Nothing is written over: a taken name gets a number. Returns the new path.

    Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = free(target)
    try:
        source.rename(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        half = path.with_name(f".{path.name}.half")  # hidden from those who watch that folder
        shutil.copy2(source, half)
        half.replace(path)
        source.unlink()
    return path


def _unscored(one: Arrival) -> Prediction:
    return Prediction(one.file, "", None, None, "error", one.problem)
