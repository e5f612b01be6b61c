"""RD4AD: its published size, its loss and map by hand, every image size, its fit."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambaad_cli.model.rd4ad import ReverseDistillation, fit_size


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3), pretrained=False).eval()


@pytest.fixture
def detector(encoder: nn.Module) -> ReverseDistillation:
    torch.manual_seed(1)
    return ReverseDistillation(encoder.feature_info.channels())


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def features_of(encoder: nn.Module, *shape: int) -> list[Tensor]:
    return encoder(images(*shape))


def rebuild_as(monkeypatch: pytest.MonkeyPatch, detector: nn.Module, rebuilt: list[Tensor]) -> None:
    monkeypatch.setattr(detector, "forward", lambda features: rebuilt)


@pytest.mark.parametrize(
    ("name", "bottleneck_width", "parameters", "macs"),
    [
        ("wide_resnet50_2", 64, 80.61e6, 28.43e9),
        ("wide_resnet50_2", 128, 108.7e6, 30.53e9),
        ("resnet34", 128, 30.3e6, 8.87e9),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(
    name: str, bottleneck_width: int, parameters: float, macs: float
) -> None:
    with torch.device("meta"):
        encoder = timm.create_model(name, features_only=True, out_indices=(1, 2, 3), pretrained=False).eval()
        detector = ReverseDistillation(encoder.feature_info.channels(), bottleneck_width=bottleneck_width).eval()
        with FlopCounterMode(display=False) as counter:
            detector(encoder(torch.empty(1, 3, 256, 256)))
    both = nn.ModuleList([encoder, detector])
    assert sum(p.numel() for p in both.parameters()) == pytest.approx(parameters, rel=0.002)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("block", ["basic", "bottleneck", "wide"])
def test_every_block_fits_channels_of_any_encoder(block: str) -> None:
    detector = ReverseDistillation((24, 40, 112), block=block).eval()
    features = [torch.randn(1, 24, 8, 8), torch.randn(1, 40, 4, 4), torch.randn(1, 112, 2, 2)]
    assert [r.shape for r in detector(features)] == [f.shape for f in features]


def test_decoder_reaches_negative_features_unless_the_encoder_ends_in_relu() -> None:
    def rebuilt_by_decoder_for(*channels: int) -> list[Tensor]:
        features = [torch.randn(1, c, side, side) for c, side in zip(channels, (8, 4, 2), strict=True)]
        return ReverseDistillation(channels).eval()(features)

    assert all(rebuilt.min() < 0 for rebuilt in rebuilt_by_decoder_for(24, 40, 112))
    assert all(rebuilt.min() >= 0 for rebuilt in rebuilt_by_decoder_for(64, 128, 256))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (100, 72), (50, 131)])
def test_rebuilt_features_and_map_have_the_right_shapes_at_any_image_size(
    encoder: nn.Module, detector: ReverseDistillation, size: tuple[int, int]
) -> None:
    features = features_of(encoder, 2, 3, *size)
    assert [r.shape for r in detector(features)] == [f.shape for f in features]
    anomaly_map = detector.anomaly_map(features, size)
    assert anomaly_map.shape == (2, *size)
    assert anomaly_map.dtype == torch.float32
    assert anomaly_map.isfinite().all()
    detector.loss(features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_maps_of_an_encoder_that_rounds_down_are_rebuilt_too() -> None:
    features = [torch.randn(1, 8, 15, 15), torch.randn(1, 16, 7, 7), torch.randn(1, 32, 3, 3)]
    detector = ReverseDistillation((8, 16, 32)).eval()
    assert [r.shape for r in detector(features)] == [f.shape for f in features]


def test_fit_size_crops_and_repeats_at_the_bottom_and_right() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert fit_size(x, (3, 2)).tolist() == [[[[0, 1], [3, 4], [3, 4]]]]
    assert fit_size(x, (2, 3)) is x


def test_loss_is_the_cosine_distance_of_whole_flattened_maps(
    detector: ReverseDistillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (1, 1) · (7, 1) / (√2 · √50) = 0.8, although each position by itself points the same way; orthogonal: 0
    features = [torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]]])]
    rebuild_as(monkeypatch, detector, [torch.tensor([[[[7.0, 1.0]]], [[[0.0, 3.0]]]])])
    assert detector.loss(features).item() == pytest.approx((0.2 + 1.0) / 2, abs=1e-6)


def test_loss_and_map_are_zero_for_features_rebuilt_but_for_their_scale_and_sum_up_for_opposite_ones(
    encoder: nn.Module, detector: ReverseDistillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [f + 0.1 for f in features_of(encoder, 2, 3, 64, 64)]
    rebuild_as(monkeypatch, detector, [3 * f for f in features])
    assert detector.loss(features).item() == pytest.approx(0, abs=1e-5)
    assert detector.anomaly_map(features, (64, 64)).abs().max() < 1e-5
    rebuild_as(monkeypatch, detector, [-f for f in features])
    assert detector.loss(features).item() == pytest.approx(6, abs=1e-5)
    torch.testing.assert_close(detector.anomaly_map(features, (64, 64)), torch.full((2, 64, 64), 6.0))


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(encoder: nn.Module, detector: ReverseDistillation) -> None:
    features = features_of(encoder, 4, 3, 64, 64)
    optimizer = detector.optimizer()
    losses = []
    for _ in range(8):
        loss = detector.loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.5 * losses[0]


def test_optimizer_is_the_papers_and_takes_another_learning_rate(detector: ReverseDistillation) -> None:
    group = detector.optimizer().param_groups[0]
    assert (group["lr"], tuple(group["betas"])) == (0.005, (0.5, 0.999))
    assert detector.optimizer(lr=0.1).param_groups[0]["lr"] == 0.1


@torch.no_grad()
def test_map_of_an_image_does_not_depend_on_its_batch_and_repeats(
    encoder: nn.Module, detector: ReverseDistillation
) -> None:
    features = features_of(encoder, 3, 3, 64, 96)
    detector.eval()
    together = detector.anomaly_map(features, (64, 96))
    alone = detector.anomaly_map([f[1:2] for f in features], (64, 96))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, detector.anomaly_map(features, (64, 96)))
