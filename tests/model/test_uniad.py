"""UniAD: its published size, its neighbour mask and map by hand, every grid, its fit."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mambaad_cli.inspection.network import new_network
from mambaad_cli.model.encoder import DEFAULT
from mambaad_cli.model.settings import Settings
from mambaad_cli.model.uniad import DecoderLayer, UniAD, _mask_on, neighbour_mask


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3), pretrained=False).eval()


@pytest.fixture
def detector(encoder: nn.Module) -> UniAD:
    torch.manual_seed(1)
    return UniAD(encoder.feature_info.channels(), grid=(4, 4), width=64, heads=4, hidden=128)


@torch.no_grad()
def features_of(encoder: nn.Module, *shape: int) -> list[Tensor]:
    return encoder(torch.randn(shape, generator=torch.Generator().manual_seed(2)))


def rebuild_zeros(detector: UniAD) -> None:
    nn.init.zeros_(detector.project_out.weight)
    nn.init.zeros_(detector.project_out.bias)


@torch.no_grad()
def test_parameters_and_multiply_adds_are_the_published_ones() -> None:
    encoder = timm.create_model("efficientnet_b4", features_only=True, out_indices=(0, 1, 2, 3), pretrained=False)
    detector = UniAD(encoder.feature_info.channels()).eval()
    both = nn.ModuleList([encoder.eval(), detector])
    # the published number counts the stages behind stride 16 too, which no image runs through
    assert sum(p.numel() for p in both.parameters()) == pytest.approx(24.52e6, rel=0.0005)
    encoder.blocks = encoder.blocks[:5]

    normed = {nn.BatchNorm2d: 0, nn.LayerNorm: 0}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        for kind in normed:
            normed[kind] += output.numel() if isinstance(module, kind) else 0

    for module in both.modules():
        module.register_forward_hook(count)
    # whichever kernel torch would choose: in plain products every multiply-add of attention is counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        detector(encoder(torch.zeros(1, 3, 256, 256)))
    macs = counter.get_total_flops() / 2
    attention = 12 * 2 * 256 * 256 * 256  # 12 attentions: query by key, weights by value; 256 positions, 256 channels
    linear = 256 * (4 * 4 * 256**2 + 4 * 8 * 256**2 + 8 * 2 * 256 * 1024 + 2 * 272 * 256)
    assert macs == pytest.approx(1.2015e9 + linear + attention, rel=0.001)
    # the published counter leaves out query by key and counts 1 and 5 an element of batch and layer norms
    published = macs - attention / 2 + normed[nn.BatchNorm2d] + 5 * normed[nn.LayerNorm]
    assert published == pytest.approx(3.36e9, rel=0.01)


def test_neighbour_mask_hides_a_3_wide_square_by_hand() -> None:
    mask = neighbour_mask(3, 4, 3).reshape(3, 4, 3, 4).int()
    assert mask[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mask[1, 2].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    assert mask[2, 3].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_neighbour_mask_hides_7_by_7_on_the_published_grid() -> None:
    mask = neighbour_mask(16, 16).reshape(16, 16, 16, 16)
    assert mask[8, 5].nonzero().tolist() == [[row, column] for row in range(5, 12) for column in range(2, 9)]


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (3, 1), (3, 3), (4, 5), (5, 5), (6, 2), (7, 7), (7, 8), (8, 8)])
def test_on_small_grids_every_position_hides_itself_and_sees_something(size: tuple[int, int]) -> None:
    mask = neighbour_mask(*size)
    assert mask.diagonal().all()
    assert not mask.all(dim=1).any()


def test_a_grid_of_one_position_hides_nothing() -> None:
    assert neighbour_mask(1, 1).tolist() == [[False]]


def test_a_decoder_layer_does_not_see_a_position_s_neighbourhood() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(width=8, heads=2, hidden=16, dropout=0.1, grid=(1, 6)).eval()
    mask = _mask_on(torch.device("cpu"), 1, 6, 3)
    previous, encoded = torch.randn(2, 1, 6, 8).requires_grad_(True)
    seen = torch.autograd.grad(
        layer(previous, encoded, torch.randn(1, 6, 8), mask, (1, 6))[0, 2].square().sum(), [previous, encoded]
    )
    for gradient in seen:
        assert (gradient[0].abs().sum(1) > 0).tolist() == [True, False, False, False, True, True]


def test_a_mask_made_while_scoring_serves_training_too(encoder: nn.Module, detector: UniAD) -> None:
    features = features_of(encoder, 2, 3, 96, 64)
    _mask_on.cache_clear()
    with torch.inference_mode():
        detector.anomaly_map(features, (96, 64))
    detector.loss(features).backward()
    assert _mask_on.cache_info().misses == 1
    detector.anomaly_map(features_of(encoder, 1, 3, 64, 96), (64, 96))  # as many positions, other neighbours
    assert _mask_on.cache_info().misses == 2


def test_channels_and_grid_follow_from_the_default_encoder() -> None:
    model = new_network(Settings("uniad", DEFAULT))
    assert model.encoder.channels == [16, 24, 40, 112]
    assert model.detector.project_in.in_features == model.detector.project_out.out_features == 192
    target, rebuilt = model.detector.eval()(model.encoder(torch.zeros(1, 3, 64, 96)))
    assert target.shape == rebuilt.shape == (1, 4, 6, 192)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (100, 72), (20, 20), (16, 16)])
def test_map_has_the_image_s_size_and_gradients_reach_all_parameters(
    encoder: nn.Module, detector: UniAD, size: tuple[int, int]
) -> None:
    features = features_of(encoder, 2, 3, *size)
    anomaly_map = detector.anomaly_map(features, size)
    assert anomaly_map.shape == (2, *size)
    assert anomaly_map.dtype == torch.float32
    assert anomaly_map.isfinite().all()
    detector.loss(features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_any_subset_of_maps_will_do() -> None:
    detector = UniAD((8,), grid=(2, 2), width=16, heads=2, hidden=16)
    assert detector.anomaly_map([torch.randn(1, 8, 5, 3)], (40, 24)).shape == (1, 40, 24)


def test_position_and_query_keep_their_corners_on_other_grids(detector: UniAD) -> None:
    fitted = detector._position((4, 4)).reshape(4, 4, -1)
    other = detector._position((9, 7)).reshape(9, 7, -1)
    torch.testing.assert_close(fitted[1, 2], torch.cat([detector.rows[0, :, 1, 0], detector.columns[0, :, 0, 2]]))
    torch.testing.assert_close(other[::8, ::6], fitted[::3, ::3])


def test_map_is_the_l2_distance_over_the_channels(detector: UniAD) -> None:
    rebuild_zeros(detector)
    ones = [torch.ones(1, 32, 8, 8), torch.ones(1, 48, 4, 4), torch.ones(1, 192, 2, 2)]
    torch.testing.assert_close(detector.anomaly_map(ones, (32, 32)), torch.full((1, 32, 32), 272**0.5))
    assert detector.loss(ones).item() == pytest.approx(1)


def test_map_is_bilinear_between_positions(detector: UniAD) -> None:
    rebuild_zeros(detector)
    row = torch.tensor([0.0, 2.0]).expand(1, 192, 1, 2) / 192**0.5  # token norms 0 and 2
    features = [torch.zeros(1, 32, 1, 2), torch.zeros(1, 48, 1, 2), row]
    torch.testing.assert_close(detector.anomaly_map(features, (1, 5)), torch.tensor([[[0.0, 0.5, 1.0, 1.5, 2.0]]]))


def test_map_and_loss_are_zero_for_perfect_reconstruction(detector: UniAD) -> None:
    rebuild_zeros(detector)
    zeros = [torch.zeros(2, 32, 8, 8), torch.zeros(2, 48, 4, 4), torch.zeros(2, 192, 2, 2)]
    assert detector.anomaly_map(zeros, (32, 32)).count_nonzero() == 0
    assert detector.loss(zeros).item() == 0


def test_jitter_is_a_twentieth_of_the_token_s_norm_and_only_in_training(detector: UniAD) -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([3.0, 4.0]).expand(1, 100, 100, 2)
    noise = detector.train()._jittered(tokens) - tokens
    assert noise.std().item() == pytest.approx(5 / 20, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert torch.equal(detector.eval()._jittered(tokens), tokens)


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(encoder: nn.Module, detector: UniAD) -> None:
    features = features_of(encoder, 4, 3, 64, 64)
    optimizer = detector.optimizer(lr=1e-3)
    losses = [detector.eval().loss(features).item()]
    for _ in range(30):
        loss = detector.train().loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(detector.eval().loss(features).item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0]


def test_optimizer_is_the_papers_and_takes_another_learning_rate(detector: UniAD) -> None:
    group = detector.optimizer().param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-4)
    assert detector.optimizer(lr=0.1).param_groups[0]["lr"] == 0.1


@torch.no_grad()
def test_map_of_an_image_does_not_depend_on_its_batch_and_repeats(encoder: nn.Module, detector: UniAD) -> None:
    features = features_of(encoder, 3, 3, 64, 96)
    detector.eval()
    together = detector.anomaly_map(features, (64, 96))
    alone = detector.anomaly_map([f[1:2] for f in features], (64, 96))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, detector.anomaly_map(features, (64, 96)))
