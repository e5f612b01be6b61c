"""Vision transformers of timm as encoders: their tokens on the grids of the detectors."""

import pytest
import timm
import torch
import torch.nn.functional as F

from mambaad_cli import MambaADError
from mambaad_cli.model.encoder import build_encoder, for_inference, pretrained_encoder
from mambaad_cli.model.vision_transformer import TokenMaps

STRIDES = (4, 8, 16)


@pytest.mark.parametrize(
    ("name", "step", "size"),
    [
        ("test_vit", 16, (64, 96)),
        ("test_vit4", 16, (80, 48)),  # with registers
        ("vit_small_patch14_reg4_dinov2.lvd142m", 14, (70, 84)),
        ("vit_small_patch8_224", 16, (64, 48)),
        ("vit_small_patch32_224", 32, (96, 64)),
    ],
)
def test_a_transformer_has_the_grids_of_a_convolutional_encoder_in_steps_of_its_own(
    name: str, step: int, size: tuple[int, int]
) -> None:
    encoder = build_encoder(name, STRIDES)
    assert encoder.step == step
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, *size))
    rows, columns = (side // step for side in size)
    assert [tuple(stage.shape) for stage in features] == [
        (2, channels, rows * times, columns * times)
        for channels, times in zip(encoder.channels, (4, 2, 1), strict=True)
    ]


def test_the_coarsest_stage_is_what_timm_gives_of_that_block_at_another_size_than_its_own() -> None:
    whole = timm.create_model("test_vit", dynamic_img_size=True).eval()
    encoder = pretrained_encoder("test_vit", STRIDES, whole.state_dict())
    images = torch.rand(1, 3, 96, 128)  # the model's own size is 160 × 160
    net = encoder.net
    assert isinstance(net, TokenMaps)
    with torch.no_grad():
        normal = (images - encoder.mean) / encoder.std
        expected = whole.forward_intermediates(normal, indices=[net.taken[-1]], intermediates_only=True)[0]
        found = encoder(images)[-1]
    tokens = F.layer_norm(expected.flatten(2).mT, (64,)).mT.view_as(expected)
    torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-5)


def test_blocks_behind_the_last_stage_and_the_head_are_cut_off() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", STRIDES)
    assert len(encoder.net.model.blocks) == 9
    assert not any("head" in key for key in encoder.state_dict())


def test_sides_that_are_no_whole_steps_are_refused_with_those_that_are() -> None:
    encoder = build_encoder("vit_small_patch14_reg4_dinov2", STRIDES)
    with pytest.raises(MambaADError, match=r"256x200 pixels: .* multiples of 14, such as 252x196"):
        encoder(torch.rand(1, 3, 200, 256))
    with pytest.raises(MambaADError, match="multiples of 14"):
        encoder.check_size((200, 252))
    build_encoder("test_resnet", STRIDES).check_size((201, 255))  # a convolutional encoder takes any


def test_weights_of_another_transformer_are_refused_by_name() -> None:
    state = timm.create_model("test_vit").state_dict()
    with pytest.raises(MambaADError, match=r"^these are not weights of test_vit4: [^\n]*$"):
        pretrained_encoder("test_vit4", STRIDES, state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_small_patch16_dinov3", "cannot be kept in a model file: timm saves no model.rope.periods"),
        ("test_vit_relpos", "it takes images of one size alone"),
    ],
)
def test_transformers_that_cannot_be_used_are_refused_in_one_line(name: str, reason: str) -> None:
    _skip_without(name)
    with pytest.raises(MambaADError, match=reason) as error:
        build_encoder(name, STRIDES)
    assert "\n" not in str(error.value)


def _skip_without(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")


def test_a_transformer_with_stages_that_takes_one_size_is_refused_before_an_image_is_encoded() -> None:
    _skip_without("test_coatnet")
    with pytest.raises(MambaADError, match="test_coatnet takes images of its own size alone"):
        for_inference(build_encoder("test_coatnet", STRIDES))


def test_a_transformer_is_built_again_from_its_name_and_tensors_alone() -> None:
    first = build_encoder("test_vit4", STRIDES)
    with torch.device("meta"):
        again = build_encoder(first.architecture, STRIDES)
    again.load_state_dict(first.state_dict(), assign=True)
    images = torch.rand(1, 3, 64, 48)
    assert all(torch.equal(a, b) for a, b in zip(first(images), again(images), strict=True))
