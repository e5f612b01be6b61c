"""The detectors that are measured beside each other: which there are, and how each is built."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.passes import Maps
from mambaad_cli.inspection import exported_scorer, runtimes, store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network, new_network
from mambaad_cli.inspection.product import Learnt, Product
from mambaad_cli.inspection.torch_scorer import inference_network
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
    """A detector that is ready to score."""

    spec: DetectorSpec
    maps: Maps
    network: Network | None  # None: of an exported file, which is not trained
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
    settings = exported_scorer.load(path).settings if exported else store.read_facts(path).settings
    return DetectorSpec(path.name, settings.detector, settings.encoder, settings.options, path)


def as_typed(name: str) -> str:
    """A name as it is typed on the command line.

    >>> as_typed("UniAD (EfficientNet-B4)")
    'uniad-efficientnet-b4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build(spec: DetectorSpec, device: str = "cpu", runtime: str = "torch") -> BuiltDetector:
    """A detector with random weights, or that of the spec's file. Parameters are counted before batch norms are folded.

    runtime: of the default encoder, see TorchScorer.expecting; PyTorch runs all others.
    """
    if spec.file is not None and spec.file.suffix.lower() in runtimes.SUFFIXES:
        scorer = exported_scorer.load(spec.file)
        return BuiltDetector(spec, scorer.anomaly_maps, None, *scorer.facts["parameters"])
    record = as_published(spec).to(device)
    network = record.network
    trained = sum(p.numel() for p in network.detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.encoder.parameters())
    runtime = runtime if onnx_encoder.suits(network.encoder) else "torch"
    network = inference_network(network, {}, runtime)
    return BuiltDetector(spec, maps_of(network, record), network, frozen + trained, trained)


def maps_of(network: Network, record: ModelRecord) -> Maps:
    """Images (b, 3, H, W) in 0 … 1 to the maps of the first product of a record."""
    learnt = next((product.learnt for product in record.products.values()), Learnt())

    def maps(images: Tensor) -> Tensor:
        size = network.map_size((images.shape[2], images.shape[3]))
        return network.anomaly_maps(network.features(images), size, learnt)

    return maps


def as_published(spec: DetectorSpec) -> ModelRecord:
    """The model of a spec, its batch norms where its authors put them."""
    if spec.file is not None:
        return store.load(spec.file)
    contrast = 0.0 if spec.evidence == "decoder" else LOCAL_CONTRAST
    network = new_network(Settings(spec.detector, spec.encoder, options=spec.options, local_contrast=contrast))
    network.detector.eval()
    return ModelRecord(network) if spec.evidence == "decoder" else remembering_noise(network)


@torch.inference_mode()
def remembering_noise(network: Network) -> ModelRecord:
    """A network with random weights and a memory as large as that of fit, of random images."""
    settings = network.settings
    size = network.input_size(settings.size)
    images = torch.rand(NOISE_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))
    features = network.features(images)
    patches = RECIPES["memory" if settings.detector == "memory" else "small"].memory_size
    memories = tuple(memory_of(view.flatten(0, 2), patches, 0)[0] for view in network.patches(features))
    learnt = Learnt(memories=memories)
    if network.residuals(features):
        statistics = residual_statistics(lambda: iter([network.residuals(features)]))
        learnt = Learnt(tuple(statistics), memories, Fusion(Witness(), Witness()))
    return ModelRecord(network, {"noise": Product("noise", settings.size, learnt=learnt)})
