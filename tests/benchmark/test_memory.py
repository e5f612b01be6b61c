"""Peak memory: of a process of its own on a CPU, and what is said where there is none."""

import os
import signal
from pathlib import Path

import pytest

from mambaad_cli.benchmark import detectors, memory
from tests.benchmark.rows import MAMBAAD, RD4AD, SIZE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_a_killed_process_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_send_peaks", _send_one_and_be_killed)
    assert memory._peaks_of_a_process(MAMBAAD, [SIZE, (96, 96)], "fp32") == [7, "out of memory"]


def _send_one_and_be_killed(pipe, row, sizes, precision, threads) -> None:  # type: ignore[no-untyped-def]
    pipe.send(7)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_detector_that_cannot_be_built_gives_its_reason_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(detectors, "build", scarce)
    assert list(memory._peaks(RD4AD, [SIZE, SIZE], "cpu", "fp32")) == ["out of memory"] * 2


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.peak_memory(MAMBAAD, [SIZE, (96, 96)], "cpu", "fp32") == [None, None]
