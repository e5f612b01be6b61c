import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import pytest

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.line import journal as journal_module
from mambaad_cli.line.arrivals import Version
from mambaad_cli.line.journal import Journal
from mambaad_cli.line.ledger import Ledger, Photo
from tests.line.killing import kill_at_line

V = Version(3, 14)
ROOT = Path(mambaad_cli.__file__).parent.parent
Rotate: TypeAlias = "Callable[[Path], None]"
EVIL = 'two\nlines "<b>" \udcff.png'


def rename(rows: Path) -> None:
    if rows.exists():
        number = len(list(rows.parent.glob("rows.jsonl.[0-9]*"))) + 1
        rows.rename(rows.with_name(f"rows.jsonl.{number}"))


def copy_and_truncate(rows: Path) -> None:
    if rows.exists() and rows.stat().st_size:
        number = len(list(rows.parent.glob("rows.jsonl.[0-9]*"))) + 1
        shutil.copy(rows, rows.with_name(f"rows.jsonl.{number}"))
        os.truncate(rows, 0)


def nothing(rows: Path) -> None:
    pass


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Journal]:
    def journal(model: str = "m", header: str = "") -> Journal:
        return Journal(tmp_path / "out" / "rows.jsonl", tmp_path, model, header)

    return journal


def output(journal: Journal) -> str:
    return journal.output.read_text(encoding="utf-8", errors="surrogateescape")


def test_what_has_a_row_is_known_after_a_restart_whatever_its_name(opened: Callable[..., Journal]) -> None:
    first = opened(header="path\n")
    first.record([f"{EVIL}\n"], [Photo(EVIL, V, "good")])
    first.close()
    again = opened(header="path\n")
    assert again.notices == []
    assert output(again) == f"path\n{EVIL}\n"
    assert again.has(EVIL, V)
    assert not again.has(EVIL, Version(3, 15))
    assert again.ledger.find(EVIL) == Photo(EVIL, V, "good")


@pytest.mark.parametrize("more", ["row of b\n", "row o", "row of b\nrow of c\nro"])
def test_rows_without_a_line_in_the_ledger_are_taken_back(opened: Callable[..., Journal], more: str) -> None:
    first = opened()
    first.record(["row of a\n"], [Photo("a", V, "good")])
    first.close()
    with first.output.open("a") as file:
        file.write(more)
    again = opened()
    assert output(again) == "row of a\n"
    assert len(again.notices) == 1


def old_ledger(folder: Path, *lines: dict[str, object]) -> Path:
    """A ledger as mambaad 0.2 wrote it, beside rows that it knows."""
    (folder / "out").mkdir()
    about = {"ledger": 1, "folder": str(folder.resolve()), "model": "m", "end": 0}
    path = folder / "out" / "rows.jsonl.ledger"
    path.write_text("".join(json.dumps(line) + "\n" for line in (about, *lines)))
    return path


def old_line(name: str, end: int) -> dict[str, object]:
    return {"path": name, "size": V.size, "mtime_ns": V.mtime_ns, "verdict": "good", "end": end}


def test_an_old_ledger_is_taken_over_once_without_a_last_half_written_line(
    opened: Callable[..., Journal], tmp_path: Path
) -> None:
    path = old_ledger(tmp_path, old_line("c", 0), old_line(EVIL, 9), old_line("b", 18))
    os.truncate(path, path.stat().st_size - 9)
    (tmp_path / "out" / "rows.jsonl").write_text("row of a\nrow of b\n")
    (tmp_path / "out" / ".rows.jsonl.ledger.new").write_text("half of it, of a run that was killed")
    journal = opened()
    assert output(journal) == "row of a\n"
    assert journal.ledger.find(EVIL) == Photo(EVIL, V, "good")
    assert journal.ledger.find("b") is None
    assert journal.ledger.recorded == 2
    journal.record(["row of b\n"], [Photo("b", V, "good")])
    journal.close()
    again = opened()
    assert (output(again), again.notices) == ("row of a\nrow of b\n", [])
    assert again.has(EVIL, V)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "rows.jsonl",
        "rows.jsonl.ledger",
        "rows.jsonl.ledger-wal",
    ]


def test_rows_that_were_rotated_away_from_an_old_ledger_are_not_cut(
    opened: Callable[..., Journal], tmp_path: Path
) -> None:
    old_ledger(tmp_path, old_line("a", 9))
    (tmp_path / "out" / "rows.jsonl").write_text("a long new row\nanother one\n")
    assert output(opened()) == "a long new row\nanother one\n"


