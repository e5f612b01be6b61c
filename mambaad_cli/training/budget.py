"""What the minutes that a user gives leave for training: reading, encoding, memories and thresholds take theirs."""

import math
from dataclasses import replace

from mambaad_cli.inspection.tiles import OVERLAP
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.recipe import Recipe
from mambaad_cli.training.tiles import LEARNT_TILES, SCORED_PHOTOS
from mambaad_cli.training.trial import MAX_DEFECTS

DESCRIBED = 200  # images of a class that go through the model after the training
PASSES = 2.0  # times as long as encoding, each of them
MIN_SECONDS = 20.0  # of training: with less, a decoder adds nothing to a memory


def limited(recipe: Recipe, encoded: int, classes: int, elapsed: float, tiles: float = 0.0) -> Recipe:
    """The recipe with the minutes that are left for its training, once `encoded` images took `elapsed` seconds.

    Where too few are left and there is a memory, it is the evidence alone. Without a limit nothing changes.
    tiles: passes of tiles that follow, in units of an image's.

    >>> small = Recipe(8, 0.004, "cosine", evidence="both", max_minutes=2)
    >>> limited(small, encoded=500, classes=1, elapsed=10).max_minutes
    1.7
    >>> limited(small, encoded=500, classes=1, elapsed=80).evidence
    'memory'
    """
    if recipe.max_minutes is None:
        return recipe
    afterwards = ((1 + recipe.folds) * classes * DESCRIBED * PASSES + tiles) * elapsed / encoded
    left = 60 * recipe.max_minutes - elapsed - afterwards
    if left < MIN_SECONDS and recipe.evidence == "both" and not recipe.folds:
        return replace(recipe, evidence="memory")
    return replace(recipe, max_minutes=round(max(left, 0.0) / 60, 4))


def tile_passes(job: Job, good: GoodImages) -> float:
    """How many passes of an image the tiles of all products are worth: about the pixels of theirs in units of its."""
    settings = job.network.settings
    if settings.tiles is None:
        return 0.0
    height, width = settings.tiles
    passes = 0.0
    for name in set(good.names):
        photo, size = job.products[name].photo_shape or settings.tiles, job.input_size(name)
        sides = zip(photo, settings.tiles, strict=True)
        each = math.prod(max(1, math.ceil(settings.scale * side / max(1, tile - OVERLAP))) for side, tile in sides)
        photos = min(SCORED_PHOTOS, len(good.of(name)))
        passes += (LEARNT_TILES + photos * each + MAX_DEFECTS) * height * width / math.prod(size)
    return passes
