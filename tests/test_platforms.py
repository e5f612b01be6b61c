"""What other systems lack, or do in another way: the other half of each call, run here as if on that system."""

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError, files
from mambaad_cli.__main__ import print_anything
from mambaad_cli.benchmark import metrics
from mambaad_cli.benchmark.profile_score import resident
from mambaad_cli.cli import watch
from mambaad_cli.files import is_closed_pipe, written_whole
from mambaad_cli.inspection import store
from mambaad_cli.line.delivery import split_words
from mambaad_cli.training import cache
from tests.conftest import around, tiny_network


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")


def test_a_file_is_written_while_another_program_looks_at_the_old_one(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, rename = [1, 2], Path.replace

    def refusing(half: Path, target: Path) -> Path:
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, "in use", str(target))
        return rename(half, target)

    monkeypatch.setattr(files, "RENAME_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(Path, "replace", refusing)
    with written_whole(tmp_path / "a.txt") as half:
        half.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    refusals += [1, 2, 3]
    with pytest.raises(MambaADError, match="cannot write .*in use"), written_whole(tmp_path / "a.txt") as half:
        half.write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_windows_synchronises_only_what_is_open_to_be_written(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, int] = {}
    opened = os.open

    def noting(path: Any, flag: int, *more: Any, **named: Any) -> int:
        flags.setdefault(Path(path).suffix, flag)
        return opened(path, flag, *more, **named)

    with written_whole(tmp_path / "a.txt") as half:
        half.write_text("x")
        monkeypatch.setattr(os, "open", noting)
    assert flags[".txt"] & os.O_RDWR


def test_a_model_is_rewritten_though_its_tensors_are_used(windows: None, tmp_path: Path) -> None:
    """There a mapped file cannot be replaced, so no tensor may share memory with the file."""
    around(store.ModelRecord(tiny_network(), {})).save(tmp_path / "m.safetensors")
    mapped = torch.ones(3)
    assert store._detached(mapped).data_ptr() != mapped.data_ptr()
    record = store.load(tmp_path / "m.safetensors")
    store.save(record, tmp_path / "m.safetensors")
    assert store.load(tmp_path / "m.safetensors").network.settings == record.network.settings


def test_tensors_are_not_copied_where_a_mapped_file_can_be_replaced() -> None:
    mapped = torch.ones(3)
    assert store._detached(mapped) is mapped


def test_room_for_features_is_reserved_by_writing_where_the_system_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(cache, "BLOCK", 1000)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    room = cache._mapped(777, torch.float32)
    room[:] = torch.arange(777)
    assert room.sum() == 777 * 776 / 2
    assert list(tmp_path.iterdir()) == []
    with (tmp_path / "a").open("wb") as file:
        cache._reserve(file.fileno(), 2500)
    assert (tmp_path / "a").stat().st_size == 2500


def test_a_mapped_file_that_cannot_be_removed_yet_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, later = tmp_path / "mapped", []
    path.touch()
    unlink = Path.unlink

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "in use", str(self))

    monkeypatch.setattr(cache.atexit, "register", lambda *call: later.append(call))
    monkeypatch.setattr(Path, "unlink", refused)
    cache._remove(path)
    assert path.exists()
    ((remove, argument),) = later
    remove(argument)  # still in use: no error at the end of the process
    monkeypatch.setattr(Path, "unlink", unlink)
    remove(argument)
    assert not path.exists()


def test_a_path_of_windows_stays_whole_in_a_command(windows: None) -> None:
    assert split_words(r'C:\tools\plc.exe --port "COM 3" x') == [r"C:\tools\plc.exe", "--port", "COM 3", "x"]
    with pytest.raises(ValueError, match="quotation"):
        split_words('a "b')


def test_words_elsewhere_are_those_of_a_shell() -> None:
    assert split_words(r"a\ b 'c d'") == ["a b", "c d"]


def test_a_closed_pipe_is_known_by_its_error_on_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    invalid = OSError(errno.EINVAL, "Invalid argument")
    assert is_closed_pipe(BrokenPipeError())
    assert not is_closed_pipe(invalid)
    monkeypatch.setattr(sys, "platform", "win32")
    assert is_closed_pipe(invalid)
    assert not is_closed_pipe(OSError(errno.EINVAL, "Invalid argument", "a.csv"))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_is_not_utf_8_stops_no_command(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)

    class Bytes(io.BytesIO):
        def isatty(self) -> bool:
            return terminal

    written = Bytes()
    stream = io.TextIOWrapper(written, encoding="cp1252")
    print_anything(stream)
    stream.write("loss 1 → 2 ×")
    stream.flush()
    expected = b"loss 1 ? 2 \xd7" if terminal else "loss 1 → 2 ×".encode()
    assert written.getvalue() == expected
    asked = io.TextIOWrapper(Bytes(), encoding="cp1252")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    print_anything(asked)
    assert (asked.encoding, asked.errors) == ("cp1252", "strict")


def test_memory_is_told_without_the_calls_of_one_system(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    now = psutil.Process().memory_info().rss
    assert resident() == pytest.approx(now / 1e6, rel=0.2)
    assert metrics.peak_bytes() >= 0.9 * now
    monkeypatch.setitem(sys.modules, "resource", None)

    class Memory:
        peak_wset = 12_345

    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: Memory())
    assert metrics.peak_bytes() == 12_345


def test_a_watch_ends_by_the_signals_that_the_system_has() -> None:
    assert signal.SIGTERM in watch.END_SIGNALS
    assert all(isinstance(number, signal.Signals) for number in watch.END_SIGNALS)
    assert np.unique(watch.END_SIGNALS).size == len(watch.END_SIGNALS)
