"""What the minutes that a user gives leave for training: reading, encoding, memories and thresholds take theirs."""

from dataclasses import replace

from mambaad_cli.training.recipe import Recipe

DESCRIBED = 200  # images of a class that go through the model after the training
PASSES = 2.0  # times as long as encoding, each of them
LEAST = 20.0  # seconds of training: with less, a decoder adds nothing to a memory


def limited(recipe: Recipe, encoded: int, classes: int, elapsed: float) -> Recipe:
    """The recipe with the minutes that are left for its training, once `encoded` images took `elapsed` seconds.

    Where too few are left and there is a memory, it is the evidence alone. Without a limit nothing changes.

    >>> small = Recipe(8, 0.004, "cosine", evidence="both", max_minutes=2)
    >>> limited(small, encoded=500, classes=1, elapsed=10).max_minutes
    1.7
    >>> limited(small, encoded=500, classes=1, elapsed=80).evidence
    'memory'
    """
    if recipe.max_minutes is None:
        return recipe
    afterwards = (1 + recipe.folds) * classes * DESCRIBED * PASSES * elapsed / encoded
    left = 60 * recipe.max_minutes - elapsed - afterwards
    if left < LEAST and recipe.evidence == "both" and not recipe.folds:
        return replace(recipe, evidence="memory")
    return replace(recipe, max_minutes=round(max(left, 0.0) / 60, 4))
