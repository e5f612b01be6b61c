"""How a model is trained: every choice by its name. A recipe travels in the model file."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from mambaad_cli import MambaADError, distributed
from mambaad_cli.inspection.calibration import check_share
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.model.settings import PRESETS, Settings

EVIDENCE = ("decoder", "memory", "both")
MOST_STEPS = 1000  # at most, unless epochs or minutes are given
ADDING_STEPS, ADDING_LR = 100, 0.5  # steps, and the share of the learning rate, when a product is added
ADDING_VIEWS = 2  # factor on the moved views, which old and new images share


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained on good images. `epochs` and `max_minutes` take the place of `steps` where given."""

    batch: int  # images per step
    lr: float  # learning rate
    schedule: Literal["constant", "step", "cosine"]  # step: × 0.1 at 80 %, as in the paper; cosine: warm-up, then to 0
    steps: int = 0  # optimisation steps
    steps_per_image: float = 0.0  # additional steps for each image
    epochs: int | None = None  # how often each image is seen
    max_minutes: float | None = None  # of training, in place of steps
    clip: float = 5.0  # largest norm of the gradient of a step
    views: int = 0  # moved views extend a smaller set of images to about this many
    flips: bool = False  # good parts may also be mirrored
    turns: bool = False  # views are rotated by any angle where a product lies any way round, see training.turns
    cut_paste: bool = False  # the detector restores good features from corrupted ones, see data.augmentation
    dropout: float = 0.0  # of the bottleneck's output, so that the decoder cannot just copy (Dinomaly, CVPR 2025)
    distance: Literal["published", "mahalanobis"] = "published"  # the distance that the anomaly map measures
    expected_distance: bool = False  # Mahalanobis distances are divided by their expected value, see anomaly_map
    evidence: Literal["decoder", "memory", "both"] = "decoder"  # that the anomaly map shows
    memory_size: int = 3000  # patches of each product that the memory keeps in each look
    folds: int = 0  # shorter trainings that give the threshold; 0: some images are held out for it
    drop_suspects: int | Literal["auto"] = (
        0  # images least like the others that are left out; auto: those that look odd
    )
    max_false_reject: float | None = None  # the share of good images that the threshold may reject; None: the usual one
    keep_examples: bool = True  # keep some images in the model file, for `add`
    seed: int = 42

    def steps_for(self, images: int, batch: int) -> int:
        """Steps of a training on this number of images in batches of `batch`.

        >>> [RECIPES["small"].steps_for(n, 8) for n in (10, 100, 10**6)], RECIPES["paper"].steps_for(160, 16)
        ([50, 55, 1000], 10000)
        """
        if self.epochs is not None:
            return math.ceil(self.epochs * images / batch)
        return min(MOST_STEPS, self.steps + round(self.steps_per_image * images))

    def showing(self, evidence: Literal["decoder", "memory", "both"]) -> "Recipe":
        """This recipe for a map that shows this evidence: a decoder without a memory is trained four times as long.

        >>> RECIPES["small"].showing("decoder").steps, RECIPES["small"].showing("both").steps
        (200, 50)
        """
        longer = 4 if evidence == "decoder" and self.evidence == "both" else 1
        steps, more = longer * self.steps, longer * self.steps_per_image
        return replace(self, evidence=evidence, steps=steps, steps_per_image=more)

    def for_adding(self) -> "Recipe":
        """How a product is added to a model that was trained by this recipe."""
        return replace(
            self,
            lr=ADDING_LR * self.lr,
            steps=ADDING_STEPS,
            steps_per_image=0.0,
            epochs=None,
            max_minutes=None,
            views=ADDING_VIEWS * self.views,
            folds=0,
        )


# Ours, for minutes on a laptop; the paper's, section 4.1; and the baselines as published. See model.settings.PRESETS.
RECIPES: dict[str, Recipe] = {
    "small": Recipe(
        batch=8,
        lr=0.004,
        schedule="cosine",
        steps=50,
        steps_per_image=0.05,
        views=500,
        turns=True,
        cut_paste=True,
        dropout=0.3,
        distance="mahalanobis",
        expected_distance=True,
        evidence="both",
    ),
    "memory": Recipe(
        batch=8, lr=0.001, schedule="constant", evidence="memory", views=100, turns=True, memory_size=3000
    ),
    "fast": Recipe(batch=8, lr=0.001, schedule="constant", evidence="memory", views=100, turns=True, memory_size=1000),
    "paper": Recipe(batch=16, lr=0.005, schedule="step", epochs=1000),
    "rd4ad": Recipe(batch=16, lr=0.005, schedule="constant", epochs=200),
    "uniad": Recipe(batch=8, lr=0.0001, schedule="step", epochs=1000),
}


