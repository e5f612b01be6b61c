"""float32 means float32, on a GPU as well. PyTorch's settings for GPUs can be read and set without one."""

import threading
from collections.abc import Iterator

import pytest
import torch

from mambaad_cli.model import precision
from mambaad_cli.model.anomaly_map import fuse, local_contrast, residual_statistics, residuals, standardised_distances
from mambaad_cli.model.encoder import build_encoder, for_inference
from mambaad_cli.model.memory import distances, memory_of
from mambaad_cli.model.precision import exact_float32, reproducible, rounding
from tests.model.dispatch import Recorder


def settings() -> tuple[str, bool, bool, bool]:
    """Precision of products; TF32 in products and in convolutions; deterministic convolutions."""
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul.allow_tf32
    return torch.get_float32_matmul_precision(), matmul, cudnn.allow_tf32, cudnn.deterministic


@pytest.fixture(params=["highest", "high", "medium"], autouse=True)
def of_the_program(request: pytest.FixtureRequest) -> Iterator[None]:
    """The precision that the program chose for itself, which we must leave as it is."""
    assert settings()[2], "convolutions may use TF32 by default"
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_float32_is_exact_inside_and_what_the_program_chose_outside(device: str) -> None:
    before = settings()
    with rounding("fp32", device):
        assert settings()[1:3] == (False, False)
        with exact_float32(torch.device(device)):
            assert settings()[1:3] == (False, False)
        assert settings()[1:3] == (False, False)
    assert settings() == before


def test_after_an_error_the_settings_are_those_of_before() -> None:
    before = settings()
    with pytest.raises(ValueError, match="of the body"), exact_float32("cuda"):
        raise ValueError("of the body")
    assert settings() == before


def test_on_a_cpu_nothing_is_changed() -> None:
    before = settings()
    with rounding("fp32", "cpu"), exact_float32("cpu"), reproducible("cpu"):
        assert settings() == before


def test_it_stays_exact_for_one_thread_when_another_one_is_done() -> None:
    """One model may be used from several threads, and the settings hold for all of them."""
    before = settings()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with exact_float32("cuda"):
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with exact_float32("cuda"):
        second_is_in.set()
        assert first_is_out.wait(10)
        assert settings()[1:3] == (False, False)
    thread.join()
    assert settings() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="names of PyTorch 2.9")
def test_a_program_that_uses_the_newer_names_keeps_its_choice() -> None:
    """PyTorch refuses to read the old names then."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    before = matmul.fp32_precision, cudnn.conv.fp32_precision
    try:
        matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32"
        with exact_float32("cuda"):
            assert settings()[:3] == ("highest", False, False)
        assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, cudnn.conv.fp32_precision = before


def test_training_may_ask_for_the_same_bits_each_time() -> None:
    before = settings()
    with reproducible("cuda"):
        assert settings()[1:] == (False, False, True)
    assert settings() == before


def test_bf16_rounds_factors_and_fp32_leaves_an_autocast_of_the_caller() -> None:
    x = torch.rand(4, 4)
    with rounding("bf16", "cpu"):
        assert (x @ x).dtype == torch.bfloat16
    with rounding("fp32", "cpu"):
        assert (x @ x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), rounding("fp32", "cpu"):
        assert (x @ x).dtype == torch.bfloat16


def test_the_recorder_sees_what_is_not_exact() -> None:
    with Recorder() as recorder:
        torch.rand(3, 3) @ torch.rand(3, 3)
    assert recorder.inexact == ["mm"]


@pytest.mark.parametrize("work", ["map", "contrast", "statistics", "memory", "distances", "folding"])
def test_every_product_of_a_score_is_exact(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a GPU: none of the products that make a map may use TF32."""
    features = [torch.randn(2, c, side, side) for c, side in ((6, 16), (8, 8), (10, 4))]
    good = residuals(features, [torch.randn_like(stage) for stage in features])
    memory = memory_of(torch.randn(60, 6), 20, seed=0)[0]
    encoder = build_encoder("test_resnet", (4, 8, 16))
    works = {
        "map": lambda: fuse([torch.rand(1, 8, 8)], (32, 32)),
        "contrast": lambda: local_contrast(torch.rand(1, 32, 32), 0.4),
        "statistics": lambda: standardised_distances(good, residual_statistics(lambda: [good])),
        "memory": lambda: memory_of(torch.randn(60, 6), 20, seed=0),
        "distances": lambda: distances(memory, torch.randn(1, 9, 7, 6)),
        "folding": lambda: for_inference(encoder),
    }
    monkeypatch.setattr(precision, "_may_round", lambda device: True)
    with Recorder() as recorder:
        works[work]()
    assert set(recorder.operators) & set(Recorder.products)
    assert recorder.inexact == []
