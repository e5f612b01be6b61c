"""What a model knows of its products, as tables from which each image takes the row of its own product.

Letters: n images, k products, h × w positions, p positions of an image, c channels, m patches of a memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mambaad_cli.inspection.network import expected_at, unusual
from mambaad_cli.inspection.product import Learnt, Size
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, standardised_distances
from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.known_defects import KnownDefects, with_known_defects
from mambaad_cli.model.memory import NEIGHBOURS, Memory

PADDING = 1e30  # squared length of a patch that only fills up a memory: it is nearest to nothing


def rows_of(table: Tensor, product: Tensor) -> Tensor:
    """The row of each image's product, (n, …); of a table of one row that row, (1, …)."""
    return table if len(table) == 1 else table[product]


class FusionTable(nn.Module):
    """How the maps of the two witnesses are fused, as `fuse_witnesses` does it.

    A product without a fusion has one witness only, whose map is taken as it is.
    """

    weights: Tensor

    def __init__(self, fusions: Sequence[Fusion | None]) -> None:
        super().__init__()
        unchanged = Fusion(Witness(), Witness())
        known = [fusion or unchanged for fusion in fusions]
        self.has_decoder = any(fusion.decoder.weight > 0 for fusion in known)
        self.has_memory = any(fusion.memory.weight > 0 for fusion in known)
        self.register_buffer("weights", torch.tensor([[*fusion.decoder, *fusion.memory] for fusion in known]))  # (k, 6)

    def of_decoder(self, maps: Tensor, product: Tensor) -> Tensor:
        """The decoder's part of the fused maps (n, H, W)."""
        return _weighted(maps, rows_of(self.weights[:, :3], product))

    def of_memory(self, maps: Tensor, product: Tensor) -> Tensor:
        """The memory's part of the fused maps (n, H, W)."""
        return _weighted(maps, rows_of(self.weights[:, 3:], product))


def _weighted(maps: Tensor, witnesses: Tensor) -> Tensor:
    centre, spread, weight = witnesses[:, :, None, None].unbind(1)
    return weight * (maps - centre) / spread


class StatisticsTable(nn.Module):
    """The statistics of the decoder's residuals of k products."""

    def __init__(self, learnt: Sequence[Learnt]) -> None:
        super().__init__()
        scales = zip(*(product.statistics for product in learnt), strict=True)
        self.scales = [ResidualStatistics(*map(torch.stack, zip(*scale, strict=True))) for scale in scales]  # (k, …)
        self.products = len(learnt)

    def forward(self, residuals: Sequence[Residual], product: Tensor) -> list[Tensor]:
        """Each image's residuals, standardised by the statistics of its product: (n, h, w) of each scale."""
        if self.products == 1:
            first = [ResidualStatistics(*(table[0] for table in scale)) for scale in self.scales]
            return standardised_distances(residuals, first)
        of_images = [ResidualStatistics(*(table[product] for table in scale)) for scale in self.scales]
        return list(torch.vmap(standardised_distances)(list(residuals), of_images))


class KnownDefectsTable(nn.Module):
    """The known defects of k products; where a product has none, they count nothing."""

    counts: Tensor  # (k, 2): centre and gain

    def __init__(self, known: Sequence[KnownDefects | None], views: int, channels: int) -> None:
        super().__init__()
        nothing = KnownDefects((torch.zeros(channels + 1),) * views, 0.0, 0.0)
        present = [one or nothing for one in known]
        for view in range(views):
            self.register_buffer(f"view_{view}", torch.stack([one.classifiers[view] for one in present]))
        self.views = views
        self.register_buffer("counts", torch.tensor([[one.centre, one.gain] for one in present]))

    def likenesses(self, patches: Sequence[Tensor], product: Tensor) -> list[Tensor]:
        """How like a known defect the patches (n, h, w, c) of each view are: (n, h, w)."""
        rows = [rows_of(self.get_buffer(f"view_{view}"), product) for view in range(self.views)]
        return [
            (own.flatten(1, 2) @ row[:, :-1, None])[..., 0].unflatten(1, own.shape[1:3]) + row[:, -1, None, None]
            for own, row in zip(patches, rows, strict=True)
        ]

    def forward(self, maps: Tensor, found: Tensor, product: Tensor) -> Tensor:
        """The maps (n, H, W) with what the classifiers find, (n, H, W)."""
        centre, gain = rows_of(self.counts, product).unbind(1)
        return with_known_defects(maps, found, centre, gain)


class MemoryTable(nn.Module):
    """The memories of k products in one view, made equally long by patches that are nearest to nothing."""

    mean: Tensor
    whitening: Tensor
    patches: Tensor
    lengths: Tensor
    spacing: Tensor
    expected: Tensor

    def __init__(self, memories: Sequence[Memory], grid: Size) -> None:
        super().__init__()
        longest = max(len(memory.patches) for memory in memories)
        self.neighbours = min(NEIGHBOURS, *(len(memory.patches) for memory in memories))
        tables = {
            "mean": [memory.mean[None] for memory in memories],
            "whitening": [memory.whitening for memory in memories],
            "patches": [_padded(memory.patches, longest) for memory in memories],
            "lengths": [_padded(memory.patches.square().sum(1), longest, PADDING) for memory in memories],
            "spacing": [_padded(memory.spacing, longest, 1.0) for memory in memories],
            "expected": [expected_at(memory.expected, grid) for memory in memories],
        }
        for name, rows in tables.items():
            self.register_buffer(name, torch.stack(rows))

    def forward(self, patches: Tensor, product: Tensor, inside: Tensor | None = None) -> Tensor:
        """How unusual each patch (n, h, w, c) is: (n, h, w), as `network.compared`.

        inside: (n or 1, h, w) bool, regions of interest.
        """
        return unusual(self.distances(patches, product), rows_of(self.expected, product), inside)

    def distances(self, patches: Tensor, product: Tensor) -> Tensor:
        """Distance of each patch (n, h, w, c) from the nearest ones, as `distances` of one memory: (n, h, w)."""
        white = (patches.flatten(1, 2) - rows_of(self.mean, product)) @ rows_of(self.whitening, product)  # (n, p, c)
        squared = _less_own_length(white, rows_of(self.patches, product), rows_of(self.lengths, product))  # (n, p, m)
        first = product[:, None]
        nearest, places = squared.topk(self.neighbours, dim=-1, largest=False)
        spacing = self.spacing.flatten()[first[:, None] * self.spacing.shape[1] + places]
        nearest = (nearest + white.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        return (nearest / spacing).mean(-1).unflatten(1, patches.shape[1:3])


def _less_own_length(points: Tensor, others: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances (n, p, m) of points (n, p, c) from others (n or 1, m, c), less the points' squared lengths."""
    return lengths[:, None] - 2 * (points @ others.mT)


def _padded(rows: Tensor, length: int, value: float = 0.0) -> Tensor:
    """(m, …) made `length` long with `value`."""
    return torch.cat([rows, rows.new_full((length - len(rows), *rows.shape[1:]), value)])
