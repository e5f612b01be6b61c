"""Detectors compared on a dataset: each variant fitted on its good training images, under one budget, and evaluated on
its test images, for several seeds.

Fair by construction: all variants see the same images, have the same budget, are scored by the maximum of the anomaly
map and take their threshold from good training images; nothing is tuned on test images.
A finished cell (a variant with a seed) is kept in a file, so that an interrupted study goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import evaluation as evaluate
from mambaad_cli.benchmark import speed as bench
from mambaad_cli.data import datasets
from mambaad_cli.data.datasets import Sample
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import shown
from mambaad_cli.inspection.model_file import Model, Settings
from mambaad_cli.model.encoder import DEFAULT, for_inference
from mambaad_cli.model.scan_orders import WALKS
from mambaad_cli.training import fit as training

FIRST_SEED = 42  # the one that fit takes
DEFAULT_MINUTES = 2.0
LEAST_PASSES, MOST_PASSES, PASSING = 5, 100, 3.0  # of one image to time; seconds


class Variant(NamedTuple):
    """A row of the table: the recipe `preset` with its detector on an encoder and with these options."""

    name: str
    preset: str  # a key of fit.PRESETS: batch, learning rate, schedule
    encoder: str
    options: dict[str, Any]  # the detector's keyword arguments
    changed: tuple[tuple[str, Any], ...] = ()  # what differs from the preset's recipe

    @property
    def detector(self) -> str:
        return str(training.PRESETS[self.preset]["detector"])


PRESET_NAMES = {"small": "MambaAD small", "paper": "MambaAD paper", "rd4ad": "RD4AD", "uniad": "UniAD"}
USUAL = ("small", "rd4ad", "uniad")


class Dataset(NamedTuple):
    """What is learnt from and what is tested on. The fingerprint changes with any name, label, image or mask."""

    root: Path
    train: list[Sample]
    test: list[Sample]
    fingerprint: str


class Budget(NamedTuple):
    """Of each fit: epochs, or else minutes of training."""

    epochs: int | None = None
    minutes: float | None = None

    def __str__(self) -> str:
        if self.epochs is not None:
            return f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        return f"{self.minutes:g} minute{'' if self.minutes == 1 else 's'} of training"


@dataclass
class Outcome:
    """What came of a variant: a record for each seed that was finished (see `_record`), or why there is none."""

    variant: Variant
    cells: list[dict[str, Any]]
    error: str = ""


@dataclass
class Study:
    """All that was measured."""

    machine: dict[str, str]
    data: Dataset
    size: tuple[int, int]
    budget: Budget
    seeds: list[int]
    outcomes: list[Outcome]


# Which variants


def choose(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The variants of these detectors (mambaad) or names (mambaad-small); the usual three without names.

    All of them on one encoder, the one whose weights come with us unless another is named; `own` leaves each detector
    on the encoder that it was published with.

    >>> [variant.name for variant in choose(["uniad", "mambaad"])]
    ['MambaAD small', 'MambaAD paper', 'UniAD']
    >>> {variant.encoder for variant in choose()}
    {'efficientnet_lite0'}
    """
    variants = {preset: _variant(preset, name, encoder) for preset, name in PRESET_NAMES.items()}
    if not names:
        return [variants[preset] for preset in USUAL]
    wanted = [bench.as_typed(name) for name in names]
    known = list(dict.fromkeys(name for one in variants.values() for name in (one.detector, bench.as_typed(one.name))))
    for name in wanted:
        if name not in known:
            raise MambaADError(f"no detector {name!r} to fit: choose from {', '.join(known)}")
    return [one for one in variants.values() if {one.detector, bench.as_typed(one.name)} & set(wanted)]


def _variant(preset: str, name: str, encoder: str | None) -> Variant:
    own = training.PRESETS[preset]
    return Variant(name, preset, own["encoder"] if encoder == "own" else encoder or DEFAULT, own["options"])


