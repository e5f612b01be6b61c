"""The kernel of the default encoder gives the features that PyTorch's modules give."""

from unittest.mock import patch

import pytest
import torch

from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.torch_scorer import inference_network
from mambaad_cli.model import compiled_encoder
from mambaad_cli.model.compiled_encoder import CompiledEncoder
from mambaad_cli.model.encoder import DEFAULT, Encoder, build_encoder, for_inference
from mambaad_cli.model.kernels import cpu, inverted_residual
from mambaad_cli.model.settings import PRESETS
from tests.model.random_encoder import with_random_norms

needs_kernels = pytest.mark.skipif(cpu.kernels() is None, reason="the kernels were not built: no C compiler")


@pytest.fixture(scope="module", params=["efficientnet_lite2", DEFAULT])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return with_random_norms(request.param)


def assert_same(encoder: Encoder, images: torch.Tensor) -> None:
    with torch.no_grad():
        fast = CompiledEncoder(for_inference(encoder)).in_parts(images)
        for plain, found in zip(encoder(images), fast, strict=True):
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
            assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 64, 64), (3, 80, 112), (2, 65, 99), (5, 33, 250)])
def test_features_are_the_same_at_any_size_and_batch(encoder: Encoder, shape: tuple[int, int, int]) -> None:
    assert_same(encoder, torch.rand(shape[0], 3, *shape[1:]))


@pytest.mark.usefixtures("isa")
def test_rows_so_wide_that_they_are_cut_into_tiles_give_the_same(encoder: Encoder) -> None:
    assert_same(encoder, torch.rand(1, 3, 48, 2000))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_any_number_of_threads_gives_the_very_same(encoder: Encoder, threads: int) -> None:
    fast, images = CompiledEncoder(for_inference(encoder)), torch.rand(2, 3, 96, 80)
    with torch.no_grad():
        expected = fast(images)
        with patch.object(torch, "get_num_threads", lambda: threads):
            found = fast(images)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


@needs_kernels
@pytest.mark.parametrize(("precision", "compiled"), [("fp32", True), ("bf16", False)])
def test_inference_takes_it_where_products_are_float32(precision: str, compiled: bool) -> None:
    record = ModelRecord(new_network(PRESETS["small"], with_random_norms(DEFAULT))).at_precision(precision)
    network = inference_network(record.network, {})
    assert isinstance(network.encoder, CompiledEncoder) is compiled


def test_without_the_kernels_it_is_not_taken() -> None:
    with patch.object(compiled_encoder.cpu, "kernels", lambda: None):
        assert not compiled_encoder.suits(build_encoder(DEFAULT, (4, 8, 16)))


@pytest.mark.parametrize(
    ("inputs", "wide", "narrow", "kernel", "stride"),
    [(12, 96, 24, 3, 1), (16, 100, 24, 3, 1), (16, 96, 20, 3, 1), (16, 96, 24, 7, 1), (16, 96, 24, 3, 3)],
)
def test_a_block_that_the_kernel_does_not_know_is_refused(
    inputs: int, wide: int, narrow: int, kernel: int, stride: int
) -> None:
    expand, project = torch.nn.Conv2d(inputs, wide, 1), torch.nn.Conv2d(wide, narrow, 1)
    deepen = torch.nn.Conv2d(wide, wide, kernel, stride, groups=wide)
    with pytest.raises(ValueError, match="no kernel"):
        inverted_residual.packed(expand, deepen, project, shortcut=False)
