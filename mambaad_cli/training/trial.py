"""Both kinds of evidence tried on good images and on simulated defects: how their maps are fused, and what they find.

Letters: n images, h × w positions of the memory's maps, H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mambaad_cli.data.simulated_defects import KINDS, Simulated, simulate
from mambaad_cli.inspection.network import Network, compared
from mambaad_cli.inspection.product import Product, ScoredDefect
from mambaad_cli.model.anomaly_map import ResidualStatistics
from mambaad_cli.model.fusion import Fusion, fuse_witnesses, witness_of
from mambaad_cli.training.features import Features, features_of_pixels
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.memories import Compared, RememberedViews

MAX_DEFECTS = 50  # simulated in images of a product; they tell what is found
WEIGHTS = (1 / 3, 2 / 3)  # of decoder and memory; choosing them by simulated defects gained nothing on eight products
Maps: TypeAlias = "tuple[Tensor | None, Tensor | None]"  # of the decoder and of the memory, where they have a say


class Decoder(NamedTuple):
    """A trained network with the statistics of its residuals for one product, and the images that it scores."""

    network: Network
    statistics: tuple[ResidualStatistics, ...]  # empty: the map as published
    images: frozenset[int] | None = None  # None: all


@dataclass(frozen=True)
class Trial:
    """What is tried of one product, by images that were compared with the memory of the others.

    decoders: one, or of several folds the one that did not learn from an image.
    """

    job: Job
    good: GoodImages
    product: Product
    decoders: Sequence[Decoder]  # empty: the memory alone
    views: RememberedViews | None  # None: the decoder alone
    images: Sequence[int]  # that give the threshold
    compared: Sequence[Compared]  # these images, in each view

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.job.map_size(self.product.name)

    def good_maps(self) -> Maps:
        """The maps (n, H, W) of the good images. The memory knows none of them, a decoder may know some."""
        inside = self._inside(self.good.features, self.images)
        memory = None
        if self.views is not None:
            unusual = [view.maps for view in self.compared]
            memory = self.job.network.memory_maps(unusual, self.size, _on(inside, self.job.run.device))
        return self._decoder_maps(self.good.features, self.images, self.images), memory

    def values(self, maps: Maps) -> Maps:
        """The values of the maps of the good images in their regions of interest."""
        inside = self._inside(self.good.features, self.images)
        if inside is None:
            return maps
        decoder, memory = (None if one is None else one[inside.to(one.device)] for one in maps)
        return decoder, memory

    def fusion(self, maps: Maps) -> Fusion | None:
        """How both kinds of evidence are fused, each in units of its values on good images; None of a single one."""
        decoder, memory = self.values(maps)
        if decoder is None or memory is None or self.job.recipe.evidence != "both":
            return None
        earlier = self.product.learnt.fusion  # the units of a memory stay where its product gets more images
        return Fusion(witness_of(decoder, WEIGHTS[0]), earlier.memory if earlier else witness_of(memory, WEIGHTS[1]))

    def defects(self, unseen: Sequence[int], fusion: Fusion | None) -> tuple[ScoredDefect, ...]:
        """Defects that are simulated in images which no decoder learnt from, and their scores."""
        drawn = simulated_defects(self.good, unseen, MAX_DEFECTS, self.job.recipe.seed)
        if not drawn:
            return ()
        simulated = [defect for defect, _ in drawn]
        features = features_of_pixels(self.job, (defect.pixels for defect in simulated), len(simulated))
        features.seen = [
            seen._replace(inside=defect.inside) for seen, defect in zip(features.seen, simulated, strict=True)
        ]
        numbers = range(len(simulated))
        decoder = self._decoder_maps(features, numbers, [places[0] for _, places in drawn])
        memory = None
        if self.views is not None:
            memory = torch.cat([self._memory_map(features, i, places) for i, (_, places) in enumerate(drawn)])
        scale = self.product.photo_scale(self.job.input_size(self.product.name))
        scores = fused(fusion, (decoder, memory)).flatten(1).amax(1).tolist()
        return tuple(
            ScoredDefect(defect.kind, round(defect.length * scale, 1), score)
            for defect, score in zip(simulated, scores, strict=True)
        )

    def _memory_map(self, features: Features, number: int, places: tuple[int, int]) -> Tensor:
        """The memory's map (1, H, W) of one defect, without the patches of the images that it is made from."""
        assert self.views is not None
        network, device = self.job.network, self.job.run.device
        patches = network.patches([stage.to(device) for stage in features[torch.tensor([number])]])
        inside = _on(self._inside(features, [number]), device)
        row = list(self.images).index(places[0])
        unusual = [
            compared(view.without(*places)._replace(expected=seen.expected_without(row)), own, inside)
            for view, seen, own in zip(self.views, self.compared, patches, strict=True)
        ]
        return network.memory_maps(unusual, self.size, inside)

    def _decoder_maps(self, features: Features, chosen: Sequence[int], judged: Sequence[int]) -> Tensor | None:
        """The decoders' maps (n, H, W) of images; each by the decoder that may judge the image that it is made from."""
        if not self.decoders:
            return None
        device = self.job.run.device
        maps = torch.zeros(len(chosen), *self.size, device=device)
        for network, statistics, images in self.decoders:
            rows = [row for row, image in enumerate(judged) if images is None or image in images]
            by_number = {chosen[row]: row for row in rows}
            for numbers, batch in features.batches(list(by_number), device):
                inside = _on(self._inside(features, numbers), device)
                if statistics:
                    found = network.decoder_maps(network.residuals(batch), self.size, statistics, inside)
                else:
                    found = network.cold(network.published_maps(batch, self.size).float(), inside)
                maps[[by_number[number] for number in numbers]] = found
        return maps

    def _inside(self, features: Features, chosen: Sequence[int]) -> Tensor | None:
        return features.inside(chosen, self.size)


def fused(fusion: Fusion | None, maps: Maps) -> Tensor:
    """One map (n, H, W) of each image."""
    if fusion is not None:
        return fuse_witnesses(fusion, *maps)
    only = maps[1] if maps[1] is not None else maps[0]
    assert only is not None
    return only


def simulated_defects(
    good: GoodImages, chosen: Sequence[int], count: int, seed: int
) -> list[tuple[Simulated, tuple[int, int]]]:
    """`count` defects of all kinds in turn, in good images; each with the image that it is drawn into, and the one that
    it takes pieces from."""
    pictures = {i: pixels for i in chosen[: count + 1] if (pixels := good.pixels(i)) is not None}
    present = list(pictures)
    drawn = []
    for number in range(count if present else 0):
        kind = KINDS[number // 2 % len(KINDS)]
        here, other = present[number % len(present)], present[(number + 1) % len(present)]
        inside = good.features.seen[here].inside
        defect = simulate(pictures[here], pictures[other], kind, seed * 1_000_003 + number, inside)
        drawn.append((defect, (here, other)))
    return drawn


def _on(inside: Tensor | None, device: str) -> Tensor | None:
    return None if inside is None else inside.to(device)
