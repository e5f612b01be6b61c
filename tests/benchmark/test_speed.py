"""Measuring: counts by hand, failures that stay one row's, turns without a clock.

Nothing here asserts how long something takes.
"""

import os
import signal
from pathlib import Path

import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import speed as bench
from mambaad_cli.benchmark.speed import Benchmark, Result, Row
from mambaad_cli.inspection import model_file as modelfile
from mambaad_cli.inspection.model_file import Model, Settings, new_model

MAMBAAD = Row("MambaAD tiny", "mambaad", "test_resnet", {"depths": (1, 1, 1, 1), "directions": 2})
RD4AD = Row("RD4AD tiny", "rd4ad", "test_resnet", {})
UNIAD = Row("UniAD tiny", "uniad", "resnet18", {"grid": (4, 4), "width": 32, "layers": 1, "heads": 2, "hidden": 64})
SIZE = (64, 64)


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    """All three at two resolutions."""
    return bench.run([MAMBAAD, RD4AD, UNIAD], [(96, 64), SIZE], seconds=0.01, threads=1)


def flops_of(model: Model, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    return bench.count_flops(bench.scoring(model, size, 1, "cpu", "fp32"))


# Counting


def test_scan_flops_are_nine_a_position_direction_channel_and_state() -> None:
    _, scanned = flops_of(bench.build(MAMBAAD).model)
    # test_resnet's 32, 48, 192 channels at strides 4, 8, 16, and 384 at stride 32; d is twice that, 2 directions
    by_hand = sum(9 * l * 2 * (2 * c) * 16 for l, c in ((2 * 2, 384), (4 * 4, 192), (8 * 8, 48), (16 * 16, 32)))
    assert scanned == by_hand


def test_a_block_more_adds_its_products_and_its_scan() -> None:
    """The finest stage's module with two blocks instead of one: an HSS block of 32 channels on 16 × 16 positions."""
    deeper = MAMBAAD._replace(options=MAMBAAD.options | {"depths": (1, 1, 1, 2)})
    more, less = (flops_of(bench.build(row).model) for row in (deeper, MAMBAAD))
    l, c, d, k, n, r = 256, 32, 64, 2, 16, 2
    macs = l * (c * 2 * d + 9 * d + k * d * (r + 2 * n) + k * d * r + d * c)  # in, depth-wise, x, dt, out
    assert more[0] - less[0] == 2 * macs
    assert more[1] - less[1] == 9 * l * k * d * n


def test_counts_do_not_depend_on_what_was_counted_before() -> None:
    model = bench.build(RD4AD).model
    size = (72, 40)  # no other test's: its upsampling matrices are not made yet
    assert flops_of(model, size) == flops_of(model, size)


def test_attention_is_counted() -> None:
    one, two = (bench.build(UNIAD._replace(options=UNIAD.options | {"layers": layers})).model for layers in (1, 2))
    l, d = 16, 32
    linear = 4 * l * d * d  # query, key, value and output of one attention
    attention = 2 * l * l * d  # query by key, weights by value
    feed_forward = 2 * l * d * 64
    assert flops_of(two)[0] - flops_of(one)[0] == 2 * (3 * (linear + attention) + 2 * feed_forward)


def test_parameters_are_those_of_encoder_and_detector_with_their_batch_norms() -> None:
    model = new_model(Settings(UNIAD.detector, UNIAD.encoder, options=UNIAD.options))
    trained = sum(parameter.numel() for parameter in model.detector.parameters())
    one = bench.build(UNIAD)
    assert one.trained == trained
    assert one.parameters == trained + sum(parameter.numel() for parameter in model.encoder.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in one.model.encoder.modules())


def test_the_papers_size_and_cost() -> None:
    """Its figures at 256 × 256: 25.6 M parameters, 17.4 M trained, 4.45 GFLOP of scan."""
    one = bench.build(bench.ROWS[0])
    assert one.parameters == pytest.approx(25.6e6, rel=0.003)
    assert one.trained == pytest.approx(17.4e6, rel=0.003)
    dense, scanned = flops_of(one.model, (256, 256))
    assert scanned == 4_454_350_848
    assert dense / 2 == pytest.approx(8.30e9, rel=0.01)


def test_encoder_matched_rows_share_the_papers_encoder() -> None:
    assert bench.ROWS[0].encoder == "resnet34"
    assert {row.detector for row in bench.ROWS if row.encoder == "resnet34"} == {"mambaad", "rd4ad", "uniad"}


# A real run


def test_every_detector_is_measured_at_every_resolution_smallest_first(measured: Benchmark) -> None:
    found = [(result.row.name, result.size) for result in measured.results]
    names = ("MambaAD tiny", "RD4AD tiny", "UniAD tiny")
    assert found == [(name, size) for size in (SIZE, (96, 64)) for name in names]
    for result in measured.results:
        assert result.error == ""
        assert 0 < result.trained < result.parameters
        assert result.dense_flop > 0
        assert (result.scan_flop > 0) == (result.row.detector == "mambaad")
        assert len(result.latency) >= bench.LEAST_ROUNDS
        assert len(result.throughput) >= bench.LEAST_ROUNDS
        assert min(result.latency + result.throughput) > 0
        assert not result.training


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_peak_memory_holds_the_weights_and_not_the_libraries(measured: Benchmark) -> None:
    for result in measured.results:
        assert result.peak_memory is not None
        assert 4 * result.parameters < result.peak_memory < 4 * result.parameters + 150e6


def test_threads_are_as_before_after_a_run(measured: Benchmark) -> None:
    threads = torch.get_num_threads()
    bench.run([], [SIZE], threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert measured.machine["threads"] == "1"


def test_training_steps_learn_and_leave_the_detector_scoring() -> None:
    model = bench.build(UNIAD).model
    before = model.detector.project_out.weight.clone()
    bench.training(model, SIZE, "cpu", "fp32")()
    assert not torch.equal(model.detector.project_out.weight, before)

    result = Result(UNIAD, SIZE)
    bench._time_training([bench.Contestant(UNIAD, model, 0, 0)], [result], 0.01, "cpu", "fp32")
    assert len(result.training) >= bench.LEAST_ROUNDS
    assert not model.detector.training


def test_bf16_passes_and_fitted_models_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    path = tmp_path / "parts.safetensors"
    modelfile.save(new_model(Settings(MAMBAAD.detector, MAMBAAD.encoder, SIZE, options=MAMBAAD.options)), path)
    row = bench.fitted(path)
    assert (row.name, row.detector, row.encoder) == ("parts.safetensors", "mambaad", "test_resnet")
    (result,) = bench.run([row], [SIZE], seconds=0.01, batch=3, precision="bf16").results
    assert result.error == ""
    assert result.batch == 3


# One that fails


def test_a_row_that_runs_out_of_memory_says_so_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    anomaly_maps = Model.anomaly_maps

    def greedy(model: Model, images: torch.Tensor) -> torch.Tensor:
        if model.settings.detector == "rd4ad":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …\nframe 1")
        return anomaly_maps(model, images)

    monkeypatch.setattr(Model, "anomaly_maps", greedy)
    monkeypatch.setattr(bench, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    mambaad, rd4ad, uniad = bench.run([MAMBAAD, RD4AD, UNIAD], [SIZE], seconds=0.01, batch=1).results
    assert rd4ad.error == "out of memory"
    assert rd4ad.latency == rd4ad.throughput == []
    assert mambaad.error == uniad.error == ""
    assert len(mambaad.latency) == len(uniad.latency) > 0


def test_a_row_that_cannot_be_built_says_so_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    build = bench.build

    def scarce(row: Row, device: str = "cpu") -> bench.Contestant:
        if row is RD4AD:
            raise MemoryError
        return build(row, device)

    monkeypatch.setattr(bench, "build", scarce)
    monkeypatch.setattr(bench, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    results = bench.run([MAMBAAD, RD4AD, UNIAD], [(64, 96), SIZE], seconds=0.01, batch=1).results
    assert [result.row for result in results] == [MAMBAAD, RD4AD, UNIAD] * 2
    assert [result.size for result in results] == [SIZE] * 3 + [(64, 96)] * 3
    assert [result.error for result in results] == ["", "out of memory", ""] * 2
    assert list(bench._peaks(RD4AD, [SIZE, SIZE], "cpu", "fp32")) == ["out of memory"] * 2


def test_a_batch_too_large_leaves_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    anomaly_maps = Model.anomaly_maps

    def small(model: Model, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return anomaly_maps(model, images)

    monkeypatch.setattr(Model, "anomaly_maps", small)
    monkeypatch.setattr(bench, "_peaks_of_a_process", lambda row, sizes, precision: [None] * len(sizes))
    (asked,) = bench.run([UNIAD], [SIZE], seconds=0.01, batch=4).results
    assert asked.error == "throughput: out of memory"
    assert asked.latency
    assert not asked.throughput


def test_a_resolution_too_small_is_that_rows_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_peaks_of_a_process", lambda row, sizes, precision: ["the image is too small"])
    (result,) = bench.run([MAMBAAD], [SIZE], seconds=0.01).results
    assert result.error == "the image is too small"
    assert not result.latency


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_a_killed_process_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_send_peaks", _send_one_and_be_killed)
    assert bench._peaks_of_a_process(MAMBAAD, [SIZE, (96, 96)], "fp32") == [7, "out of memory"]


def _send_one_and_be_killed(pipe, row, sizes, precision, threads) -> None:  # type: ignore[no-untyped-def]
    pipe.send(7)
    os.kill(os.getpid(), signal.SIGKILL)


# Timing, without a clock


def test_detectors_take_turns_and_one_that_fails_leaves_the_round() -> None:
    calls = []

    def task(name: str, lasts: int) -> None:
        calls.append(name)
        if calls.count(name) > lasts:
            raise MemoryError

    results = [Result(row, SIZE) for row in (MAMBAAD, RD4AD, UNIAD)]
    tasks = [lambda: task("A", 9), lambda: task("B", 1), lambda: task("C", 9)]
    times = bench.interleaved(results, tasks, end=0.0)
    assert "".join(calls) == "ABCABCAC"
    assert [len(own) for own in times] == [3, 0, 3]
    assert [result.error for result in results] == ["", "out of memory", ""]


def test_best_batch_stops_where_time_or_memory_ends() -> None:
    def seconds_of(batch: int) -> float:
        if batch == 4:
            raise MemoryError
        return 1.5 * batch**0.5

    assert bench.best_batch(seconds_of, [1, 2, 4, 8], seconds=100) == 2
    assert bench.best_batch(seconds_of, [1, 2], seconds=4) == 1  # 1.5 s, and 3 s expected of the next
    with pytest.raises(MemoryError):
        bench.best_batch(seconds_of, [4], seconds=100)


# Choosing


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], [row.name for row in bench.ROWS]),
        (["uniad"], ["UniAD (EfficientNet-B4)", "UniAD, ResNet34"]),
        (["rd4ad-resnet34", "mambaad-paper"], ["MambaAD paper", "RD4AD, ResNet34"]),
        (["RD4AD (WideResNet50)"], ["RD4AD (WideResNet50)"]),
    ],
)
def test_detectors_are_chosen_by_kind_or_name(names: list[str], chosen: list[str]) -> None:
    assert [row.name for row in bench.choose(names)] == chosen


def test_an_unknown_detector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MambaADError, match=r"no detector 'patchcore'.*mambaad, rd4ad, uniad, mambaad-paper"):
        bench.choose(["patchcore"])
