"""What doctor tells of the machine, and what a benchmark's numbers hold for."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from mambaad_cli.benchmark import machine
from mambaad_cli.cli import app


def reading(**cpu_times: Any) -> list[Any]:
    """What psutil finds: processes by number, with their seconds in user and system mode, or None where it may not
    look."""
    return [
        SimpleNamespace(pid=int(pid[1:]), info={"cpu_times": times and SimpleNamespace(user=times[0], system=times[1])})
        for pid, times in cpu_times.items()
    ]


def test_cores_taken_are_what_the_other_processes_spent_while_they_were_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = [
        reading(_1=(10.0, 5.0), _2=(3.0, 0.0), _3=None, _4=(1.0, 0.0), _99=(50.0, 0.0)),
        reading(_1=(10.2, 5.1), _2=(3.1, 0.0), _3=None, _5=(9.0, 9.0), _99=(50.2, 0.0)),
    ]
    clock = iter([100.0, 100.2])
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: readings.pop(0))
    monkeypatch.setattr(machine.os, "getpid", lambda: 99)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    # 0.3 s of the first and 0.1 s of the second in 0.2 s; this process, one that ended and one that began do not count
    assert machine.cores_taken_by_others(0.2) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("taken", "cores", "said"),
    [
        (0.0, 2, "quiet"),
        (0.19, 2, "quiet"),
        (0.2, 2, "0.2 busy processes besides this one on 2 cores: fits and scores take longer"),
        (1.5, 16, "quiet"),
        (0.9, 1, "0.9 busy processes besides this one on 1 core: fits and scores take longer"),
    ],
)
def test_a_machine_is_busy_when_others_take_a_tenth_of_its_cores(taken: float, cores: int, said: str) -> None:
    assert machine.load_fact(taken, cores) == said


def test_doctor_says_that_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores_taken_by_others", lambda: 1.88)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "_nanoseconds", lambda function: 1.0)
    monkeypatch.setattr(machine, "_weights", lambda: "installed")
    said = "1.9 busy processes besides this one on 2 cores: fits and scores take longer"
    assert machine.facts()["load"] == said


def test_conditions_name_the_device_the_threads_and_the_software(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.cpu, "kernels", lambda: None)
    found = machine.conditions("cpu", "bf16")
    assert list(found) == ["device", "threads", "precision", "scan", "mambaad", "torch", "python"]
    assert found["device"]
    assert (found["precision"], found["scan"]) == ("bf16", "chunked PyTorch")
    assert found["threads"] == str(torch.get_num_threads())


def test_doctor_prints_the_name_of_an_extra_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as rich's markup, which would leave out what is in brackets."""
    monkeypatch.setattr(machine, "facts", lambda: {"runtime": "missing: pip install 'mambaad[fast]'"})
    shown = CliRunner().invoke(app, ["doctor"]).output
    assert "pip install 'mambaad[fast]'" in shown
