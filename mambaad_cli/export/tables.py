"""What a model knows of its products, as tables from which each image takes the row of its own product.

Letters: n images, k products, p positions, c channels, m patches of a memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.memory import NEIGHBOURS, Memory, without_border

FAR = 1e30  # squared distance of a patch that does not count


def rows_of(table: Tensor, product: Tensor) -> Tensor:
    """The row of each image's product, (n, …); of a table of one row that row, (1, …)."""
    return table if len(table) == 1 else table[product]


class Weights(nn.Module):
    """How the maps of the two witnesses are fused, as `fuse_witnesses` does it."""

    table: Tensor

    def __init__(self, fusion: Sequence[Fusion | None]) -> None:
        super().__init__()
        alone = Fusion(Witness(), Witness())  # where there is one witness only, its map is taken as it is
        rows = [[*(one or alone).decoder, *(one or alone).memory] for one in fusion]
        self.decoder, self.memory = (any(row[i] > 0 for row in rows) for i in (2, 5))  # whether it has a say at all
        self.register_buffer("table", torch.tensor(rows))  # (k, 6)

    def of_decoder(self, found: Tensor, product: Tensor) -> Tensor:
        return _weighted(found, rows_of(self.table[:, :3], product))

    def of_memory(self, found: Tensor, product: Tensor) -> Tensor:
        return _weighted(found, rows_of(self.table[:, 3:], product))


def _weighted(found: Tensor, rows: Tensor) -> Tensor:
    centre, spread, weight = rows[:, :, None, None].unbind(1)
    return weight * (found - centre) / spread


class Memories(nn.Module):
    """The memories of k products, made equally long by patches that lie FAR away."""

    mean: Tensor
    whitening: Tensor
    patches: Tensor
    lengths: Tensor
    spacing: Tensor
    expected: Tensor

    def __init__(self, memories: Sequence[Memory], grid: tuple[int, int]) -> None:
        super().__init__()
        most = max(len(one.patches) for one in memories)
        self.nearest = min(NEIGHBOURS, *(len(one.patches) for one in memories))
        tables = {
            "mean": [one.mean[None] for one in memories],
            "whitening": [one.whitening for one in memories],
            "patches": [_longer(one.patches, most) for one in memories],
            "lengths": [_longer(one.patches.square().sum(1), most, FAR) for one in memories],
            "spacing": [_longer(one.spacing, most, 1.0) for one in memories],
            "expected": [_expected_at(one, grid) for one in memories],
        }
        for name, rows in tables.items():
            self.register_buffer(name, torch.stack(rows))

    def forward(self, patches: Tensor, product: Tensor) -> Tensor:
        """How unusual each patch (n, h, w, c) is: (n, h, w), as `unusual_patches`."""
        return without_border(self.distances(patches, product) / rows_of(self.expected, product))

    def distances(self, patches: Tensor, product: Tensor) -> Tensor:
        """Distance of each patch (n, h, w, c) from the nearest ones, as `distances` of one memory: (n, h, w)."""
        white = (patches.flatten(1, 2) - rows_of(self.mean, product)) @ rows_of(self.whitening, product)  # (n, p, c)
        squared = _less_own_length(white, rows_of(self.patches, product), rows_of(self.lengths, product))  # (n, p, m)
        first = product[:, None]
        nearest, which = squared.topk(self.nearest, dim=-1, largest=False)
        spacing = self.spacing.flatten()[first[:, None] * self.spacing.shape[1] + which]
        nearest = (nearest + white.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        return (nearest / spacing).mean(-1).unflatten(1, patches.shape[1:3])


def _less_own_length(points: Tensor, others: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances (n, p, m) of points (n, p, c) from others (n or 1, m, c), less the points' squared lengths."""
    return lengths[:, None] - 2 * (points @ others.mT)


def _longer(rows: Tensor, length: int, value: float = 0.0) -> Tensor:
    """(m, …) made `length` long with `value`."""
    return torch.cat([rows, rows.new_full((length - len(rows), *rows.shape[1:]), value)])


def _expected_at(memory: Memory, grid: tuple[int, int]) -> Tensor:
    """The distances that good images have, at h × w positions."""
    if memory.expected.shape == grid:
        return memory.expected
    return F.interpolate(memory.expected[None, None], size=grid, mode="bilinear")[0, 0]
