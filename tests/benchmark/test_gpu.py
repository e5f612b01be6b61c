"""The program for a GPU, as far as a CPU can show: its table, its file and its exit status."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mambaad_cli.benchmark import gpu
from mambaad_cli.benchmark.gpu import Finding, Options
from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.model.kernels import plain_scan, triton_scan
from mambaad_cli.training.fit import fit_request
from tests.conftest import picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for folder, count in (("good", 10), ("incoming", 2)):
        for i in range(count):
            images.write(tmp_path / folder / f"{i}.png", picture(i + 50 * (folder == "incoming")))
    return tmp_path


def exit_status(arguments: list[str]) -> object:
    try:
        gpu.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = photos / "gpu.json"
    assert exit_status([str(photos / "good"), str(photos / "incoming"), "--json", str(file)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mambaad: no GPU that torch can use, so nothing was measured\n")
    assert not file.exists()


@pytest.mark.slow
def test_on_a_cpu_all_checks_run_and_table_and_file_say_the_same(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photos / "gpu.json"
    arguments = [str(photos / "good"), str(photos / "incoming"), "--device", "cpu", "--quick", "--json", str(file)]
    status = exit_status(arguments)
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    failed = [one for one in written["findings"] if one["passed"] is False]
    assert (status, failed) == (0, [])
    whats = [f"{one['part']} {one['what']}" for one in written["findings"] if one["what"] != "took"]
    assert whats == [
        "tests skipped",
        "fit plain", "fit --folds 2", "fit a product of 4 photos", "fit --precision bf16",
        "scores largest difference from the CPU", "scores photos a second, the first ones among them",
        "encoder batch norms are folded",
        "training a step of 8 images",
        "scan bandwidth of a copy", "scan tiny: forward", "scan tiny: forward and backward",
    ]  # fmt: skip
    assert printed == gpu.table([Finding(**one) for one in written["findings"]]) + "\n"
    assert "device" in written["machine"]


def test_a_check_that_raises_an_error_fails_the_others_go_on_and_the_status_is_1(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: Options) -> Iterator[Finding]:
        yield Finding("", "first")
        raise RuntimeError("CUDA error: an illegal instruction\nwas encountered")

    file = photos / "gpu.json"
    monkeypatch.setattr(gpu, "CHECKS", {"broken": broken, "encoder": gpu.folded_encoder})
    arguments = [str(photos / "good"), str(photos / "incoming"), "--device", "cpu", "--json", str(file)]
    assert exit_status(arguments) == 1
    found = [(one["part"], one["what"], one["note"]) for one in json.loads(file.read_text())["findings"]]
    assert found == [
        ("broken", "first", ""),
        ("broken", "ended with an error", "CUDA error: an illegal instruction"),
        ("broken", "took", ""),
        ("encoder", "batch norms are folded", ""),
        ("encoder", "took", ""),
    ]


def test_a_device_whose_scores_differ_fails(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU that rounds would: here the second scoring of the same photos is off by a hundredth."""
    options = Options("cpu", photos / "good", images.find([photos / "incoming"]), quick=True, folder=photos)
    store.save(fit_request(options.fit()), photos / "model.safetensors")
    (difference, _) = gpu.scores(options)
    assert difference.passed
    assert difference.number == 0
    real: Any = gpu.predict
    calls: list[int] = []

    def off(*arguments: Any) -> Iterator[Any]:
        calls.append(1)
        factor = 1.01 if len(calls) == 2 else 1.0
        return (one._replace(score=one.score * factor) for one in real(*arguments))

    monkeypatch.setattr(gpu, "predict", off)
    (difference, _) = gpu.scores(options)
    assert difference.passed is False
    assert difference.number == pytest.approx(0.01)


def test_a_share_of_the_bandwidth_counts_each_input_once() -> None:
    inputs = gpu.scan_inputs(2, 8, 2, 16, 16, 1)
    y = torch.zeros(2, 64, 16)
    floats = 2 * 64 * 16 + 2 * 64 * 2 * 33 + 2 * 16 * 1 + 2 * 16 + 2 * 16 * 16 + 2 * 16 + 2 * 64 * 16
    assert gpu.scan_bytes(inputs, y) == 4 * floats + 2 * 64 * inputs[-1].element_size()


def test_the_triton_scan_is_measured_and_checked_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU plain PyTorch stands in for them, the second time with wrong numbers."""
    forms = dict.fromkeys(triton_scan.FORMS, plain_scan.chunked_scan)
    forms["three passes"] = lambda *inputs: 1.01 * plain_scan.chunked_scan(*inputs)
    monkeypatch.setattr(triton_scan, "FORMS", forms)
    inputs = gpu.scan_inputs(1, 4, 2, 16, 16, 1)
    found = gpu._triton_forms(inputs, Options("cpu", Path(), ()))
    assert [(one.what, one.passed) for one in found] == [("Triton, one pass", True), ("Triton, three passes", False)]
    assert all(one.number is not None and one.number > 0 for one in found)
