"""Timing: failures that stay one row's, turns without a clock.

Nothing here asserts how long something takes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from mambaad_cli.benchmark import detectors, memory, speed
from mambaad_cli.benchmark.detectors import BuiltDetector, DetectorSpec
from mambaad_cli.benchmark.passes import training_step
from mambaad_cli.benchmark.speed import Benchmark, SpeedResult, Timing
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network, new_network
from mambaad_cli.model.settings import Settings
from tests.benchmark.rows import MAMBAAD, RD4AD, SIZE, UNIAD


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    """All three at two resolutions."""
    return speed.run([MAMBAAD, RD4AD, UNIAD], [(96, 64), SIZE], Timing(seconds=0.01, threads=1))


# A real run


def test_every_detector_is_measured_at_every_resolution_smallest_first(measured: Benchmark) -> None:
    found = [(result.spec.name, result.size) for result in measured.results]
    names = ("MambaAD tiny", "RD4AD tiny", "UniAD tiny")
    assert found == [(name, size) for size in (SIZE, (96, 64)) for name in names]
    for result in measured.results:
        assert result.error == ""
        assert 0 < result.trained < result.parameters
        assert result.dense_flop > 0
        assert (result.scan_flop > 0) == (result.spec.detector == "mambaad")
        assert len(result.latency) >= speed.MIN_ROUNDS
        assert len(result.throughput) >= speed.MIN_ROUNDS
        assert min(result.latency + result.throughput) > 0
        assert not result.training


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_peak_memory_holds_the_weights_and_not_the_libraries(measured: Benchmark) -> None:
    for result in measured.results:
        assert result.peak_memory is not None
        assert 4 * result.parameters < result.peak_memory < 4 * result.parameters + 80e6


def test_threads_are_as_before_after_a_run(measured: Benchmark) -> None:
    threads = torch.get_num_threads()
    speed.run([], [SIZE], Timing(threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert measured.machine["threads"] == "1"


def test_training_steps_learn_and_leave_the_detector_scoring() -> None:
    built = detectors.build(UNIAD)
    assert built.network is not None
    detector = built.network.detector
    before = detector.project_out.weight.clone()
    training_step(built.network, SIZE)()
    assert not torch.equal(detector.project_out.weight, before)

    result = SpeedResult(UNIAD, SIZE)
    speed._time_training([built], [result], Timing(seconds=0.01))
    assert len(result.training) >= speed.MIN_ROUNDS
    assert not detector.training


def test_bf16_passes_and_fitted_models_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    path = tmp_path / "parts.safetensors"
    settings = Settings(MAMBAAD.detector, MAMBAAD.encoder, SIZE, options=MAMBAAD.options)
    store.save(ModelRecord(new_network(settings)), path)
    row = detectors.fitted(path)
    assert (row.name, row.detector, row.encoder) == ("parts.safetensors", "mambaad", "test_resnet")
    anomaly_maps, seen = Network.anomaly_maps, []

    def watched(network: Network, features: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        seen.append((len(features[0]), torch.is_autocast_enabled("cpu")))
        return anomaly_maps(network, features, *rest)

    monkeypatch.setattr(Network, "anomaly_maps", watched)
    (result,) = speed.run([row], [SIZE], Timing(seconds=0.01, batch=3, precision="bf16")).results
    assert result.error == ""
    assert result.batch == 3
    assert seen[-1] == (3, True)
    assert (1, True) in seen


# One that fails


def test_a_row_that_runs_out_of_memory_says_so_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    anomaly_maps = Network.anomaly_maps

    def greedy(network: Network, features: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        if network.settings.detector == "rd4ad":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …\nframe 1")
        return anomaly_maps(network, features, *rest)

    monkeypatch.setattr(Network, "anomaly_maps", greedy)
    monkeypatch.setattr(memory, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    mambaad, rd4ad, uniad = speed.run([MAMBAAD, RD4AD, UNIAD], [SIZE], Timing(seconds=0.01, batch=1)).results
    assert rd4ad.error == "out of memory"
    assert rd4ad.latency == rd4ad.throughput == []
    assert mambaad.error == uniad.error == ""
    assert len(mambaad.latency) == len(uniad.latency) > 0


def test_a_row_that_cannot_be_built_says_so_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    build = detectors.build

    def scarce(row: DetectorSpec, device: str = "cpu", runtime: str = "torch") -> BuiltDetector:
        if row is RD4AD:
            raise MemoryError
        return build(row, device, runtime)

    monkeypatch.setattr(detectors, "build", scarce)
    monkeypatch.setattr(memory, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    results = speed.run([MAMBAAD, RD4AD, UNIAD], [(64, 96), SIZE], Timing(seconds=0.01, batch=1)).results
    assert [result.spec for result in results] == [MAMBAAD, RD4AD, UNIAD] * 2
    assert [result.size for result in results] == [SIZE] * 3 + [(64, 96)] * 3
    assert [result.error for result in results] == ["", "out of memory", ""] * 2


def test_a_batch_too_large_leaves_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    anomaly_maps = Network.anomaly_maps

    def small(network: Network, features: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        if len(features[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return anomaly_maps(network, features, *rest)

    monkeypatch.setattr(Network, "anomaly_maps", small)
    monkeypatch.setattr(memory, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    (asked,) = speed.run([UNIAD], [SIZE], Timing(seconds=0.01, batch=4)).results
    assert asked.error == "throughput: out of memory"
    assert asked.latency
    assert not asked.throughput


def test_a_resolution_too_small_is_that_rows_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peaks_of_a_process", lambda row, sizes, precision: ["the image is too small"])
    (result,) = speed.run([MAMBAAD], [SIZE], Timing(seconds=0.01)).results
    assert result.error == "the image is too small"
    assert not result.latency


# Timing, without a clock


def test_detectors_take_turns_and_one_that_fails_leaves_the_round() -> None:
    calls = []

    def task(name: str, lasts: int) -> None:
        calls.append(name)
        if calls.count(name) > lasts:
            raise MemoryError

    results = [SpeedResult(row, SIZE) for row in (MAMBAAD, RD4AD, UNIAD)]
    tasks = [lambda: task("A", 9), lambda: task("B", 1), lambda: task("C", 9)]
    times = speed.interleaved(results, tasks, end=0.0)
    assert "".join(calls) == "ABCABCAC"
    assert [len(own) for own in times] == [3, 0, 3]
    assert [result.error for result in results] == ["", "out of memory", ""]


def test_best_batch_stops_where_time_or_memory_ends() -> None:
    def seconds_of(batch: int) -> float:
        if batch == 4:
            raise MemoryError
        return 1.5 * batch**0.5

    assert speed.best_batch(seconds_of, [1, 2, 4, 8], seconds=100) == 2
    assert speed.best_batch(seconds_of, [1, 2], seconds=4) == 1  # 1.5 s, and 3 s expected of the next
    with pytest.raises(MemoryError):
        speed.best_batch(seconds_of, [4], seconds=100)
