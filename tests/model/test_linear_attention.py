"""Gated linear attention in chunks against its recurrence as it is written."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.model.kernels.linear_attention import gated_linear_attention, reference_attention
from mambaad_cli.model.mambaad import HSSBlock, LinearAttentionBlock, MambaAD
from mambaad_cli.model.scan_orders import WALKS, directions
from mambaad_cli.model.settings import Settings
from tests.conftest import TINY, picture


def inputs(h: int, w: int, k: int, g: int, p: int, n: int, order: str = "hilbert", b: int = 2) -> list[Tensor]:
    """Random u, x, dt_bias, A and D, and the order."""
    tensors = [
        torch.randn(b, h * w, g * p),
        torch.randn(b, h * w, k, g + 2 * n),
        torch.randn(k, g),
        -torch.rand(k, g) - 0.1,
        torch.randn(k, g),
    ]
    return [one.requires_grad_() for one in tensors] + [torch.from_numpy(directions(order, h, w, k).copy())]


def assert_same(tensors: list[Tensor], chunk: int) -> None:
    """y and all gradients, in units of the largest value of each."""
    *leaves, order = tensors
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = gated_linear_attention(*leaves, order, chunk), reference_attention(*exact, order)
    dy = torch.randn_like(found)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, dy)),
        (expected, *torch.autograd.grad(expected, exact, dy.double())),
        strict=True,
    )
    for one, other in pairs:
        assert float((one - other).detach().abs().max()) <= 1e-5 * float(other.detach().abs().max()) + 1e-12


@pytest.mark.parametrize("order", WALKS)
def test_it_is_its_recurrence_on_every_walk(order: str) -> None:
    assert_same(inputs(5, 7, 2, 3, 4, 6, order), chunk=8)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 9, 2), (4, 8, 8), (6, 11, 6)])
def test_it_is_its_recurrence_on_any_grid_in_chunks_of_any_length(shape: tuple[int, int, int], chunk: int) -> None:
    h, w, k = shape
    assert_same(inputs(h, w, k, 2, 16, 16), chunk)


def test_slow_decays_keep_their_memory_over_thousands_of_positions() -> None:
    u, x, dt_bias, A, D, order = (one.detach() for one in inputs(64, 64, 2, 1, 4, 4, b=1))
    arguments = u, x, dt_bias - 6, 0.01 * A, D
    expected = reference_attention(*(one.double() for one in arguments), order)
    found = gated_linear_attention(*arguments, order)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_strong_decays_forget_without_overflow() -> None:
    u, x, dt_bias, A, D, order = (one.detach() for one in inputs(8, 8, 2, 2, 4, 4))
    found = gated_linear_attention(u, x, dt_bias + 40, 100 * A, D, order)
    assert bool(found.isfinite().all())


def test_a_decoder_of_it_learns() -> None:
    detector = MambaAD([8, 16, 32], **TINY, ssm="gla", loss="cosine")
    blocks = [module for module in detector.modules() if isinstance(module, HSSBlock)]
    assert all(isinstance(block, LinearAttentionBlock) for block in blocks)
    features = [torch.randn(2, c, side, side) for c, side in zip((8, 16, 32), (16, 8, 4), strict=True)]
    optimizer, losses = detector.optimizer(), []
    for _ in range(12):
        loss = detector.train().loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_model_of_it_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    settings = Settings(encoder="test_resnet", size=(64, 64), options=TINY | {"ssm": "gla"})
    record = ModelRecord(new_network(settings))
    record.network.detector.eval()
    store.save(record, tmp_path / "model.safetensors")
    again = store.load(tmp_path / "model.safetensors")
    pixels = images.resize(picture(), (64, 64))[None]
    with torch.no_grad():
        maps = [one.network.published_maps(one.network.features(pixels), (64, 64)) for one in (record, again)]
    assert torch.equal(*maps)
