"""UniAD, a baseline: "A Unified Model for Multi-class Anomaly Detection" (You et al., NeurIPS 2022).

Letters: b batch, c channels of all stages together, h × w positions of the token grid, l = h·w, d width,
H × W pixels of the anomaly map.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli.model.anomaly_map import Residual, fuse, residuals


class EncoderLayer(nn.Module):
    """Neighbour-masked self-attention, then a feed-forward network, each with its residual and LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.feed_forward = _feed_forward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """tokens: (b, l, d); position: (1, l, d); mask: (l, l), added to the attention's logits."""
        placed = tokens + position
        tokens = self.norms[0](tokens + self.dropout(_attend(self.attention, placed, placed, tokens, mask)))
        return self.norms[1](tokens + self.feed_forward(tokens))


class DecoderLayer(nn.Module):
    """One layer of the layer-wise query decoder: it starts from a learned query of its own, never from its input.

    The query is fused with the encoder's tokens, then with the previous layer's output, both by neighbour-masked
    attention; so nothing can be copied straight through.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, grid: tuple[int, int]) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width, *grid))  # as large as the normalised tokens that join it
        self.fuse_encoded = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.fuse_previous = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.feed_forward = _feed_forward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, previous: Tensor, encoded: Tensor, position: Tensor, mask: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """previous, encoded: (b, l, d); position: (1, l, d); mask: (l, l); size: the grid's h, w."""
        query = _resize(self.query, size).flatten(2).mT.expand_as(encoded)
        x = _attend(self.fuse_encoded, query + position, encoded + position, encoded, mask)
        x = self.norms[0](query + self.dropout(x))
        fused = _attend(self.fuse_previous, x + position, previous + position, previous, mask)
        x = self.norms[1](x + self.dropout(fused))
        return self.norms[2](x + self.feed_forward(x))


class TransformerSizes(NamedTuple):
    """Of UniAD's encoder and decoder, as published."""

    width: int = 256
    layers: int = 4
    heads: int = 8
    hidden: int = 1024  # of the feed-forward networks
    dropout: float = 0.1


class UniAD(nn.Module):
    """A transformer reconstructs an image's feature tokens; a token cannot attend to its neighbours.

    channels: of the encoder's maps, finest first; any number of maps, all resized to the grid of the last.
    grid: rows and columns the position and query embeddings are learned for (an image's sides over 16). Other grids
        interpolate them.
    neighbourhood: odd side of the square around a position that it cannot attend to.
    jitter: in training Gaussian noise is added to a token; its standard deviation is the norm of the token / jitter.
    sizes: of the transformer, see TransformerSizes.
    """

    strides: ClassVar[tuple[int, ...]] = (2, 4, 8, 16)
    scales = 1

    def __init__(
        self,
        channels: Sequence[int],
        grid: tuple[int, int] = (16, 16),
        neighbourhood: int = 7,
        jitter: float = 20.0,
        **sizes: Any,
    ) -> None:
        super().__init__()
        (rows, columns), (width, layers, heads, hidden, dropout) = grid, TransformerSizes(**sizes)
        self.neighbourhood, self.jitter = neighbourhood, jitter
        self.rows = nn.Parameter(torch.rand(1, width // 2, rows, 1))
        self.columns = nn.Parameter(torch.rand(1, width // 2, 1, columns))
        self.project_in = nn.Linear(sum(channels), width)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout, (rows, columns)) for _ in range(layers)
        )
        self.project_out = nn.Linear(width, sum(channels))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's features on one grid, and the same reconstructed: two (b, h, w, c), float32."""
        target = _stack(features)
        size = (target.shape[1], target.shape[2])
        position = self._position(size)
        mask = _mask_on(target.device, *size, self.neighbourhood)
        encoded = self.project_in(self._jittered(target).flatten(1, 2))
        for layer in self.encoder:
            encoded = layer(encoded, position, mask)
        tokens = encoded
        for layer in self.decoder:
            tokens = layer(tokens, encoded, position, mask, size)
        return target, self.project_out(tokens).unflatten(1, size)

    def loss(self, features: Sequence[Tensor], seen: Sequence[Tensor] | None = None) -> Tensor:
        """Mean squared error of the reconstructed features against those without jitter."""
        target, reconstructed = self(features if seen is None else seen)
        return F.mse_loss(reconstructed, target if seen is None else _stack(features))

    def anomaly_map(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """L2 distance over the channels at each position, upsampled bilinearly to `size` pixels: (b, H, W), ≥ 0."""
        target, reconstructed = self(features)
        return fuse([torch.linalg.vector_norm(reconstructed - target, dim=-1)], size, sigma=0)

    def residuals(self, features: Sequence[Tensor]) -> list[Residual]:
        """What it cannot reconstruct of the stacked features: one scale."""
        return residuals(*([tokens.permute(0, 3, 1, 2)] for tokens in self(features)))

    def optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """The paper's: AdamW, learning rate 1e-4 unless given, weight decay 1e-4."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4 if lr is None else lr, weight_decay=1e-4)

    def _position(self, size: tuple[int, int]) -> Tensor:
        """Position embedding (1, l, d): a position's row in the first half of the channels, its column in the other."""
        rows = _resize(self.rows, (size[0], 1)).expand(-1, -1, *size)
        columns = _resize(self.columns, (1, size[1])).expand(-1, -1, *size)
        return torch.cat([rows, columns], dim=1).flatten(2).mT

    def _jittered(self, tokens: Tensor) -> Tensor:
        """In training, (b, h, w, c) tokens with noise in proportion to their norm; else unchanged."""
        if not self.training:
            return tokens
        deviation = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True) / self.jitter
        return tokens + torch.randn_like(tokens) * deviation


def neighbour_mask(h: int, w: int, neighbourhood: int = 7) -> Tensor:
    """Which positions of an h × w grid are hidden from which: (l, l) bool, a row per attending position, True = hidden.

    A position's `neighbourhood` × `neighbourhood` square (odd) is hidden. On a grid so small that some position would
    see nothing, the square shrinks until every position sees something; a grid of one position hides nothing.

    >>> neighbour_mask(1, 4, 3).int().tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    # 2 · radius + 1 < longest side: even from the middle of that side one end stays visible
    radius = min((neighbourhood - 1) // 2, max(h, w) // 2 - 1)
    rows, columns = (torch.arange(side, device="cpu") for side in (h, w))
    near_rows = (rows[:, None] - rows).abs() <= radius
    near_columns = (columns[:, None] - columns).abs() <= radius
    return (near_rows[:, None, :, None] & near_columns[None, :, None, :]).reshape(h * w, h * w)


@lru_cache(maxsize=1)  # at 1024 × 1024 pixels one takes 67 MB
def _mask_on(device: torch.device, h: int, w: int, neighbourhood: int) -> Tensor:
    """The neighbour mask as attention adds it to its logits, −inf where hidden, else 0: (l, l), made once a grid.

    It is a normal tensor, even if the first caller is in inference mode.
    """
    with torch.inference_mode(False):
        hidden = neighbour_mask(h, w, neighbourhood).to(device)
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))


def _stack(features: Sequence[Tensor]) -> Tensor:
    """Feature maps resized to the last one's grid, side by side: (b, h, w, c), float32."""
    size = (features[-1].shape[2], features[-1].shape[3])
    return torch.cat([_resize(feature.float(), size) for feature in features], dim=1).permute(0, 2, 3, 1)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(b, c, …, …) bilinearly to `size`, corners aligned as in the anomaly map."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return attention(query, key, value, need_weights=False, attn_mask=mask)[0]


def _feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
    )
