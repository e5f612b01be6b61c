"""ONNX Runtime gives the features that PyTorch gives, or is not used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.benchmark import speed
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.torch_scorer import FEW_IMAGES, TorchScorer
from mambaad_cli.model import compiled_encoder, onnx_encoder
from mambaad_cli.model.encoder import DEFAULT, Encoder, for_inference
from mambaad_cli.model.settings import PRESETS
from tests.conftest import tiny_network
from tests.model.random_encoder import with_random_norms

needs_packages = pytest.mark.skipif(not onnx_encoder.installed(), reason="onnx and onnxruntime are not installed")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The default one with random weights whose batch norms are not the identity."""
    return with_random_norms(DEFAULT)


@needs_packages
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 80, 112), (2, 65, 99)])
def test_features_are_the_same_at_any_size_and_batch(encoder: Encoder, shape: tuple[int, int, int]) -> None:
    images = torch.rand(shape[0], 3, *shape[1:])
    with torch.no_grad():
        fast = onnx_encoder.with_onnx_runtime(for_inference(encoder)).in_parts(images)
        for plain, found in zip(encoder(images), fast, strict=True):
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
            assert found.is_contiguous(memory_format=torch.channels_last)


@needs_packages
def test_features_that_differ_are_refused(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_encoder._Graph, "_active", lambda graph, x: x)  # a layer is lost
    with pytest.raises(MambaADError, match="other features"):
        onnx_encoder.with_onnx_runtime(for_inference(encoder))


@needs_packages
def test_a_runtime_that_fails_is_named(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_encoder, "OPSET", 9999)
    with pytest.raises(MambaADError, match="cannot run the encoder"):
        onnx_encoder.with_onnx_runtime(for_inference(encoder))


@pytest.fixture
def scorer(encoder: Encoder) -> TorchScorer:
    """A scorer with the default encoder, which leaves the choice of the runtime to `expecting`."""
    network = new_network(PRESETS["small"], encoder)
    network.detector.eval()
    return TorchScorer(ModelRecord(network), "auto")


def encoder_for(scorer: TorchScorer, images: int | None) -> Encoder:
    """The encoder that so many images would be scored with."""
    network = scorer.expecting(images).network
    assert network is not None
    return network.encoder


@needs_packages
def test_without_a_kernel_auto_takes_it_for_many_images_and_for_a_program_that_goes_on(
    scorer: TorchScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_encoder, "suits", lambda encoder: False)
    few, many, unknown = (encoder_for(scorer, images) for images in (FEW_IMAGES, 100, None))
    assert not isinstance(few, onnx_encoder.OnnxEncoder)
    assert isinstance(many, onnx_encoder.OnnxEncoder)
    assert unknown is many  # made once
    assert encoder_for(scorer.expecting(None), 100) is many
    assert encoder_for(scorer, 1) is few  # and the other one is kept beside it


@pytest.mark.parametrize(("precision", "runtime"), [("bf16", "auto"), ("fp32", "torch")])
def test_auto_leaves_other_precisions_to_torch(scorer: TorchScorer, precision: str, runtime: str) -> None:
    other = TorchScorer(scorer.record.at_precision(precision), runtime)
    assert not isinstance(encoder_for(other, None), onnx_encoder.OnnxEncoder)


def test_without_the_packages_auto_is_torch_and_asking_for_it_says_what_to_install(
    scorer: TorchScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_encoder, "PACKAGES", ("no_such_package",))
    assert not isinstance(encoder_for(scorer, None), onnx_encoder.OnnxEncoder)
    with pytest.raises(MambaADError, match=r"pip install 'mambaad\[fast\]'"):
        replace(scorer, runtime="onnxruntime").expecting(None)


def test_a_benchmark_of_it_without_the_packages_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_encoder, "PACKAGES", ("no_such_package",))
    with pytest.raises(MambaADError, match="not installed"):
        speed.run([], [(64, 64)], speed.Timing(runtime="onnxruntime"))


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MambaADError, match="choose auto, torch, onnxruntime"):
        mambaad_cli.load(tmp_path / "model.safetensors", "cpu", "tensorrt")


@needs_packages
def test_another_encoder_cannot_be_run_by_it() -> None:
    record = ModelRecord(tiny_network())
    assert not isinstance(encoder_for(TorchScorer(record, "auto"), None), onnx_encoder.OnnxEncoder)
    with pytest.raises(MambaADError, match="default encoder"):
        TorchScorer(record, "onnxruntime").expecting(None)


@needs_packages
def test_both_runtimes_give_the_same_scores(scorer: TorchScorer, tmp_path: Path) -> None:
    store.save(scorer.record, tmp_path / "model.safetensors")
    pictures = list(torch.rand(2, 96, 128, 3, generator=torch.Generator().manual_seed(0)).numpy())
    scores = {}
    for runtime in ("torch", "onnxruntime"):
        loaded = mambaad_cli.load(tmp_path / "model.safetensors", "cpu", runtime)
        scores[runtime] = [prediction.score for prediction in loaded.predict(pictures)]
    assert scores["onnxruntime"] == pytest.approx(scores["torch"], rel=1e-3)