def ablation(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The steps of the paper's Table 2 on one MambaAD, the small one unless another is named, then each scan order with
    each number of directions: 2, 4 and 8, and 6 where two of the 8 walks are others once more.

    >>> [variant.name for variant in ablation()][:6]
    ['plain Mamba decoder', 'with LSS modules', 'with HSS (Hilbert, 8)', 'sweep, 2', 'sweep, 4', 'sweep, 8']
    """
    base, *others = choose(names or ["mambaad-small"], encoder)
    if others or base.detector != "mambaad":
        raise MambaADError("the ablation is of one MambaAD: choose mambaad-small or mambaad-paper")

    def step(name: str, order: str, directions: int, local_branches: bool = True) -> Variant:
        changed = {"order": order, "directions": directions, "local_branches": local_branches}
        return base._replace(name=name, options=base.options | changed)

    steps = [
        step("plain Mamba decoder", "sweep", 2, local_branches=False),
        step("with LSS modules", "sweep", 2),
        step("with HSS (Hilbert, 8)", "hilbert", 8),
    ]
    grid = [(order, k) for order in WALKS for k in (2, 4, 6, 8) if k != 6 or order in ("hilbert", "scan")]
    return steps + [step(f"{order}, {k}", order, k) for order, k in grid]


def recipes(names: Sequence[str] = (), encoder: str | None = None) -> list[Variant]:
    """The recipe of one MambaAD, the small one unless another is named, and one row for each choice that it makes.

    >>> [variant.name for variant in recipes()][:3]
    ['MambaAD small', 'features not spoilt', 'cosine distance']
    """
    base, *others = choose(names or ["mambaad-small"], encoder)
    if others or base.detector != "mambaad":
        raise MambaADError("the recipes are of one MambaAD: choose mambaad-small or mambaad-paper")
    preset = training.PRESETS[base.preset]
    lr, batch = preset["lr"], preset["batch"]
    shallower = tuple(max(1, depth // 2) for depth in base.options["depths"])
    rows = [
        base._replace(name="features not spoilt", changed=(("cut_paste", False),)),
        base._replace(name="cosine distance", changed=(("normalise", False),)),
        base._replace(name="hard places not forgiven", changed=(("forgive", False),)),
        base._replace(name="no moved views", changed=(("views", 0),)),
        base._replace(name="plain cosine loss", options=base.options | {"loss": "cosine"}),
        base._replace(name="squared error", options=base.options | {"loss": "mse"}),
        base._replace(name="half the learning rate", changed=(("lr", lr / 2),)),
        base._replace(name="half the batch", changed=(("batch", max(1, batch // 2)),)),
        base._replace(name="half the depth", options=base.options | {"depths": shallower}),
        base._replace(name="four directions", options=base.options | {"directions": 4}),
    ]

    def differs(row: Variant) -> bool:
        return row.options != base.options or any(preset.get(name, 0) != value for name, value in row.changed)

    return [base, *filter(differs, rows)]


# The dataset


def read_dataset(root: Path, layout: str | None = None) -> Dataset:
    """Raises MambaADError, before anything is fitted, where there is nothing to learn from or to measure on."""
    samples = datasets.load(root, layout)
    train = datasets.training_images(samples)
    test = [sample for sample in samples if sample.split == "test"]
    if not train:
        raise MambaADError(f"{shown(root)} has no good training images: expected train/good/, or split train in a list")
    if not test:
        raise MambaADError(f"{shown(root)} has no test images: expected test/good/ and test/<defect>/, or split test")
    return Dataset(root, train, test, _fingerprint(root, [*train, *test]))


def _fingerprint(root: Path, samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        facts = [sample.class_name, sample.split, sample.defect]
        for path in (sample.path, sample.mask):
            facts += ["", ""] if path is None else [os.path.relpath(path, root), _digest(path)]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"  # and said to be so, when it is fitted or scored


# Finished cells


class Kept:
    """The file of finished cells, a JSON object a line, by their keys. Runs side by side may share it."""

    def __init__(self, path: Path) -> None:
        """Raises MambaADError for a file that cannot be read or holds something else."""
        self.path = path
        self.cells = {cell["key"]: cell for cell in _read(path)}

    def add(self, cell: dict[str, Any]) -> None:
        line = json.dumps(cell) + "\n"
        self.cells[cell["key"]] = json.loads(line)  # as the next run will read it
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read() == b"\n" else f"\n{line}"  # the last one was cut short
                file.write(line.encode())
        except OSError as error:
            raise MambaADError(f"cannot write {shown(self.path)}: {error.strerror or error}") from error


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise MambaADError(f"cannot read results from {shown(path)}: {error}") from error
    cells = [_parsed(line) for line in lines]
    if cells and not any(cells):
        raise MambaADError(f"{shown(path)} holds no results of mambaad bench --data: name another file with --results")
    yield from filter(None, cells)


def _parsed(line: str) -> dict[str, Any] | None:
    """A cell, or None of a line that a full disk or a killed process cut short."""
    try:
        cell = json.loads(line)
    except ValueError:
        return None
    return cell if isinstance(cell, dict) and {"key", "mean", "classes"} <= cell.keys() else None


# Fitting and measuring


def run(
    variants: Sequence[Variant],
    data: Dataset,
    *,
    size: tuple[int, int] = (256, 256),
    budget: Budget,
    seeds: int = 1,
    results: Path,
    encoder_weights: Path | None = None,
    device: str = "cpu",
    on_progress: Callable[[str], None] = lambda doing: None,
    on_cell: Callable[[Variant, dict[str, Any]], None] = lambda variant, cell: None,
) -> Study:
    """Fit and evaluate each variant with each seed, unless `results` has it already; one model for all classes.

    Seed by seed, so that an interrupted study has compared all variants with the first. A variant that raises
    MambaADError or runs out of memory says so in its outcome, is not kept, and the others go on.

    Raises MambaADError where no variant could be fitted, with the first one's reason.
    """
    kept = Kept(results)
    machine = bench.machine(device, "fp32")
    context = {
        "data": data.fingerprint,
        "budget": budget._asdict(),
        "encoder_weights": encoder_weights and _digest(encoder_weights),
        "machine": {name: machine[name] for name in ("device", "threads", "mambaad", "torch")},
    }
    outcomes = [Outcome(variant, []) for variant in variants]
    numbers = list(range(FIRST_SEED, FIRST_SEED + seeds))
    for seed in numbers:
        for outcome in outcomes:
            variant = outcome.variant
            if outcome.error:
                continue
            key = _key(variant, size, seed, context)
            if key not in kept.cells:
                on_progress(f"{variant.name}, seed {seed}")
                settings = Settings(variant.detector, variant.encoder, size, options=variant.options)
                try:
                    cell = _record(variant, settings, data, budget, seed, encoder_weights, device, on_progress)
                except (MambaADError, MemoryError, RuntimeError) as error:
                    outcome.error = bench.reason(error)
                    if isinstance(error, RuntimeError) and outcome.error != bench.OUT_OF_MEMORY:
                        raise
                    continue
                kept.add({"key": key, **cell, **context})
                on_cell(variant, kept.cells[key])
            outcome.cells.append(kept.cells[key])
    if outcomes and not any(outcome.cells for outcome in outcomes):
        raise MambaADError(f"no detector could be fitted; {outcomes[0].variant.name}: {outcomes[0].error}")
    return Study(machine, data, size, budget, numbers, outcomes)


def _key(variant: Variant, size: tuple[int, int], seed: int, context: dict[str, Any]) -> str:
    """What changes a cell's result, and so not its name."""
    facts = [variant._replace(name=""), training.PRESETS[variant.preset], size, seed, context]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _record(
    variant: Variant,
    settings: Settings,
    data: Dataset,
    budget: Budget,
    seed: int,
    encoder_weights: Path | None,
    device: str,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """One cell: metrics in 0 … 1 (None where undefined), mean over the classes and class by class, and times in s."""
    doing = f"{variant.name}, seed {seed}"
    steps: list[int] = []
    left_out: list[str] = []

    def on_step(step: int, total: int, loss: float, images: int) -> None:
        steps.append(images)
        on_progress(f"{doing}: step {step} of {total}, loss {loss:.4f}")

    start = time.perf_counter()
    model = training.fit(
        [ImageFile(sample.path, sample.path, sample.class_name) for sample in data.train],
        [sample.class_name for sample in data.train],
        settings,
        preset=variant.preset,
        changed=dict(variant.changed),
        encoder_weights=encoder_weights,
        epochs=budget.epochs,
        max_minutes=budget.minutes,
        seed=seed,
        device=device,
        keep_examples=False,
        on_unreadable=lambda error: left_out.append(f"left out of training: {error}"),
        on_step=on_step,
    )
    fit_seconds = time.perf_counter() - start
    on_progress(f"{doing}: {len(data.test)} test images")
    evaluation = evaluate.evaluate(model, data.test, device=device)
    if evaluation.unfinished:
        raise KeyboardInterrupt
    return {
        "variant": variant.name,
        "settings": dataclasses.asdict(settings),
        "preset": variant.preset,
        "seed": seed,
        "mean": evaluation.mean,
        "classes": {one.name: one.metrics for one in evaluation.classes},
        "fit_seconds": fit_seconds,
        "steps": len(steps),
        "score_seconds": _seconds_an_image(model, device),
        "notes": [*left_out, *evaluate.notes(evaluation)],
    }


def _seconds_an_image(model: Model, device: str) -> float:
    """Median time of encoder, detector and anomaly map for one image, as `mambaad bench` times them."""
    folded = dataclasses.replace(model, encoder=for_inference(model.encoder))
    once = bench.scoring(folded, model.settings.size, 1, device, "fp32")
    once()
    times: list[float] = []
    while len(times) < LEAST_PASSES or (len(times) < MOST_PASSES and sum(times) < PASSING):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
