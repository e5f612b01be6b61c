"""Losses of a reconstruction: features of good images and what the decoder makes of them -> a scalar to train on.

Letters: b batch, c channels, h × w positions of a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

HARDEST = 4.0  # largest weight of a position in the loss, in units of the image's mean weight


def cosine_distances(features: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> list[Tensor]:
    """1 − cosine similarity at each position, 0 (alike) … 2: for each pair of (b, c, h, w) one (b, h, w), float32."""
    return [1 - F.cosine_similarity(f.float(), r.float(), dim=1) for f, r in zip(features, reconstructed, strict=True)]


def mse_loss(features: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each scale, summed (MambaAD, section 3.4): the paper's loss."""
    pairs = zip(features, reconstructed, strict=True)
    return torch.stack([F.mse_loss(r.float(), f.float()) for f, r in pairs]).sum()


def cosine_loss(features: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> Tensor:
    """Mean cosine distance of each scale, summed: it trains what the anomaly map measures."""
    return torch.stack([distance.mean() for distance in cosine_distances(features, reconstructed)]).sum()


def hard_cosine_loss(features: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> Tensor:
    """Cosine distances weighted by themselves, so that rare patterns are learnt as well as frequent ones.

    Positions that are already reconstructed well hardly count (compare hard mining in Dinomaly, Guo et al., CVPR 2025).
    The weights are relative to the mean of each image, so the loss of a batch is the mean of its images' losses.
    The scales are summed.
    """
    losses = []
    for distance in cosine_distances(features, reconstructed):
        weights = distance.detach() / distance.detach().mean((1, 2), keepdim=True).clamp(min=1e-12)
        weights = weights.clamp(max=HARDEST)
        weights = weights / weights.mean((1, 2), keepdim=True).clamp(min=1e-12)
        losses.append((distance * weights).mean())
    return torch.stack(losses).sum()


LOSSES = {"mse": mse_loss, "cosine": cosine_loss, "hard-cosine": hard_cosine_loss}
