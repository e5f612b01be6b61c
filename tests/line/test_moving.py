"""`watch --move-to` and photos that change, with a model that knows the verdict of a photo by its content."""

import errno
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.line import moving, watching
from mambaad_cli.line.journal import Journal
from mambaad_cli.line.ledger import Ledger
from mambaad_cli.line.watching import Watch, WatchOptions
from tests.line.killing import kill_at_line


def predict(scorer: Scorer, files: Sequence[ImageFile], options: PredictOptions) -> Iterator[Prediction]:
    """A file says itself what its verdict is; one that does not end with a point is truncated."""
    assert options.endless
    for file in files:
        text = file.path.read_text()
        if text.startswith("raise"):
            raise {"overflow": OverflowError, "disk": disk_full, "run": MambaADError}[text[6:]]("too large")
        if text.endswith("."):
            yield Prediction(file, "nut", 1.0, 2.0, text.split()[0], "")
        else:
            yield Prediction(file, "nut", None, None, "error", "truncated: the file ends before the image does")


def disk_full(text: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(watching, "predict", predict)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        (Path(name) / "in").mkdir()
        yield Path(name)


@pytest.fixture
def watch(folder: Path, tiny_model: FittedModel) -> Iterator[Callable[..., Watch]]:
    opened: list[Watch] = []

    def begin(**options: Any) -> Watch:
        choices = WatchOptions(**{"settle": 0.0, "move_to": folder / "done"} | options)
        opened.append(Watch(tiny_model.scorer, folder / "in", folder / "rows.jsonl", choices, say=said.append))
        return opened[-1]

    said: list[str] = []
    begin.said = said  # type: ignore[attr-defined]
    yield begin
    for one in opened:
        one.close()


def step(watch: Watch) -> None:
    """What `run` does again and again."""
    assert watch.mover is not None
    watch.mover.go_on()
    if arrived := watch._arrived(time.monotonic()):
        watch._score(arrived)


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Path below in/, verdict and the place below done/ of each row."""
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [
        (
            str(Path(row["path"]).relative_to(folder / "in")),
            row["verdict"],
            str(Path(row.get("moved_to", folder / "done")).relative_to(folder / "done")),
        )
        for row in found
    ]


def files(folder: Path) -> dict[str, str]:
    tops = (folder / "in", folder / "done")
    return {
        str(path.relative_to(folder)): path.read_text() for top in tops for path in top.rglob("*") if path.is_file()
    }


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time
    monkeypatch.setattr(moving.time, "time", lambda: now() + seconds)


# ---- photos that are still written ----


def test_a_truncated_photo_is_not_moved_while_it_may_grow_and_scored_again_when_it_has(
    watch: Callable[..., Watch], folder: Path
) -> None:
    watching = watch()
    with (folder / "in" / "a.png").open("w") as file:
        file.write("good par")
        file.flush()
        step(watching)
        step(watching)
        assert rows(folder) == [("a.png", "error", ".")]
        file.write("t.")
    step(watching)
    assert rows(folder)[1:] == [("a.png", "good", "good/a.png")]
    assert files(folder) == {"done/good/a.png": "good part."}


def test_a_truncated_photo_that_does_not_grow_is_moved_when_patience_is_over(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "in" / "a.png").write_text("good par")
    watching = watch(patience=60.0)
    step(watching)
    later(monkeypatch, 59.0)
    step(watching)
    assert files(folder) == {"in/a.png": "good par"}
    later(monkeypatch, 2.0)  # on top of the others
    step(watching)
    assert files(folder) == {"done/error/a.png": "good par"}
    assert rows(folder) == [("a.png", "error", ".")]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_photo_whose_writer_goes_on_after_it_was_moved_comes_back_and_ends_where_it_belongs(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """As an upload that has its full size from the beginning, so that its first part looks complete."""
    watching = watch()
    with (folder / "in" / "a.png").open("w") as file:
        file.write("anomalous as black below.")
        file.flush()
        step(watching)
        assert files(folder) == {"done/anomalous/a.png": "anomalous as black below."}
        file.seek(0)
        file.write("good after all......")
        file.truncate()
    if restarted:
        watching.close()
        watching = watch()
    step(watching)
    assert watch.said == [f"{folder}/done/anomalous/a.png changed after it was moved: it is scored again"]  # type: ignore[attr-defined]
    assert rows(folder) == [("a.png", "anomalous", "anomalous/a.png"), ("a.png", "good", ".")]
    assert files(folder) == {"in/a.png": "good after all......"}  # held, for its writer is slow
    later(monkeypatch, 61.0)
    step(watching)
    assert files(folder) == {"done/good/a.png": "good after all......"}
    (folder / "done" / "good" / "a.png").write_text("good, and edited by somebody.")
    step(watching)
    assert files(folder) == {"done/good/a.png": "good, and edited by somebody."}
    assert len(rows(folder)) == 2


def test_a_photo_that_was_moved_is_forgotten_when_patience_is_over(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watch()
    for i in range(5):
        (folder / "in" / f"{i}.png").write_text("good .")
    step(watching)
    ledger = watching.journal.ledger
    assert [ledger.find(f"{i}.png") for i in range(5)] == [None] * 5
    assert len(ledger.moved()) == 5
    later(monkeypatch, 61.0)
    step(watching)
    assert (ledger.moved(), ledger.unfinished(), ledger.recorded) == ([], [], 5)


def test_a_photo_that_changes_while_its_row_is_written_loses_its_new_name_and_is_scored_again(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Journal.record

    def growing(self: Journal, *arguments: Any) -> None:
        record(self, *arguments)
        if not (folder / "grown").exists():
            (folder / "grown").touch()
            with (folder / "in" / "a.png").open("a") as file:
                file.write(" more.")

    monkeypatch.setattr(Journal, "record", growing)
    (folder / "in" / "a.png").write_text("good .")
    watching = watch()
    step(watching)
    assert files(folder) == {"in/a.png": "good . more."}
    step(watching)
    assert files(folder) == {"done/good/a.png": "good . more."}
    assert len(rows(folder)) == 2


def test_another_photo_of_the_same_name_that_comes_while_the_row_is_written_stays(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Journal.record

    def replaced(self: Journal, *arguments: Any) -> None:
        record(self, *arguments)
        if not (folder / "new.png").exists() and len(rows(folder)) == 1:
            (folder / "new.png").write_text("anomalous .")
            (folder / "new.png").rename(folder / "in" / "a.png")

    monkeypatch.setattr(Journal, "record", replaced)
    (folder / "in" / "a.png").write_text("good .")
    watching = watch()
    step(watching)
    assert files(folder) == {"in/a.png": "anomalous .", "done/good/a.png": "good ."}
    step(watching)
    assert rows(folder) == [("a.png", "good", "good/a.png"), ("a.png", "anomalous", "anomalous/a.png")]


def test_a_folder_that_is_gone_before_the_old_names_are_removed_gives_no_second_row(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Journal.record

    def unplugged(self: Journal, *arguments: Any) -> None:
        record(self, *arguments)
        (folder / "in").rename(folder / "away")

    (folder / "in" / "a.png").write_text("good .")
    watching = watch()
    monkeypatch.setattr(Journal, "record", unplugged)
    step(watching)
    step(watching)
    (folder / "away").rename(folder / "in")
    step(watching)
    assert rows(folder) == [("a.png", "good", "good/a.png")]
    assert files(folder) == {"done/good/a.png": "good ."}


def test_a_photo_that_cannot_be_moved_stays_and_its_row_does_not_claim_otherwise(
    watch: Callable[..., Watch], folder: Path
) -> None:
    (folder / "done").mkdir()
    (folder / "done" / "good").write_text("no folder")
    (folder / "in" / "a.png").write_text("good .")
    watching = watch()
    step(watching)
    step(watching)
    assert rows(folder) == [("a.png", "good", ".")]
    assert watch.said == [f"{folder}/in/a.png stays where it is: File exists"]  # type: ignore[attr-defined]
    watching.close()
    (folder / "done" / "good").unlink()
    watch(once=True).run()
    assert files(folder) == {"done/good/a.png": "good ."}
    assert len(rows(folder)) == 1


# ---- versions ----


def test_new_rights_or_links_are_no_new_photo_and_new_content_of_the_same_time_is(
    watch: Callable[..., Watch], folder: Path
) -> None:
    watching = watch(move_to=None)
    photo = folder / "in" / "a.png"
    photo.write_text("good 1.")
    os.utime(photo, ns=(10**9, 10**9))
    watching._score(watching._arrived(0.0))
    photo.chmod(0o600)
    (folder / "backup.png").hardlink_to(photo)
    assert watching._arrived(1.0) == []
    shutil.copy2(photo, folder / "copy.png")
    (folder / "copy.png").rename(photo)
    assert watching._arrived(2.0) == []
    time.sleep(0.02)
    photo.write_text("good 2.")
    os.utime(photo, ns=(10**9, 10**9))
    assert len(watching._arrived(3.0)) == 1


def test_photos_of_an_old_ledger_are_known_by_size_and_time(watch: Callable[..., Watch], folder: Path) -> None:
    photo = folder / "in" / "a.png"
    photo.write_text("good .")
    status = photo.stat()
    entry = {"path": "a.png", "size": status.st_size, "mtime_ns": status.st_mtime_ns, "verdict": "good", "end": 0}
    about = {"ledger": 1, "folder": str((folder / "in").resolve()), "model": "", "end": 0}
    (folder / "rows.jsonl.ledger").write_text(f"{json.dumps(about)}\n{json.dumps(entry)}\n")
    watching = watch(move_to=None)
    assert watching._arrived(0.0) == []
    assert watching._arrived(1.0) == []


def test_a_start_looks_up_the_photos_that_lie_in_the_folder_and_no_others(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [{"path": f"{i}.png", "size": 1, "mtime_ns": 1, "verdict": "good", "end": 0} for i in range(1000)]
    about = {"ledger": 1, "folder": str((folder / "in").resolve()), "model": "", "end": 0}
    (folder / "rows.jsonl.ledger").write_text("".join(f"{json.dumps(line)}\n" for line in (about, *entries)))
    watch().close()
    (folder / "in" / "new.png").write_text("good .")
    asked = []
    find = Ledger.find

    def counted(self: Ledger, name: str) -> Any:
        asked.append(name)
        return find(self, name)

    looked_at: list[Path] = []
    monkeypatch.setattr(Ledger, "find", counted)
    stat = Path.stat

    def stats(self: Path, **options: Any) -> os.stat_result:
        looked_at.append(self)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", stats)
    step(watch())
    assert set(asked) == {"new.png"}
    assert not any(path.stem.isdecimal() for path in looked_at)


# ---- killed at every step ----


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step_each_photo_has_one_row_that_tells_where_it_is(
    folder: Path, tiny_model: FittedModel, stride: int
) -> None:
    for number in itertools.count(1, stride):
        place = folder / str(number)
        (place / "in" / "sub").mkdir(parents=True)
        (place / "done" / "good").mkdir(parents=True)
        (place / "done" / "good" / "a.png").write_text("of another line")
        photos = {"a.png": "good a.", "sub/b.png": "anomalous b.", "c.png": "error", "d.png": "good d."}
        for name, text in photos.items():
            (place / "in" / name).write_text(text)

        def work(place: Path = place) -> None:
            options = WatchOptions(PredictOptions(batch=2), settle=0.0, once=True, move_to=place / "done")
            watch = Watch(tiny_model.scorer, place / "in", place / "rows.jsonl", options)
            watch.run()
            watch.close()

        modules = ("watching.py", "moving.py", "placing.py", "arrivals.py", "journal.py")
        killed = kill_at_line(number, work, tuple(f"line/{name}" for name in modules))
        work()
        found = rows(place)
        assert sorted(name for name, _, _ in found) == sorted(photos), number
        left = files(place)
        assert left.pop("done/good/a.png") == "of another line"
        assert left == {f"done/{target}": photos[name] for name, _, target in found}, number
        shutil.rmtree(place)
        if not killed:
            assert number > 500
            break


# ---- photos at which the model fails ----


def test_a_photo_at_which_the_model_fails_is_an_error_and_the_others_are_scored(
    watch: Callable[..., Watch], folder: Path
) -> None:
    for name, text in (("a", "good ."), ("b", "raise overflow"), ("c", "anomalous .")):
        (folder / "in" / f"{name}.png").write_text(text)
    watching = watch(once=True)
    assert watching.run() == {"good": 1, "error": 1, "anomalous": 1}
    (row,) = [json.loads(line) for line in (folder / "rows.jsonl").open() if "b.png" in line]
    assert row["error"] == "cannot be scored: OverflowError: too large"


def test_what_is_not_about_one_photo_ends_the_watch(watch: Callable[..., Watch], folder: Path) -> None:
    for text, kind in (("raise disk", OSError), ("raise run", MambaADError)):
        (folder / "in" / "a.png").write_text(text)
        watching = watch(once=True)
        with pytest.raises(kind):
            watching.run()
        watching.close()
    assert (folder / "rows.jsonl").read_text() == ""


def test_a_model_that_fails_at_photo_after_photo_ends_the_watch(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that is gone: not all photos of the day shall be errors."""
    for i in range(100):
        (folder / "in" / f"{i}.png").write_text("raise overflow")
    with pytest.raises(MambaADError, match="^16 photos in a row cannot be scored: cannot be scored: OverflowError"):
        watch(once=True).run()
    assert len(rows(folder)) == watching.MAX_FAILURES


def test_an_unreadable_file_is_no_reason_to_end(
    watch: Callable[..., Watch], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(scorer: Scorer, files: Sequence[ImageFile], *rest: Any, **options: Any) -> Iterator[Prediction]:
        raise ImageError(files[0].path, "no mask named a")
        yield

    monkeypatch.setattr(watching, "predict", unreadable)
    (folder / "in" / "a.png").write_text("good .")
    assert watch(once=True).run() == {"error": 1}


def test_a_folder_of_folders_of_the_system_is_not_watched(watch: Callable[..., Watch], folder: Path) -> None:
    (folder / "in" / "@eaDir").mkdir()
    (folder / "in" / "@eaDir" / "a.png").write_text("good .")
    assert watch(once=True).run() == {}
