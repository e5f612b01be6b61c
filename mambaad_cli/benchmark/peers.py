"""Detectors of anomalib (https://github.com/open-edge-platform/anomalib) to compare with ours, where it is installed.

They are used through anomalib's public API, with our encoder and weights, on images that are read as ours are.
EfficientAD is not among them: it has no encoder of choice, and its teacher and its penalty images are downloads.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.comparison_variants import Variant
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import BATCH, Wanted, read_ahead
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Product
from mambaad_cli.model.anomaly_map import Residual
from mambaad_cli.model.efficientnet_lite import FACTORS
from mambaad_cli.model.encoder import DEFAULT, Encoder, cut, load_weights, pretrained_encoder
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RECIPES

PATCHCORE = "patchcore"
STRIDES = (8, 16)  # that PatchCore compares: its paper's layers 2 and 3
FEATURE_TOLERANCE = 1e-3  # largest difference of a feature from our encoder's, in units of the stage's largest value


@dataclass(frozen=True)
class PeerOptions:
    """How a detector of anomalib is built and fitted."""

    settings: Settings
    seed: int
    device: str = "cpu"
    weights: dict[str, Tensor] | None = None  # of the encoder; None: its pretrained ones


def peers(encoder: str | None = None) -> list[Variant]:
    """The rows of anomalib's detectors. Raises MambaADError where anomalib is not installed."""
    if importlib.util.find_spec("anomalib") is None:
        raise MambaADError("--peers compares with anomalib, which is not installed: pip install anomalib")
    chosen = DEFAULT if encoder is None or encoder == "own" else encoder
    return [Variant("PatchCore of anomalib", PATCHCORE, chosen, {}, RECIPES["memory"], "memory")]


def fit(
    paths: Sequence[Path],
    classes: Sequence[str],
    options: PeerOptions,
    progress: Progress,
) -> ModelRecord:
    """PatchCore with anomalib's defaults (a coreset of 10 %, 9 neighbours) and one memory for all classes.

    It has no threshold: scores of the images in its memory do not estimate those of new images.

    Raises MambaADError where anomalib's encoder does not give our features, and where no image can be read.
    """
    settings, device = options.settings, options.device
    torch.manual_seed(options.seed)
    encoder = pretrained_encoder(settings.encoder, STRIDES, options.weights)
    peer = _patchcore(settings.encoder, encoder).to(device)
    counts, batch = Counter[str](), []
    inputs = read_ahead(paths, Wanted(settings.size))
    for name, image in zip(classes, inputs, strict=True):
        if isinstance(image, ImageError):
            progress.unreadable(image)
            continue
        counts[name] += 1
        batch.append(image.pixels)
        if len(batch) == BATCH:
            _remember(peer, encoder, batch)
            batch = []
    if not counts:
        raise MambaADError("no training image can be read")
    if batch:
        _remember(peer, encoder, batch)
    with _quiet():
        peer.fit()
    normalised = Normalised(nn.Identity(), [3], encoder.mean.flatten().tolist(), encoder.std.flatten().tolist())
    detector = PatchCore(peer.eval())
    products = {name: Product(name, settings.size, count) for name, count in counts.items()}
    return ModelRecord(Network(settings, normalised.to(device), detector), products)


def _patchcore(name: str, encoder: Encoder) -> Any:
    """anomalib's detector on this encoder with its weights."""
    with _quiet():
        import timm
        from anomalib.models import Patchcore

        timm_name = f"tf_{name}" if name in FACTORS else name
        whole: Any = timm.create_model(timm_name, features_only=True)
        reductions = whole.feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise MambaADError(f"anomalib's PatchCore takes an encoder with stages: {name} has none of stride 8 and 16")
        stages = [reductions.index(stride) for stride in STRIDES]
        peer = Patchcore(backbone=timm_name, layers=stages, pre_trained=False)
    extractor = peer.model.feature_extractor.feature_extractor
    cut(extractor)
    load_weights(extractor, encoder.net.state_dict(), name)
    probe = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(encoder(probe), extractor.eval()((probe - encoder.mean) / encoder.std), strict=True)
        if not all(bool((a - b).abs().max() <= FEATURE_TOLERANCE * a.abs().max()) for a, b in pairs):
            raise MambaADError(f"anomalib's {timm_name} gives other features than our {name}")
    return peer


def _remember(peer: Any, encoder: Encoder, batch: list[Tensor]) -> None:
    images = torch.stack(batch).to(encoder.mean)
    peer.train()
    peer.model((images - encoder.mean) / encoder.std)


class Normalised(Encoder):
    """Normalises images as anomalib does; the detector of anomalib holds the encoder itself."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to a list of one (b, 3, H, W)."""
        return [(images - self.mean) / self.std]


class PatchCore(nn.Module):
    """A fitted PatchCore of anomalib as a detector of ours."""

    strides: ClassVar[tuple[int, ...]] = (1,)
    scales = 0

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.peer = peer

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        raise NotImplementedError("a memory is not trained")

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """anomalib's smoothed map (b, *size) of normalised images."""
        maps: Tensor = self.peer.model(features[0]).anomaly_map
        return maps[:, 0]

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """None: it reconstructs nothing."""
        return []

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        raise NotImplementedError("a memory is not trained")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences anomalib and lightning: their log, warnings and progress bars do not concern the user."""
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
