"""Known defects of a product: one linear classifier of patches for each view, which adds to the evidence.

A memory tells how unlike good patches a patch is. Where defects are known, a classifier also tells how like one of them
it is. It only adds: what looks unlike every known defect is as unusual as it was.

Letters: b batch, c channels, h × w positions of a view, H × W pixels of the map, p patches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 10.0  # of the weights, on whitened patches
NEWTON_STEPS = 15
COVERED = 0.3  # of a position, from which a mask covers it
LARGEST_STEP = 5.0  # of a weight: the first steps of separable patches would go far


class KnownDefects(NamedTuple):
    """What known defects of a product look like, and how much that counts."""

    classifiers: tuple[Tensor, ...]  # (c + 1,) a view: weights of a patch as the encoder gives it, and a constant
    centre: float  # the median over good images of the highest value of the classifiers' map
    gain: float  # what a unit above the centre adds to the score of an image


def classifier_of(bad: Tensor, good: Tensor, start: Tensor | None = None) -> Tensor:
    """A logistic regression of bad (p, c) against good patches (q, c), both whitened: weights and constant (c + 1,).

    Both kinds count alike, however many there are. It is found by Newton's method, in double precision, from `start`: a
    classifier of nearly the same patches.
    """
    patches = F.pad(torch.cat([bad, good]), (0, 1), value=1.0).double()
    labels = torch.cat([torch.ones(len(bad)), torch.zeros(len(good))]).to(patches)
    count = len(patches)
    counts = torch.where(labels > 0, count / (2 * len(bad)), count / (2 * len(good)))
    ridge = torch.full((patches.shape[1],), RIDGE).to(patches)
    ridge[-1] = 1e-6
    weights = torch.zeros_like(ridge) if start is None else start.to(ridge)
    for _ in range(NEWTON_STEPS):
        shares = torch.sigmoid(patches @ weights)
        gradient = patches.T @ (counts * (shares - labels)) + ridge * weights
        curvature = (counts * shares * (1 - shares)).clamp(min=1e-9)
        hessian = (patches * curvature[:, None]).T @ patches + torch.diag(ridge)
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step.clamp(-LARGEST_STEP, LARGEST_STEP)
        if float(step.abs().max()) < 1e-6:
            break
    return weights


def of_raw_patches(classifier: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """The classifier (c + 1,) of whitened patches as one of patches as the encoder gives them, in single precision."""
    weights = whitening.double() @ classifier[:-1]
    return torch.cat([weights, (classifier[-1] - mean.double() @ weights)[None]]).float()


def likeness(classifier: Tensor, patches: Tensor) -> Tensor:
    """How like a known defect each patch (b, h, w, c) is, as a logit: (b, h, w)."""
    return patches @ classifier[:-1] + classifier[-1]


def with_known_defects(maps: Tensor, found: Tensor, centre: Tensor, gain: Tensor) -> Tensor:
    """Anomaly maps (b, H, W) with what the classifiers find, (b, H, W). centre and gain: (1,), or (b,) of each image.

    The score of an image is what its map alone and the highest value of the classifiers give together, wherever each of
    them lies: what stands out of the map is raised until its peak has that score.
    """
    local = maps + gain[:, None, None] * (found - centre[:, None, None]).clamp(min=0)
    wanted = maps.amax((1, 2)) + gain * (found.amax((1, 2)) - centre).clamp(min=0)
    highest, usual = local.amax((1, 2)), local.mean((1, 2))
    standing_out = (local - usual[:, None, None]).clamp(min=0) / (highest - usual).clamp(min=1e-6)[:, None, None]
    return local + (wanted - highest)[:, None, None] * standing_out


def hardest_patches(
    maps: Tensor, views: Sequence[Tensor], count: int, inside: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Of one image the patches where its map (H, W) is highest: (p, c) of each view (h, w, c), the highest first.

    The positions are those of the last view; other views are interpolated there. inside: (H, W) bool, such as the mask
    of a defect, that they must lie in; of a mask smaller than a position, the positions that it covers most.
    """
    grid = (views[-1].shape[0], views[-1].shape[1])
    values = F.adaptive_max_pool2d(maps[None, None], grid).flatten()
    if inside is not None:
        covered = F.adaptive_avg_pool2d(inside.to(maps)[None, None], grid).flatten()
        values = values.masked_fill(covered < min(COVERED, 0.99 * float(covered.max())), -math.inf)
    chosen = values.topk(min(count, int(values.isfinite().sum()))).indices
    return tuple(_on_grid(view, grid)[chosen] for view in views)


def _on_grid(view: Tensor, grid: tuple[int, int]) -> Tensor:
    """A view (h, w, c) at the positions of a grid: (p, c)."""
    if (view.shape[0], view.shape[1]) == grid:
        return view.flatten(0, 1)
    scaled = F.interpolate(view.permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=False)
    return scaled[0].permute(1, 2, 0).flatten(0, 1)


def likenesses(classifiers: Sequence[Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """The likeness (b, h, w) of the patches (b, h, w, c) of each view."""
    return [likeness(*pair) for pair in zip(classifiers, views, strict=True)]
