"""Settings, encoder and detector: tensors in, tensors out. Why is this image anomalous? `Network.anomaly_maps` tells.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels of the anomaly map, which the decoder sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.loading import at_size, cold_outside
from mambaad_cli.inspection.product import Learnt, Size
from mambaad_cli.inspection.recognition import signature
from mambaad_cli.inspection.tiles import TileView
from mambaad_cli.model import DETECTORS, STRIDES
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, fuse, local_contrast, standardised_distances
from mambaad_cli.model.detector import Detector
from mambaad_cli.model.encoder import Encoder, build_encoder
from mambaad_cli.model.fusion import fuse_witnesses
from mambaad_cli.model.known_defects import KnownDefects, likenesses, with_known_defects
from mambaad_cli.model.memory import (
    Memory,
    close_patches,
    distances,
    fuse_looks,
    looks_of,
    patches_of,
    without_border,
)
from mambaad_cli.model.precision import rounding
from mambaad_cli.model.settings import STEP, Settings, in_steps, scaled_size


class Evidence(NamedTuple):
    """The maps (b, H, W) of the decoder and of the memory; None where it has no say."""

    decoder: Tensor | None
    memory: Tensor | None


@dataclass(frozen=True)
class Network:
    """A frozen encoder with a detector. It knows no files and no products."""

    settings: Settings
    encoder: Encoder
    detector: Detector
    precision: str = "fp32"  # of matrix products

    # ---- sizes ----

    def input_size(self, size: Size) -> Size:
        """Height and width of the images that the encoder takes where the decoder sees `size`."""
        return size if self.settings.detail == 1 else scaled_size(size, self.settings.detail, self.settings.step)

    def map_size(self, input_size: Size) -> Size:
        """Height and width of the anomaly maps of images of this size: what the decoder sees them at."""
        settings = self.settings
        return input_size if settings.detail == 1 else scaled_size(input_size, 1 / settings.detail, settings.step)

    @property
    def tile_size(self) -> Size:
        """Height and width of the tiles of a model with tiles."""
        assert self.settings.tiles is not None
        return self.settings.tiles

    @property
    def device(self) -> str:
        """The device of its tensors."""
        return str(self.encoder.mean.device)

    # ---- images to features ----

    def features(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H', W') in 0 … 1 to features, one (b, c, h, w) a stage: those of the decoder, then of the memory."""
        return self.closely(images, self.coarse_features(images))

    def coarse_features(self, images: Tensor) -> list[Tensor]:
        """The same without what a close view sees."""
        return self.far_features(self.far_view(images))

    def far_view(self, images: Tensor) -> Tensor:
        """Images (b, 3, H', W') as all but the close view sees them: of the size of the map, if there are two looks."""
        return _scaled(images, self.map_size((images.shape[2], images.shape[3]))) if self.settings.two_looks else images

    def far_features(self, images: Tensor) -> list[Tensor]:
        """The coarse features of images, from what `far_view` gives of them."""
        with rounding(self.precision, images.device.type):
            stages = self.encoder.in_parts(images)
        if self.settings.detail == 1 or self.settings.two_looks:
            return stages
        height, width = self.map_size((images.shape[2], images.shape[3]))
        step = self.settings.step  # what a position of stride 16 covers
        sizes = [(height * STEP // (step * s), width * STEP // (step * s)) for s in self.detector.strides]
        scaled = [_scaled(stage, size) for stage, size in zip(stages, sizes, strict=True)]
        return [*scaled, *stages[-2:]]

    def closely(self, images: Tensor, coarse: list[Tensor]) -> list[Tensor]:
        """The coarse features of images, and behind them what a close view sees, if there is one."""
        return [*coarse, self.close_view(images)] if self.settings.two_looks else coarse

    def close_view(self, images: Tensor) -> Tensor:
        """(b, 3, H', W') in 0 … 1 to the patches (b, c, h, w) of a close view."""
        with rounding(self.precision, images.device.type):
            return close_patches(self.encoder.in_parts(images), self.settings.binomial)

    def patches(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The patches (b, h, w, c) that the memory compares, of each view."""
        return looks_of(features, self.settings.two_looks)

    def signature(self, features: Sequence[Tensor]) -> Tensor:
        """(b, s): what the product of each image is recognised by; a close view, if there, adds nothing."""
        return signature(features[: len(self.detector.strides)] if self.settings.two_looks else features)

    # ---- features to maps ----

    def published_maps(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """The detector's maps (b, *size) as published."""
        with rounding(self.precision, features[0].device.type):
            return self.detector.anomaly_map(self._for_decoder(features), size)

    def anomaly_maps(
        self, features: Sequence[Tensor], size: Size, learnt: Learnt, inside: Tensor | None = None
    ) -> Tensor:
        """Encoder features of images of one product to anomaly maps (b, *size), cold outside regions of interest.

        inside: (b, *size) bool, the region of interest in each map; None: all of it.
        """
        maps = self.unusual_maps(features, size, learnt, inside)
        if learnt.known is None:
            return maps
        found = self.known_defect_maps(features, size, learnt.known, inside)
        centre, gain = maps.new_tensor([learnt.known.centre]), maps.new_tensor([learnt.known.gain])
        return with_known_defects(maps, found, centre, gain)

    def unusual_maps(
        self, features: Sequence[Tensor], size: Size, learnt: Learnt, inside: Tensor | None = None
    ) -> Tensor:
        """How unlike good images, by the decoder and the memory."""
        evidence = self.evidence(features, size, learnt, inside)
        if learnt.fusion is not None:
            return fuse_witnesses(learnt.fusion, *evidence)
        only = evidence.memory if evidence.decoder is None else evidence.decoder
        if only is None:
            return self.cold(self.published_maps(features, size), inside)
        return only

    def known_defect_maps(
        self, features: Sequence[Tensor], size: Size, known: KnownDefects, inside: Tensor | None = None
    ) -> Tensor:
        """How like a known defect, (b, *size)."""
        found = likenesses(known.classifiers, self.patches(features))
        return self.cold(fuse_looks(found, size, self.settings.far_weight, self.settings.memory_sigma), inside)

    def evidence(
        self, features: Sequence[Tensor], size: Size, learnt: Learnt, inside: Tensor | None = None
    ) -> Evidence:
        """What the decoder and the memory find in images of one product."""
        fusion = learnt.fusion
        decoder = memory = None
        if learnt.statistics and (fusion is None or fusion.decoder.weight > 0):
            decoder = self.decoder_maps(self.residuals(features), size, learnt.statistics, inside)
        if learnt.memories and (fusion is None or fusion.memory.weight > 0):
            views = zip(learnt.memories, self.patches(features), strict=True)
            memory = self.memory_maps([compared(one, patches, inside) for one, patches in views], size, inside)
        return Evidence(decoder, memory)

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """What the decoder cannot reconstruct of the encoder's features."""
        with rounding(self.precision, features[0].device.type):
            return self.detector.residuals(self._for_decoder(features))

    def decoder_maps(
        self,
        residuals: Sequence[Residual],
        size: Size,
        statistics: Sequence[ResidualStatistics],
        inside: Tensor | None = None,
    ) -> Tensor:
        """The decoder's maps (b, *size) from its residuals, cold outside regions of interest."""
        scales = [self.cold(scale, inside) for scale in standardised_distances(residuals, statistics)]
        return self.fused_scales(scales, size, inside)

    def fused_scales(self, scales: Sequence[Tensor], size: Size, inside: Tensor | None = None) -> Tensor:
        """The decoder's maps (b, *size) from its standardised distances (b, h, w) at each scale, cold outside there."""
        return self.cold(local_contrast(fuse(scales, size), self.settings.local_contrast), inside)

    def memory_maps(self, unusual: Sequence[Tensor], size: Size, inside: Tensor | None = None) -> Tensor:
        """The memory's maps (b, *size) from how unusual the patches (b, h, w) of each view are, see `compared`."""
        settings = self.settings
        fused = fuse_looks(unusual, size, settings.far_weight, settings.memory_sigma)
        return self.cold(local_contrast(fused, settings.local_contrast), inside)

    @staticmethod
    def cold(maps: Tensor, inside: Tensor | None) -> Tensor:
        """Maps (b, h, w) as cold outside regions of interest (b, …) as anywhere inside."""
        return maps if inside is None else cold_outside(maps, at_size(inside, (maps.shape[1], maps.shape[2])))

    def _for_decoder(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The stages that the decoder takes: where the memory sees more detail, its own follow them."""
        return list(features[: len(self.detector.strides)])

    # ---- tiles ----

    def tile_patches(self, tiles: Tensor) -> Tensor:
        """Patches (b, r, c, channels) of tiles (b, 3, H, W) in 0 … 1."""
        return patches_of(self.encoder.in_parts(tiles.to(self.device)))

    def tile_view(self, memory: Memory) -> TileView:
        """How tiles are seen by a memory of good ones: in units of the distance that it expects."""
        scale = self.settings.scale
        return TileView(self.tile_size, scale, lambda pixels: self._tile_distances(memory, pixels))

    def _tile_distances(self, memory: Memory, tiles: Tensor) -> Tensor:
        return distances(memory, self.tile_patches(tiles)) / memory.expected

    # ---- where it runs ----

    def with_encoder(self, encoder: Encoder) -> "Network":
        return replace(self, encoder=encoder)

    def to(self, device: str) -> "Network":
        """The same network; its tensors are moved in place."""
        self.encoder.to(device)
        self.detector.to(device)
        return self


def compared(memory: Memory, patches: Tensor, inside: Tensor | None = None) -> Tensor:
    """How unusual patches (b, h, w, c) are for a memory, (b, h, w): their distance in units of what is expected.

    inside: (b, H, W) bool, regions of interest in the maps.
    """
    grid = None if inside is None else at_size(inside, (patches.shape[1], patches.shape[2]))
    return unusual(distances(memory, patches), memory.expected, grid)


def unusual(distances: Tensor, expected: Tensor, inside: Tensor | None = None) -> Tensor:
    """Distances (b, h, w) in units of what is expected at each position: (h, w) at any size, or (b, h, w).

    The outermost positions take the values of their neighbours: there the encoder sees its own padding.
    inside: (b, h, w) bool, regions of interest. Outside, no good patch was ever remembered: what lies there is as
    usual as the mean inside while neighbours are compared, and then as cold as anything inside.
    """
    if inside is not None:
        distances = levelled(distances, inside)
    if expected.dim() == 2:
        expected = expected_at(expected, (distances.shape[1], distances.shape[2]))
    maps = without_border(distances / expected)
    return maps if inside is None else cold_outside(maps, inside)


def expected_at(expected: Tensor, grid: Size) -> Tensor:
    """What is expected at each position (h, w) of a grid, which may be another than that of fit."""
    if tuple(expected.shape) == grid:
        return expected
    return F.interpolate(expected[None, None], size=grid, mode="bilinear")[0, 0]


def levelled(distances: Tensor, inside: Tensor) -> Tensor:
    """Distances (b, h, w) with the mean of those inside each region of interest (b, h, w) at every position outside."""
    inside = inside.to(distances.device)
    means = (distances * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return torch.where(inside, distances, means[:, None, None])


def new_network(settings: Settings, encoder: Encoder | None = None) -> Network:
    """A network with a new detector. Without `encoder`, its encoder's weights are still to be loaded."""
    if settings.detector not in DETECTORS:
        raise MambaADError(f"no detector {settings.detector!r}: choose {', '.join(DETECTORS)}")
    if encoder is None:
        encoder = build_encoder(settings.encoder, STRIDES[settings.detector])
    settings = in_steps(settings, encoder.step)
    return Network(settings, encoder, DETECTORS[settings.detector](encoder.channels, **settings.options))


def _scaled(stage: Tensor, size: Size) -> Tensor:
    """A stage or images (b, c, h, w) at a smaller size, channels last in memory as the encoder gives it."""
    scaled = F.interpolate(stage.float(), size=size, mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)
