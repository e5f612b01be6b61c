"""Which product an image shows, from the encoder's features alone.

Linear discriminant analysis: the signature of an image is compared with the mean of each product by the Mahalanobis
distance. All products share one covariance, shrunk towards its diagonal because there are fewer images than dimensions.

Letters: n images, k products, s dimensions of a signature.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHRINKAGE = 0.1  # of the covariance
MARGIN = 1.5  # limit of what is recognised, in units of the largest squared distance of good images


class Recognised(NamedTuple):
    """The nearest product of an image."""

    name: str
    certainty: float  # 0 … 1: how much nearer it is than the next product
    known: bool  # whether the image is near enough to show this product at all


class Recogniser(NamedTuple):
    """Distinguishes k products. How far an image may lie is a matter of calibration: see ModelRecord.unknown_limit."""

    names: list[str]
    means: Tensor  # (k, s)
    precision: Tensor  # (s, s) inverse covariance

    def __call__(self, signatures: Tensor, limit: float) -> list[Recognised]:
        """The nearest product of each signature (n, s).

        limit: squared distance beyond which it shows no product.
        """
        return self.nearest(self.distances(signatures), limit)

    def nearest(self, distances: Tensor, limit: float) -> list[Recognised]:
        """The nearest product by squared distances (n, k)."""
        nearest = distances.topk(min(2, len(self.names)), largest=False)
        return [
            Recognised(
                self.names[places[0]],
                1 - far[0] / max(far[-1], 1e-12) if len(far) > 1 else 1.0,
                far[0] <= limit,
            )
            for places, far in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        ]

    def distances(self, signatures: Tensor) -> Tensor:
        """Squared Mahalanobis distances (n, k)."""
        offsets = signatures[:, None] - self.means
        return ((offsets @ self.precision) * offsets).sum(-1)


def signature(features: Sequence[Tensor]) -> Tensor:
    """(n, s) from (n, c, h, w) a stage: mean and deviation over the positions of the last two stages."""
    parts = [part for stage in features[-2:] for part in torch.var_mean(stage.float(), dim=(2, 3))]
    return torch.cat([part.clamp(min=0).sqrt() if i % 2 == 0 else part for i, part in enumerate(parts)], dim=1)


def learn(signatures: Tensor, names: Sequence[str], held_out: Sequence[int]) -> tuple[Recogniser, dict[str, float]]:
    """A Recogniser from signatures (n, s) and the product of each, and the largest squared distance of each product.

    These distances are of images that the means were not computed from: the `held_out` ones, and each of the others
    with the mean that its product would have without it.

    >>> points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
    >>> recogniser, farthest = learn(points, ["nut", "nut", "bolt", "bolt"], [1])
    >>> recogniser(torch.tensor([[8.0, 0.5]]), limit=1e9)[0].name
    'bolt'
    """
    products = list(dict.fromkeys(names))
    labels = torch.tensor([products.index(name) for name in names])
    taught = torch.ones(len(labels), dtype=torch.bool)
    taught[list(held_out)] = False
    points = signatures.double()
    means = torch.stack([points[taught & (labels == i)].mean(0) for i in range(len(products))])
    spread = points[taught] - means[labels[taught]]
    covariance = spread.T @ spread / max(1, len(spread) - len(products))
    diagonal = covariance.diagonal().clamp(min=1e-6)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(diagonal)
    recogniser = Recogniser(products, means.float(), torch.linalg.inv(covariance).float())
    distances = recogniser.distances(signatures.float()).gather(1, labels[:, None])[:, 0]
    count = torch.bincount(labels[taught], minlength=len(products))[labels]
    left_out = torch.where(taught & (count > 1), count / (count - 1).clamp(min=1), 1.0)  # distance to a mean without it
    farthest = distances * left_out.square()
    return recogniser, {name: float(farthest[labels == i].max()) for i, name in enumerate(products)}
