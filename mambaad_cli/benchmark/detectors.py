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

NOISE = 4  # random images that a memory of random weights comes from


class Row(NamedTuple):
    """One line of the table: a detector on an encoder, or the fitted model in `file`."""

    name: str
    detector: str
    encoder: str
    options: dict[str, Any]  # the detector's keyword arguments
    file: Path | None = None
    evidence: str = "decoder"  # what the map shows, as in Recipe


ROWS = (
    Row("MambaAD paper", "mambaad", PRESETS["paper"].encoder, PRESETS["paper"].options),
    Row("MambaAD small (default)", "mambaad", PRESETS["small"].encoder, PRESETS["small"].options, evidence="both"),
    Row("MambaAD small, decoder alone", "mambaad", PRESETS["small"].encoder, PRESETS["small"].options),
    Row("memory alone", "memory", PRESETS["memory"].encoder, {}, evidence="memory"),
    Row("RD4AD (WideResNet50)", "rd4ad", "wide_resnet50_2", {"bottleneck_width": 64}),
    Row("RD4AD, ResNet34", "rd4ad", "resnet34", {"bottleneck_width": 128}),
    Row("UniAD (EfficientNet-B4)", "uniad", "efficientnet_b4", {}),
    Row("UniAD, ResNet34", "uniad", "resnet34", {}),
)


class Contestant(NamedTuple):
    """A row's model, ready to score."""

    row: Row
    model: FittedModel
    parameters: int  # of encoder and detector
    trained: int


def choose(names: Sequence[str] = ()) -> list[Row]:
    """The rows of these detectors (rd4ad) or names (rd4ad-resnet34), in the table's order; all of them without names.

    >>> [row.name for row in choose(["rd4ad-resnet34", "MambaAD"])]
    ['MambaAD paper', 'MambaAD small (default)', 'MambaAD small, decoder alone', 'RD4AD, ResNet34']
    """
    known = [*DETECTORS, *(as_typed(row.name) for row in ROWS)]
    wanted = [as_typed(name) for name in names]
    for name in wanted:
        if name not in known:
            raise MambaADError(f"no detector {name!r}: choose from {', '.join(known)}")
    return [row for row in ROWS if not wanted or row.detector in wanted or as_typed(row.name) in wanted]


def fitted(path: Path) -> Row:
    """The row of a model file, or of an exported one. Raises MambaADError where the file is not one."""
    exported = path.suffix.lower() in runtimes.SUFFIXES
    settings = (exported_model.load(path).facts if exported else model_file.read_facts(path))["settings"]
    return Row(path.name, settings["detector"], settings["encoder"], settings["options"], path)


def as_typed(name: str) -> str:
    """A name as it is typed on the command line.

    >>> as_typed("UniAD (EfficientNet-B4)")
    'uniad-efficientnet-b4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build(row: Row, device: str = "cpu", runtime: str = "torch") -> Contestant:
    """A row's model with random weights, or its file's. Parameters are counted before the batch norms are folded.

    runtime: of the default encoder, see FittedModel.for_inference; PyTorch runs all others.
    """
    model = as_published(row)
    if isinstance(model, ExportedModel):
        return Contestant(row, model.to(device), *model.facts["parameters"])
    trained = sum(p.numel() for p in model.detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.encoder.parameters())
    model = model.to(device)
    model.encoder_runtime = runtime if onnx_encoder.suits(model.encoder) else "torch"
    return Contestant(row, model.for_inference(), frozen + trained, trained)


def as_published(row: Row) -> FittedModel:
    """A row's model, its batch norms where its authors put them."""
    contrast = 0.0 if row.evidence == "decoder" else LOCAL_CONTRAST
    settings = Settings(row.detector, row.encoder, options=row.options, local_contrast=contrast)
    model = new_model(settings) if row.file is None else api.load(row.file, "cpu")
    model.detector.eval()
    if row.file is None and row.evidence != "decoder":
        remember_noise(model)
    return model


@torch.inference_mode()
def remember_noise(model: FittedModel) -> None:
    """Give a model with random weights a memory as large as that of fit, of random images."""
    features = model.features(torch.rand(NOISE, 3, *model.settings.size, generator=torch.Generator().manual_seed(0)))
    preset = "memory" if model.settings.detector == "memory" else "small"
    size = RECIPES[preset].memory_size
    model.memories = {"": tuple(memory_of(one.flatten(0, 2), size, 0)[0] for one in model.patches(features))}
    if model.residuals(features):
        model.statistics = {"": residual_statistics(lambda: iter([model.residuals(features)]))}
        model.fusion = {"": Fusion(Witness(), Witness())}
