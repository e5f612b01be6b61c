import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.line.arrivals import Version
from mambaad_cli.line.journal import Journal

V = Version(3, 14)
EVIL = 'two\nlines "<b>" \udcff.png'


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Journal]:
    def journal(model: str = "m", header: str = "") -> Journal:
        return Journal(tmp_path / "out" / "rows.jsonl", tmp_path, model, header)

    return journal


def output(journal: Journal) -> str:
    return journal.output.read_text(encoding="utf-8", errors="surrogateescape")


def test_what_has_a_row_is_known_after_a_restart_whatever_its_name(opened: Callable[..., Journal]) -> None:
    first = opened(header="path\n")
    first.record([f"{EVIL}\n"], [(EVIL, V, "good")])
    first.close()
    again = opened(header="path\n")
    assert again.mended == []
    assert output(again) == f"path\n{EVIL}\n"
    assert again.has(EVIL, V)
    assert not again.has(EVIL, Version(3, 15))
    assert again.known[EVIL].verdict == "good"


@pytest.mark.parametrize("more", ["row of b\n", "row o", "row of b\nrow of c\nro"])
def test_rows_without_a_line_in_the_ledger_are_taken_back(opened: Callable[..., Journal], more: str) -> None:
    first = opened()
    first.record(["row of a\n"], [("a", V, "good")])
    first.close()
    with first.output.open("a") as file:
        file.write(more)
    again = opened()
    assert output(again) == "row of a\n"
    assert len(again.mended) == 1


def test_a_half_written_line_of_the_ledger_is_mended_and_its_row_taken_back(opened: Callable[..., Journal]) -> None:
    first = opened()
    first.record(["row of a\n"], [("a", V, "good")])
    first.record(["row of b\n"], [("b", V, "good")])
    first.close()
    os.truncate(first.path, first.path.stat().st_size - 9)
    again = opened()
    assert output(again) == "row of a\n"
    assert not again.has("b", V)
    again.record(["row of b\n"], [("b", V, "good")])
    again.close()
    assert output(opened()) == "row of a\nrow of b\n"
    assert all(json.loads(line) for line in first.path.read_text().splitlines())


def test_killed_at_any_byte_of_a_first_run_the_next_one_starts(opened: Callable[..., Journal]) -> None:
    """The header of the rows, too, is written between two lines of the ledger."""
    opened(header="path\n").close()
    journal = opened(header="path\n")
    whole = journal.path.read_bytes()
    journal.close()
    for length in range(len(whole.splitlines(keepends=True)[0]), len(whole), 7):
        journal.path.write_bytes(whole[:length])
        again = opened(header="path\n")
        assert output(again) == "path\n"
        again.close()


def test_rows_that_were_moved_away_start_anew_and_photos_stay_known(opened: Callable[..., Journal]) -> None:
    first = opened(header="path\n")
    first.record(["row of a\n"], [("a", V, "good")])
    first.close()
    first.output.unlink()
    again = opened(header="path\n")
    assert output(again) == "path\n"
    assert again.has("a", V)
    assert again.mended == [f"{first.output} is shorter than it was: rows go on from here"]
    again.record(["row of b\n"], [("b", V, "good")])
    again.close()
    assert output(opened()) == "path\nrow of b\n"


def test_rows_that_are_moved_away_meanwhile_go_on_in_a_new_file(opened: Callable[..., Journal]) -> None:
    journal = opened(header="path\n")
    journal.record(["row of a\n"], [("a", V, "good")])
    journal.output.rename(journal.output.with_suffix(".1"))
    journal.record(["row of b\n"], [("b", V, "good")])
    journal.close()
    assert output(journal) == "path\nrow of b\n"
    assert journal.output.with_suffix(".1").read_text() == "path\nrow of a\n"
    again = opened(header="path\n")
    assert (output(again), again.mended) == ("path\nrow of b\n", [])
    assert again.has("a", V)


def test_one_writer_at_a_time(opened: Callable[..., Journal]) -> None:
    first = opened()
    with pytest.raises(MambaADError, match="^another mambaad watch writes .*rows.jsonl: choose another --output$"):
        opened()
    first.close()
    opened().close()


def test_another_model_is_told_and_goes_on(opened: Callable[..., Journal]) -> None:
    first = opened(model="old")
    first.record(["row of a\n"], [("a", V, "good")])
    first.close()
    again = opened(model="new")
    assert again.mended == ["the rows so far are of another model, old; their photos are not scored again"]
    assert again.has("a", V)
    again.close()
    assert opened(model="new").mended == []


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


def test_a_full_disk_is_one_line_and_what_it_cut_is_mended(opened: Callable[..., Journal]) -> None:
    journal = opened()
    journal.record(["row of a\n"], [("a", V, "good")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*: File too large; the rows before are kept$"):
            journal.record([f"{'x' * 2000}\n"], [("b", V, "good")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    journal.close()
    again = opened()
    assert output(again) == "row of a\n"
    assert not again.has("b", V)
