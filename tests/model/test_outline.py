"""A network from a file's settings, built without memory and compared with the file before it is loaded."""

import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.model import DETECTORS, STRIDES, anomaly_map, mambaad, outline, uniad
from mambaad_cli.model.encoder import build_encoder
from mambaad_cli.model.outline import fitting_networks, networks_of
from mambaad_cli.model.settings import PRESETS, Settings
from tests.conftest import TINY

SETTINGS = {
    "mambaad": Settings("mambaad", "test_resnet", (64, 64), options=TINY | {"drop_path": 0.3, "loss": "cosine"}),
    "memory": Settings("memory", "efficientnet_lite0", (64, 64)),
    "rd4ad": Settings("rd4ad", "test_resnet", (64, 64)),
    "uniad": Settings("uniad", "efficientnet_lite0", (64, 64), options={"grid": (4, 4), "width": 16, "layers": 1}),
}


def built(settings: Settings) -> dict[str, Any]:
    """Encoder and detector with random weights."""
    encoder = build_encoder(settings.encoder, STRIDES[settings.detector])
    return {"encoder": encoder, "detector": DETECTORS[settings.detector](encoder.channels, **settings.options).eval()}


def tensors_of(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """As a model file names them."""
    return {f"{part}.{name}": tensor for part in networks for name, tensor in networks[part].state_dict().items()}


def shapes_of(settings: Settings) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(built(settings)).items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_network_without_memory_takes_a_files_tensors_and_gives_the_same_map(name: str) -> None:
    settings = SETTINGS[name]
    networks = built(settings)
    for cache in (anomaly_map._upsample_and_smooth, anomaly_map._smooth, mambaad._walks_on, uniad._mask_on):
        cache.cache_clear()
    encoder, detector = networks_of(settings)
    assert {tensor.device.type for part in (encoder, detector) for tensor in part.state_dict().values()} <= {"meta"}
    encoder.load_state_dict(networks["encoder"].state_dict(), assign=True)
    detector.load_state_dict(networks["detector"].state_dict(), assign=True)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert encoder.architecture == settings.encoder
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = [d.eval().anomaly_map(e(pixels), (64, 64)) for e, d in (networks.values(), (encoder, detector))]
    assert torch.equal(*maps)


@pytest.mark.parametrize("name", PRESETS)
def test_the_shapes_of_each_preset_are_those_of_its_networks(name: str) -> None:
    settings = PRESETS[name]
    fitting_networks(settings, shapes_of(settings) | {"memory.0.patches": (3, 4), "roi.0": (9,)})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tensor_of_another_shape_or_none_or_one_more_is_named(name: str) -> None:
    shapes = shapes_of(SETTINGS[name])
    last = list(shapes)[-1]
    with pytest.raises(MambaADError, match=rf"{last} is \(7, 7\), expected"):
        fitting_networks(SETTINGS[name], shapes | {last: (7, 7)})
    with pytest.raises(MambaADError, match=r"encoder.more is \(1,\), expected none"):
        fitting_networks(SETTINGS[name], shapes | {"encoder.more": (1,)})
    del shapes[last]
    with pytest.raises(MambaADError, match=f"{last} is missing, expected|of more than the"):
        fitting_networks(SETTINGS[name], shapes)


HUGE: dict[str, dict[str, Any]] = {
    "mambaad": {"depths": (100_000, 10**9, 4, 4)},
    "mambaad ": {"depths": (200, 200, 200, 200)},
    "mambaad  ": {"directions": 10**9},
    "rd4ad": {"bottleneck_width": 10**9, "block": "wide"},
    "uniad": {"layers": 10**9, "width": 16, "heads": 2},
    "uniad ": {"width": 10**6, "grid": (10**6, 10**6)},
}


@pytest.mark.parametrize("name", HUGE)
def test_settings_of_a_huge_network_cost_no_memory(name: str) -> None:
    settings = SETTINGS[name.strip()]
    shapes = shapes_of(settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = Settings(settings.detector, settings.encoder, settings.size, options=HUGE[name])
    with pytest.raises(MambaADError, match="tensors|too deep|no rd4ad can be made"):
        fitting_networks(huge, shapes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("detector", "options"),
    [
        ("mambaad", {"depth": (1, 1, 1, 1)}),
        ("mambaad", {"depths": "many"}),
        ("mambaad", {"depths": (1,)}),
        ("mambaad", {"loss": "none"}),
        ("rd4ad", {"block": 7, "bottleneck_width": "x"}),
        ("uniad", {"heads": 0}),
        ("memory", {"size": 3}),
        ("peanut", {}),
    ],
)
def test_settings_of_no_network_are_refused_in_one_line(detector: str, options: dict[str, Any]) -> None:
    with pytest.raises(MambaADError, match="no ") as error:
        networks_of(Settings(detector, "test_resnet", options=options))
    assert "\n" not in str(error.value)


def test_parameters_are_counted_only_while_a_network_is_outlined() -> None:
    with pytest.raises(MambaADError, match="of more than the 2 tensors"):
        networks_of(SETTINGS["mambaad"], max_parameters=2)
    assert len(list(nn.Linear(2, 2).parameters())) == 2
    built(SETTINGS["mambaad"])
    assert outline.networks_of(SETTINGS["mambaad"])
