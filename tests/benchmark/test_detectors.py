"""Which detectors are measured beside each other, and how they are built."""

import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import detectors
from mambaad_cli.inspection.network import new_network
from mambaad_cli.model.settings import Settings
from tests.benchmark.rows import UNIAD


def test_parameters_are_those_of_encoder_and_detector_with_their_batch_norms() -> None:
    network = new_network(Settings(UNIAD.detector, UNIAD.encoder, options=UNIAD.options))
    trained = sum(parameter.numel() for parameter in network.detector.parameters())
    one = detectors.build(UNIAD)
    assert one.trained == trained
    assert one.network is not None
    assert one.parameters == trained + sum(parameter.numel() for parameter in network.encoder.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in one.network.encoder.modules())


def test_encoder_matched_rows_share_the_papers_encoder() -> None:
    assert detectors.SPECS[0].encoder == "resnet34"
    assert {row.detector for row in detectors.SPECS if row.encoder == "resnet34"} == {"mambaad", "rd4ad", "uniad"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], [row.name for row in detectors.SPECS]),
        (["uniad"], ["UniAD (EfficientNet-B4)", "UniAD, ResNet34"]),
        (["rd4ad-resnet34", "mambaad-paper"], ["MambaAD paper", "RD4AD, ResNet34"]),
        (["RD4AD (WideResNet50)"], ["RD4AD (WideResNet50)"]),
    ],
)
def test_detectors_are_chosen_by_kind_or_name(names: list[str], chosen: list[str]) -> None:
    assert [row.name for row in detectors.choose(names)] == chosen


def test_an_unknown_detector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MambaADError, match=r"no detector 'patchcore'.*mambaad, memory, rd4ad, uniad, mambaad-paper"):
        detectors.choose(["patchcore"])
