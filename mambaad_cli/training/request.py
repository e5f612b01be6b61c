"""What a command or a program asks `fit` for, as one record: checked before an image is read, obeyed by both alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.roi import MaskFolder, Wish
from mambaad_cli.model.scan_orders import directions as walks
from mambaad_cli.model.settings import Settings, scaled_size, seen_by
from mambaad_cli.training.recipe import Recipe, RunOptions, check, preset

Size = tuple[int, int]  # height, width
WITHOUT_DECODER = ("fast", "rd4ad", "uniad", "memory")  # presets whose detectors have no Mamba decoder
MIN_TILE = 128  # pixels a side
MIN_PIXELS = 64  # side of a square that has as many pixels as a product's own size
MAX_DETAIL = 4  # times


@dataclass(frozen=True)
class FitRequest:
    """The choices of `mambaad fit`. None: the preset decides."""

    good: Path
    preset: Literal["small", "fast", "paper", "memory", "rd4ad", "uniad"] = "small"
    encoder: str | None = None
    encoder_weights: Path | None = None
    # how photos are seen
    size: Size | None = None  # one for all products; None: each has its own
    pixels: int | None = None  # of a product's own size: as many as a square of this side has
    detail: float | None = None  # factor by which the close view enlarges each side
    letterbox: bool = False
    tile_size: Size | None = None  # also see photos in tiles, at their own resolution
    scale: float | None = None  # of photos before tiles are cut from them
    inside: tuple[Wish, ...] = ()
    ignored: tuple[Wish, ...] = ()
    masks: MaskFolder | None = None
    # what is learnt
    evidence: Literal["decoder", "memory", "both"] | None = None
    scan: str | None = None
    directions: int | None = None
    ssm: Literal["mamba", "gla"] | None = None
    local_branches: bool | None = None
    flips: bool | None = None
    folds: int = 0
    epochs: int | None = None
    max_minutes: float | None = None
    max_false_reject: float | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int = 42
    drop_suspects: int | Literal["auto"] = 0
    keep_examples: bool = True
    recipe_choices: Mapping[str, Any] = field(default_factory=dict)  # other fields of Recipe
    # where it runs
    device: str = "auto"
    precision: str = "fp32"
    runtime: str = "auto"
    cache_dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    cache_gigabytes: float = 4.0
    checkpoint_activations: bool = False
    checkpoint: Path | None = None
    resume: bool = False

    def settings(self) -> Settings:
        """The network. Raises MambaADError for choices that do not go together."""
        settings, _ = preset(self.preset)
        self._check_network(settings)
        options = {
            name: value
            for name, value in (
                ("order", self.scan),
                ("directions", self.directions),
                ("ssm", self.ssm),
                ("local_branches", self.local_branches),
            )
            if value is not None
        }
        settings = replace(
            settings,
            encoder=self.encoder or settings.encoder,
            letterbox=self.letterbox,
            options=settings.options | options,
        )
        if options:
            walks(settings.options.get("order", "hilbert"), 1, 1, settings.options["directions"])
        settings = self._sized(settings)
        if self.tile_size is not None:
            settings = replace(settings, tiles=scaled_size(self.tile_size, 1), scale=self.scale or 1.0)
        return settings

    def recipe(self) -> Recipe:
        """How it is trained. Raises MambaADError for choices that do not go together."""
        _, recipe = preset(self.preset)
        if self.evidence is not None:
            recipe = recipe.showing(self.evidence)
        return self._chosen(replace(recipe, folds=self.folds, keep_examples=self.keep_examples, flips=bool(self.flips)))

    def recipe_for_adding(self, own: Recipe) -> Recipe:
        """How products are added to a model that was trained by a recipe of its own."""
        recipe = own.for_adding()
        return self._chosen(recipe if self.flips is None else replace(recipe, flips=self.flips))

    def _chosen(self, recipe: Recipe) -> Recipe:
        names = ("epochs", "max_minutes", "batch", "lr", "max_false_reject")
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        chosen |= {"seed": self.seed, "drop_suspects": self.drop_suspects}
        return replace(recipe, **(chosen | dict(self.recipe_choices)))

    def run(self) -> RunOptions:
        """Where and how it runs."""
        return RunOptions(
            distributed.pick_device(self.device),
            self.precision,
            self.encoder_weights,
            self.cache_dtype,
            int(self.cache_gigabytes * 1e9),
            self.checkpoint_activations,
            self.checkpoint,
            self.resume,
            runtime=self.runtime,
        )

    def check(self) -> None:
        """Raises MambaADError for choices that do not go together, or would have no effect."""
        settings, recipe = self.settings(), self.recipe()
        check(settings, recipe)
        if seen_by(settings, recipe.evidence) != settings and self.detail is not None:
            raise MambaADError("--detail is for the memory: it has no effect with --evidence decoder")
        self._check_training(recipe)

    def _check_training(self, recipe: Recipe) -> None:
        if self.epochs is not None and self.max_minutes is not None:
            raise MambaADError("--epochs and --max-minutes both limit the training: give one of them")
        of_training = ("epochs", "batch", "lr")
        chosen = [f"--{name.replace('_', '-')}" for name in of_training if getattr(self, name) is not None]
        if chosen and recipe.evidence == "memory":
            raise MambaADError(f"{', '.join(chosen)}: no effect on a memory alone, which is not trained")

    def _check_network(self, settings: Settings) -> None:
        of_decoder = {
            "--scan": self.scan, "--directions": self.directions, "--ssm": self.ssm,
            "--local-branches": self.local_branches,
        }  # fmt: skip
        given = [option for option, value in of_decoder.items() if value is not None]
        if given and self.preset in WITHOUT_DECODER:
            raise MambaADError(f"{', '.join(given)}: only for the Mamba decoder, and {self.preset} has none")
        own_sizes = [
            name for name, value in (("--pixels", self.pixels), ("--detail", self.detail)) if value is not None
        ]
        if own_sizes and (self.size is not None or self.letterbox):
            single = "--res" if self.size is not None else "--letterbox"
            raise MambaADError(f"{', '.join(own_sizes)}: not with {single}, which gives all products one size")
        if self.pixels is not None and self.pixels < MIN_PIXELS:
            raise MambaADError(f"--pixels {self.pixels}: expected at least {MIN_PIXELS}, the side of a square")
        if self.detail is not None and not 1 <= self.detail <= MAX_DETAIL:
            raise MambaADError(f"--detail {self.detail:g}: expected a factor of 1 to {MAX_DETAIL}")
        if self.scale is not None and not self.scale > 0:
            raise MambaADError(f"--scale {self.scale:g}: expected a factor above 0")
        if self.scale is not None and self.tile_size is None:
            raise MambaADError("--scale is for --tiles: photos are scaled before tiles are cut from them")
        if self.tile_size is not None and min(scaled_size(self.tile_size, 1)) < MIN_TILE:
            raise MambaADError(f"tiles need at least {MIN_TILE} pixels a side")

    def _sized(self, settings: Settings) -> Settings:
        """One size for all products where it was given, and for letterboxes; else as the preset says."""
        if self.size is not None or self.letterbox:
            return replace(settings, size=self.size or settings.size, own_aspect=False, detail=1.0)
        size = settings.size if self.pixels is None else (self.pixels, self.pixels)
        return replace(settings, size=size, detail=self.detail or settings.detail)


def recipe_fields() -> set[str]:
    """The names of all choices of a recipe."""
    return {choice.name for choice in fields(Recipe)}
