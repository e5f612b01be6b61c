"""What is compared on a dataset: detectors with their recipes, the steps of an ablation, the choices of a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.detectors import as_typed
from mambaad_cli.model.encoder import DEFAULT
from mambaad_cli.model.scan_orders import WALKS
from mambaad_cli.model.settings import PRESETS
from mambaad_cli.training.recipe import RECIPES, Recipe


class Variant(NamedTuple):
    """A row of the table: a detector on an encoder, and how it is trained."""

    name: str
    detector: str  # a key of DETECTORS
    encoder: str
    options: dict[str, Any]  # the detector's keyword arguments
    recipe: Recipe
    preset: str  # its image sizes are the default


PRESET_NAMES = {
    "small": "MambaAD small",
    "fast": "MambaAD fast",
    "paper": "MambaAD paper",
    "memory": "Memory",
    "rd4ad": "RD4AD",
    "uniad": "UniAD",
}
DEFAULT_PRESETS = ("small", "memory", "rd4ad", "uniad")


def choose(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The variants of these detectors (mambaad) or names (mambaad-small); without names the usual ones.

    All of them on one encoder, the one whose weights come with us unless another is named; `own` leaves each detector
    on the encoder that it was published with.

    >>> [variant.name for variant in choose(["uniad", "mambaad"])]
    ['MambaAD small', 'MambaAD paper', 'UniAD']
    >>> {variant.encoder for variant in choose()}
    {'efficientnet_lite0'}
    """
    variants = {preset: _variant(preset, name, encoder) for preset, name in PRESET_NAMES.items()}
    if not names:
        return [variants[preset] for preset in DEFAULT_PRESETS]
    wanted = [as_typed(name) for name in names]
    typed: dict[str, tuple[str, ...]] = {
        preset: (variant.detector, as_typed(variant.name)) for preset, variant in variants.items()
    }
    typed["fast"] = (as_typed(PRESET_NAMES["fast"]),)  # its detector is the memory, its name MambaAD's
    choices = list(dict.fromkeys(name for names in typed.values() for name in names))
    for name in wanted:
        if name not in choices:
            raise MambaADError(f"no detector {name!r} to fit: choose from {', '.join(choices)}")
    return [variant for preset, variant in variants.items() if set(typed[preset]) & set(wanted)]


def _variant(preset: str, name: str, encoder: str | None) -> Variant:
    settings = PRESETS[preset]
    chosen = settings.encoder if encoder == "own" else encoder or DEFAULT
    return Variant(name, settings.detector, chosen, settings.options, RECIPES[preset], preset)


def ablation(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The steps of the paper's Table 2 on one MambaAD, the small one unless another is named, then each scan order with
    each number of directions: 2, 4 and 8, and 6 where two of the 8 walks are others once more; and the best of these
    with gated linear attention in place of the scan.

    >>> [variant.name for variant in ablation()][:6]
    ['plain Mamba decoder', 'with LSS modules', 'with HSS (Hilbert, 8)', 'sweep, 2', 'sweep, 4', 'sweep, 8']
    """
    base, *others = choose(names or ["mambaad-small"], encoder)
    if others or base.detector != "mambaad":
        raise MambaADError("the ablation is of one MambaAD: choose mambaad-small or mambaad-paper")

    decoder = base.recipe.showing("decoder")  # the paper's ablation knows no memory

    def step(name: str, order: str, directions: int, local_branches: bool = True) -> Variant:
        changed = {"order": order, "directions": directions, "local_branches": local_branches}
        return base._replace(name=name, options=base.options | changed, recipe=decoder)

    steps = [
        step("plain Mamba decoder", "sweep", 2, local_branches=False),
        step("with LSS modules", "sweep", 2),
        step("with HSS (Hilbert, 8)", "hilbert", 8),
    ]
    attention = step("hilbert, 8, gated linear attention", "hilbert", 8)
    attention = attention._replace(options=attention.options | {"ssm": "gla"})
    grid = [(order, k) for order in WALKS for k in (2, 4, 6, 8) if k != 6 or order in ("hilbert", "scan")]
    return [*steps, *(step(f"{order}, {k}", order, k) for order, k in grid), attention]


def as_fitted(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """What `fit` offers beside its default, and the baselines, each by a recipe of its own.

    >>> [variant.name for variant in as_fitted()]
    ['MambaAD small', 'MambaAD fast', 'decoder alone', 'memory alone', 'RD4AD', 'UniAD']
    """
    if names:
        raise MambaADError("--presets compares what fit offers: leave out --detectors")
    small, fast, rd4ad, uniad = choose(("mambaad-small", "mambaad-fast", "rd4ad", "uniad"), encoder)
    _, decoder, memory, *_ = recipes((), encoder)
    return [small, fast, decoder, memory, rd4ad, uniad]


def recipes(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The recipe of one MambaAD, the small one unless another is named, and a row for each choice that it makes.

    First the witnesses, each alone; then the choices of the decoder's training, without the memory.

    >>> [variant.name for variant in recipes()][:3]
    ['MambaAD small', 'decoder alone', 'memory alone']
    """
    base, *others = choose(names or ["mambaad-small"], encoder)
    if others or base.detector != "mambaad":
        raise MambaADError("the recipes are of one MambaAD: choose mambaad-small or mambaad-paper")
    recipe, depths = base.recipe.showing("decoder"), base.options["depths"]

    def trained(name: str, **changed: Any) -> Variant:
        return base._replace(name=name, recipe=replace(recipe, **changed))

    def built(name: str, **changed: Any) -> Variant:
        return base._replace(name=name, options=base.options | changed, recipe=recipe)

    rows = [
        trained("decoder alone"),
        trained("memory alone", evidence="memory"),
        trained("features not corrupted", cut_paste=False),
        trained("cosine distance", distance="published"),
        trained("distances not divided by expected ones", expected_distance=False),
        trained("no moved views", views=0),
        built("plain cosine loss", loss="cosine"),
        built("squared error", loss="mse"),
        trained("half the learning rate", lr=recipe.lr / 2),
        trained("half the batch", batch=max(1, recipe.batch // 2)),
        trained("no dropout", dropout=0.0),
        built("half the depth", depths=tuple(max(1, depth // 2) for depth in depths)),
        built("four directions", directions=4),
        built("gated linear attention", ssm="gla"),
    ]
    return [base, *(row for row in rows if row._replace(name=base.name) != base)]