def recipe_of(record: ModelRecord) -> Recipe:
    """The recipe that a model was trained by.

    Files of format 1 do not hold it. Then it is the recipe of the preset that has the model's detector and loss, with
    the distance that the model measures. Raises MambaADError for a recipe of a newer version.
    """
    if record.recipe:
        return recipe_from(record.recipe, "the model")
    settings = record.network.settings
    name = next(name for name, preset in PRESETS.items() if preset.detector == settings.detector)
    if settings.options.get("loss") == "mse":
        name = "paper"
    statistics = [scale for product in record.products.values() for scale in product.learnt.statistics]
    return replace(
        RECIPES[name],
        distance="mahalanobis" if statistics else "published",
        evidence="decoder",
        expected_distance=any(bool(scale.expected.any()) for scale in statistics),
    )


def recipe_from(choices: Mapping[str, Any], source: str) -> Recipe:
    """A recipe as it was written into the file of `source`. Raises MambaADError for choices that are not known."""
    known = {field.name for field in fields(Recipe)}
    if unknown := sorted(set(choices) - known):
        raise MambaADError(f"{source} was trained by another version of mambaad, which knew {', '.join(unknown)}")
    try:
        return Recipe(**choices)
    except TypeError as error:
        raise MambaADError(f"{source} lacks a part of its recipe: it was made by another version of mambaad") from error


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is written into a file."""
    return asdict(recipe)


@dataclass(frozen=True)
class RunOptions:
    """Where and how a training runs. It does not change what is learnt, except for rounding."""

    device: str = "cpu"
    precision: str = "fp32"  # of matrix products: fp32 or bf16
    encoder_weights: Path | None = None  # a local file; else from the encoder's package, or timm's hub or cache
    cache_dtype: str = "auto"  # of cached features: fp32, fp16, bf16, or fp16 where they are many
    cache_memory: int = 4 * 10**9  # bytes of features kept in memory; more go to a memory-mapped temporary file
    checkpoint_activations: bool = False  # compute activations again in the backward pass, to save memory
    checkpoint: Path | None = None  # written every half minute; the caller removes it once the model is saved
    resume: bool = False  # continue from that checkpoint
    fingerprint: str = ""  # of the training that the checkpoint must be of
    runtime: str = "torch"  # of the encoder, see TorchScorer.expecting


def check(settings: Settings, recipe: Recipe) -> None:
    """Raises MambaADError for choices that do not go together, before an image is read."""
    choices = {
        "evidence": EVIDENCE,
        "distance": ("published", "mahalanobis"),
        "schedule": ("constant", "step", "cosine"),
    }
    for name, allowed in choices.items():
        if getattr(recipe, name) not in allowed:
            raise MambaADError(f"no {name} {getattr(recipe, name)!r}: choose {', '.join(allowed)}")
    check_share(recipe.max_false_reject)
    if settings.detector == "memory" and recipe.evidence != "memory":
        raise MambaADError(f"--detector memory has no decoder: leave out --evidence {recipe.evidence}")
    if recipe.evidence == "both" and recipe.distance == "published":
        raise MambaADError("--evidence both needs the distances of the preset small: others show the decoder alone")
    if recipe.folds == 1 or recipe.folds < 0:
        raise MambaADError(f"{recipe.folds} folds: expected 0, or 2 or more")
    if recipe.folds and distributed.world() > 1:
        raise MambaADError("--folds runs in one process: leave out torchrun")
    if recipe.folds and settings.tiles:
        raise MambaADError("--folds and --tiles do not go together: tiles hold photos out for the threshold")
    if recipe.folds and recipe.evidence == "memory":
        raise MambaADError("--folds has no effect with --evidence memory: leave it out")
    if recipe.batch < 1 or recipe.memory_size < 1 or not recipe.lr > 0:
        raise MambaADError("expected at least one image per batch, one patch in the memory and a learning rate above 0")
    if recipe.epochs is not None and recipe.epochs < 1:
        raise MambaADError(f"{recipe.epochs} epochs: expected 1 or more")
    if recipe.max_minutes is not None and not recipe.max_minutes > 0:
        raise MambaADError(f"{recipe.max_minutes:g} minutes: expected more than 0")
    dropped = recipe.drop_suspects
    if (isinstance(dropped, str) and dropped != "auto") or (isinstance(dropped, int) and dropped < 0):
        raise MambaADError(f"drop_suspects is {dropped!r}: expected a number of images, or auto")


def preset(name: str) -> tuple[Settings, Recipe]:
    """The network and the recipe of a preset: small, fast, paper, memory, rd4ad or uniad."""
    return PRESETS[name], RECIPES[name]