def test_a_running_watch_of_the_old_version_is_respected(opened: Callable[..., Journal], tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = old_ledger(tmp_path)
    before = path.read_bytes()
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(MambaADError, match="^another mambaad watch writes .*rows.jsonl: choose another --output$"):
            opened()
    assert path.read_bytes() == before
    opened().close()


# ---- killed at every step ----


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder that is quick to write to."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("header", "rotate", "rotate_after_kill", "stride"),
    [
        pytest.param("path\n", nothing, nothing, 1, marks=pytest.mark.slow),
        pytest.param("path\n", rename, rename, 1, marks=pytest.mark.slow),
        ("path\n", copy_and_truncate, rename, 11),
        pytest.param("path\n", copy_and_truncate, rename, 1, marks=pytest.mark.slow),
        pytest.param("", rename, copy_and_truncate, 1, marks=pytest.mark.slow),
        pytest.param("", copy_and_truncate, copy_and_truncate, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_step_with_rotation_each_photo_has_one_whole_row(
    in_memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    header: str,
    rotate: Rotate,
    rotate_after_kill: Rotate,
    stride: int,
) -> None:
    def in_two_parts(file: IO[bytes], data: bytes) -> None:
        half = len(data) // 2
        file.write(data[:half])
        file.write(data[half:])

    monkeypatch.setattr(journal_module, "_append", in_two_parts)
    for number in itertools.count(1, stride):
        rows = in_memory / f"{number}" / "rows.jsonl"

        def work(rows: Path = rows) -> None:
            journal = Journal(rows, in_memory, "m", header)
            for batch in (["a", "b"], ["a long one", "c"], ["d"]):
                photos = [Photo(name, V, "good") for name in batch if not journal.has(name, V)]
                journal.record([f"row of {photo.name}\n" for photo in photos], photos)
                rotate(rows)
            journal.close()

        killed = kill_at_line(number, work, ("line/journal.py", "line/ledger.py"))
        if killed and rotate_after_kill is copy_and_truncate and not committed(rows):
            continue  # without a row before them, nothing distinguishes a copy from the rows of another program
        rotate_after_kill(rows)
        work()
        text = "".join(path.read_text() for path in rows.parent.glob("rows.jsonl*") if "ledger" not in path.name)
        lines = [line for line in text.splitlines(keepends=True) if line != header]
        assert sorted(lines) == [f"row of {name}\n" for name in ("a", "a long one", "b", "c", "d")], number
        if not killed:
            assert number > 100
            break


def committed(rows: Path) -> bool:
    ledger = rows.with_name("rows.jsonl.ledger")
    if not ledger.exists():
        return False
    opened = Ledger(ledger)
    opened.close()
    return opened.end is not None and opened.end.offset > 0


def test_rows_that_were_moved_away_start_anew_and_photos_stay_known(opened: Callable[..., Journal]) -> None:
    first = opened(header="path\n")
    first.record(["row of a\n"], [Photo("a", V, "good")])
    first.close()
    first.output.unlink()
    again = opened(header="path\n")
    assert output(again) == "path\n"
    assert again.has("a", V)
    assert again.notices == [f"{first.output} is shorter than it was: rows go on from here"]
    again.record(["row of b\n"], [Photo("b", V, "good")])
    again.close()
    assert output(opened()) == "path\nrow of b\n"


def test_rows_that_are_moved_away_meanwhile_go_on_in_a_new_file(opened: Callable[..., Journal]) -> None:
    journal = opened(header="path\n")
    journal.record(["row of a\n"], [Photo("a", V, "good")])
    journal.output.rename(journal.output.with_suffix(".1"))
    journal.record(["row of b\n"], [Photo("b", V, "good")])
    journal.close()
    assert output(journal) == "path\nrow of b\n"
    assert journal.output.with_suffix(".1").read_text() == "path\nrow of a\n"
    again = opened(header="path\n")
    assert (output(again), again.notices) == ("path\nrow of b\n", [])
    assert again.has("a", V)


@pytest.mark.parametrize("rotate", [rename, copy_and_truncate, Path.unlink])
def test_rows_and_the_name_of_their_file_are_on_disk_before_the_ledger_knows_them(
    opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch, rotate: Rotate
) -> None:
    journal = opened(header="path\n")
    journal.record(["row of a\n"], [Photo("a", V, "good")])
    rotate(journal.output)
    steps: list[str] = []
    fsync, record, begin = os.fsync, Ledger.record, Ledger.begin

    def noted(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def recorded(self: Ledger, *arguments: Any) -> None:
        steps.append("photos")
        record(self, *arguments)

    def marked(self: Ledger, *arguments: Any) -> None:
        steps.append("end")
        begin(self, *arguments)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Ledger, "record", recorded)
    monkeypatch.setattr(Ledger, "begin", marked)
    journal.record(["row of b\n"], [Photo("b", V, "good")])
    begun = [] if rotate is copy_and_truncate else ["out"]  # its folder
    assert steps == [*begun, "end", "rows.jsonl", "end", "rows.jsonl", "photos", "end"]
    assert journal.output.read_text() == "path\nrow of b\n"


def test_without_the_locks_of_posix_there_is_one_writer_too(
    opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where there is no fcntl. Another process is refused as well."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    journal = opened()
    with pytest.raises(MambaADError, match="^another mambaad watch writes"):
        opened()
    script = "import sys, pathlib; from mambaad_cli.line import journal; p = pathlib.Path(sys.argv[1])"
    script += "; journal.Journal(p, p.parent, 'm')"
    arguments = [sys.executable, "-c", script, str(journal.output)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.splitlines()[-1].startswith("mambaad_cli.MambaADError: another mambaad watch writes ")


def test_a_half_line_of_others_is_not_glued_to_a_row(opened: Callable[..., Journal]) -> None:
    first = opened()
    first.record(["row of a\n"], [Photo("a", V, "good")])
    first.close()
    first.output.unlink()
    first.output.write_text("half of somet")
    again = opened()
    again.record(["row of b\n"], [Photo("b", V, "good")])
    assert output(again) == "half of somet\nrow of b\n"


def test_a_damaged_ledger_is_one_line_and_left_alone(opened: Callable[..., Journal]) -> None:
    first = opened()
    first.record(["row of a\n"], [Photo("a", V, "good")])
    first.close()
    ledger = first.ledger.path
    ledger.write_bytes(ledger.read_bytes()[:100] + bytes(5000))
    before = ledger.read_bytes()
    with pytest.raises(MambaADError, match="rows.jsonl.ledger is damaged: .*: choose another --output$"):
        opened()
    assert ledger.read_bytes()[100:] == before[100:]


def test_one_writer_at_a_time(opened: Callable[..., Journal]) -> None:
    first = opened()
    with pytest.raises(MambaADError, match="^another mambaad watch writes .*rows.jsonl: choose another --output$"):
        opened()
    first.close()
    opened().close()


def test_another_model_is_told_and_goes_on(opened: Callable[..., Journal]) -> None:
    first = opened(model="old")
    first.record(["row of a\n"], [Photo("a", V, "good")])
    first.close()
    again = opened(model="new")
    assert again.notices == ["the rows so far are of another model, old; their photos are not scored again"]
    assert again.has("a", V)
    again.close()
    assert opened(model="new").notices == []


def test_what_belongs_to_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("of score\n")
    with pytest.raises(MambaADError, match="has rows and no ledger: choose another --output$"):
        Journal(rows, tmp_path, "m")
    assert rows.read_text() == "of score\n"
    Journal(tmp_path / "b", tmp_path, "m").close()
    (tmp_path / "other").mkdir()
    with pytest.raises(MambaADError, match=f"b is of the folder {tmp_path}: choose another --output$"):
        Journal(tmp_path / "b", tmp_path / "other", "m")
    for damage in ("no json\n", '{"end": "x"}\n', '{"end": 3}\n', "[]\n"):
        (tmp_path / "c.ledger").write_text(damage)
        with pytest.raises(MambaADError, match="c.ledger is damaged in line 1"):
            Journal(tmp_path / "c", tmp_path, "m")
    (tmp_path / "d.ledger").write_text('{"ledger": 9, "folder": "", "model": "", "end": 0}\n')
    with pytest.raises(MambaADError, match="is of a newer mambaad"):
        Journal(tmp_path / "d", tmp_path, "m")


@pytest.mark.parametrize("row", ["x" * 2000, "row of b"])
def test_a_full_disk_is_one_line_and_what_it_cut_is_mended(opened: Callable[..., Journal], row: str) -> None:
    """The rows do not fit, or only the ledger does not."""
    reason = "disk I/O error" if row == "row of b" else "File too large"
    journal = opened()
    journal.record(["row of a\n"], [Photo("a", V, "good")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MambaADError, match=rf"^cannot write .*: {reason}; the rows before are kept$"):
            journal.record([f"{row}\n"], [Photo("b", V, "good")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    journal.close()
    again = opened()
    assert output(again) == "row of a\n"
    assert not again.has("b", V)
