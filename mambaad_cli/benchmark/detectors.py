"""The detectors that are measured beside each other: which there are, and how each is built."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mambaad_cli import MambaADError, api
from mambaad_cli.inspection import exported_model, model_file, runtimes
from mambaad_cli.inspection.exported_model import ExportedModel
from mambaad_cli.inspection.fitted_model import FittedModel, new_model
from mambaad_cli.model import DETECTORS, onnx_encoder
from mambaad_cli.model.anomaly_map import residual_statistics
from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.memory import memory_of
from mambaad_cli.model.settings import LOCAL_CONTRAST, PRESETS, Settings
from mambaad_cli.training.recipe import RECIPES

NOISE_IMAGES = 4  # random images that a memory of random weights comes from


class DetectorSpec(NamedTuple):
    """What a line of the table measures: a detector on an encoder, or the fitted model in `file`."""

    name: str
    detector: str
    encoder: str
    options: dict[str, Any]  # the detector's keyword arguments
    file: Path | None = None
    evidence: str = "decoder"  # what the map shows, as in Recipe


SPECS = (
    DetectorSpec("MambaAD paper", "mambaad", PRESETS["paper"].encoder, PRESETS["paper"].options),
    DetectorSpec(
        "MambaAD small (default)", "mambaad", PRESETS["small"].encoder, PRESETS["small"].options, evidence="both"
    ),
    DetectorSpec("MambaAD small, decoder alone", "mambaad", PRESETS["small"].encoder, PRESETS["small"].options),
    DetectorSpec("memory alone", "memory", PRESETS["memory"].encoder, {}, evidence="memory"),
    DetectorSpec("RD4AD (WideResNet50)", "rd4ad", "wide_resnet50_2", {"bottleneck_width": 64}),
    DetectorSpec("RD4AD, ResNet34", "rd4ad", "resnet34", {"bottleneck_width": 128}),
    DetectorSpec("UniAD (EfficientNet-B4)", "uniad", "efficientnet_b4", {}),
    DetectorSpec("UniAD, ResNet34", "uniad", "resnet34", {}),
)


class BuiltDetector(NamedTuple):
    """The model of a spec, ready to score."""

    spec: DetectorSpec
    model: FittedModel
    parameters: int  # of encoder and detector
    trained: int


def choose(names: Sequence[str] = ()) -> list[DetectorSpec]:
    """The specs of these detectors (rd4ad) or names (rd4ad-resnet34), in the table's order; all of them without names.

    >>> [spec.name for spec in choose(["rd4ad-resnet34", "MambaAD"])]
    ['MambaAD paper', 'MambaAD small (default)', 'MambaAD small, decoder alone', 'RD4AD, ResNet34']
    """
    choices = [*DETECTORS, *(as_typed(spec.name) for spec in SPECS)]
    wanted = [as_typed(name) for name in names]
    for name in wanted:
        if name not in choices:
            raise MambaADError(f"no detector {name!r}: choose from {', '.join(choices)}")
    return [spec for spec in SPECS if not wanted or spec.detector in wanted or as_typed(spec.name) in wanted]


def fitted(path: Path) -> DetectorSpec:
    """The spec of a model file, or of an exported one. Raises MambaADError where the file is neither."""
    exported = path.suffix.lower() in runtimes.SUFFIXES
    settings = (exported_model.load(path).facts if exported else model_file.read_facts(path))["settings"]
    return DetectorSpec(path.name, settings["detector"], settings["encoder"], settings["options"], path)


def as_typed(name: str) -> str:
    """A name as it is typed on the command line.

    >>> as_typed("UniAD (EfficientNet-B4)")
    'uniad-efficientnet-b4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build(spec: DetectorSpec, device: str = "cpu", runtime: str = "torch") -> BuiltDetector:
    """A model with random weights, or that of the spec's file. Parameters are counted before batch norms are folded.

    runtime: of the default encoder, see FittedModel.for_inference; PyTorch runs all others.
    """
    model = as_published(spec)
    if isinstance(model, ExportedModel):
        return BuiltDetector(spec, model.to(device), *model.facts["parameters"])
    trained = sum(p.numel() for p in model.detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.encoder.parameters())
    model = model.to(device)
    model.encoder_runtime = runtime if onnx_encoder.suits(model.encoder) else "torch"
    return BuiltDetector(spec, model.for_inference(), frozen + trained, trained)


def as_published(spec: DetectorSpec) -> FittedModel:
    """The model of a spec, its batch norms where its authors put them."""
    contrast = 0.0 if spec.evidence == "decoder" else LOCAL_CONTRAST
    settings = Settings(spec.detector, spec.encoder, options=spec.options, local_contrast=contrast)
    model = new_model(settings) if spec.file is None else api.load(spec.file, "cpu")
    model.detector.eval()
    if spec.file is None and spec.evidence != "decoder":
        remember_noise(model)
    return model


@torch.inference_mode()
def remember_noise(model: FittedModel) -> None:
    """Give a model with random weights a memory as large as that of fit, of random images."""
    features = model.features(
        torch.rand(NOISE_IMAGES, 3, *model.settings.size, generator=torch.Generator().manual_seed(0))
    )
    preset = "memory" if model.settings.detector == "memory" else "small"
    size = RECIPES[preset].memory_size
    model.memories = {"": tuple(memory_of(patches.flatten(0, 2), size, 0)[0] for patches in model.patches(features))}
    if model.residuals(features):
        model.statistics = {"": residual_statistics(lambda: iter([model.residuals(features)]))}
        model.fusion = {"": Fusion(Witness(), Witness())}
