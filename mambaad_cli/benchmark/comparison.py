"""Detectors compared on a dataset: each variant fitted on its good training images, under one budget, and evaluated on
its test images, for several seeds.

Fair by construction: all variants see the same images, have the same budget, are scored by the maximum of the anomaly
map and take their threshold from good training images; nothing is tuned on test images.
A finished cell (a variant with a seed) is kept in a file, so that an interrupted comparison continues where it stopped.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambaad_cli import MambaADError, __version__
from mambaad_cli.benchmark import comparison_results, evaluation, machine, peers
from mambaad_cli.benchmark.comparison_results import ResultsFile
from mambaad_cli.benchmark.comparison_variants import Variant
from mambaad_cli.benchmark.detectors import maps_of
from mambaad_cli.benchmark.evaluation_tables import notes
from mambaad_cli.benchmark.passes import OUT_OF_MEMORY, reason, scoring_pass
from mambaad_cli.data import datasets
from mambaad_cli.data.datasets import Sample
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.masks import mask_files
from mambaad_cli.files import sha256_of, shown
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.prediction import BATCH
from mambaad_cli.inspection.torch_scorer import TorchScorer, inference_network
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model import DETECTORS
from mambaad_cli.model.settings import PRESETS, Settings
from mambaad_cli.training import fit as training
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions, as_dict

FIRST_SEED = 42  # the default of fit
DEFAULT_MINUTES = 2.0
MIN_PASSES, MAX_PASSES = 5, 100  # that time the scoring of an image
MAX_PASS_SECONDS = 3.0  # of all passes together; MIN_PASSES are done all the same


class Dataset(NamedTuple):
    """Training and test samples. The fingerprint changes with any name, label, image or mask."""

    root: Path
    train: list[Sample]
    test: list[Sample]
    fingerprint: str


class Budget(NamedTuple):
    """The budget of each fit: epochs, or minutes with everything included; with `own` for recipes of epochs alone."""

    epochs: int | None = None
    minutes: float | None = None
    own: bool = False  # a recipe that tells its steps keeps them

    def limited(self, recipe: Recipe) -> Recipe:
        """The recipe with this budget in place of its default. Minutes take the place of steps."""
        if self.own and recipe.epochs is None:
            return recipe
        return replace(recipe, epochs=self.epochs or recipe.epochs, max_minutes=self.minutes)

    def __str__(self) -> str:
        if self.own:
            return f"its own recipe, and RD4AD and UniAD {self._replace(own=False)}"
        if self.epochs is not None:
            return f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        return f"{self.minutes:g} minute{'' if self.minutes == 1 else 's'}, all included"


@dataclass(frozen=True)
class ComparisonOptions:
    """How a comparison runs; the same for all variants."""

    budget: Budget
    size: tuple[int, int] | None = None  # H, W in pixels of all images; None: the size of the preset of each variant
    seeds: int = 1  # fits of each variant
    encoder_weights: Path | None = None  # a local file of the encoder's weights
    device: str = "cpu"


@dataclass
class Outcome:
    """The results of a variant: a record of each finished seed (see `_record`), or the error that ended it."""

    variant: Variant
    cells: list[dict[str, Any]]
    error: str = ""


@dataclass
class Comparison:
    """The results of all variants, and what they hold for."""

    machine: dict[str, str]
    data: Dataset
    size: tuple[int, int] | None
    budget: Budget
    seeds: list[int]
    outcomes: list[Outcome]


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
        for path in (sample.path, *mask_files(sample)):
            facts += [os.path.relpath(path, root), _digest(path)]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:
        return "unreadable"  # fit and score report it


# Fitting and measuring


def run(
    variants: Sequence[Variant],
    data: Dataset,
    options: ComparisonOptions,
    results: Path,
    on_progress: Callable[[str], None] = lambda text: None,
    on_cell: Callable[[Variant, dict[str, Any]], None] = lambda variant, cell: None,
) -> Comparison:
    """Fit and evaluate each variant with each seed that is not in `results` yet; one model for all classes.

    Seed by seed, so that an interrupted comparison has compared all variants with the first. Where a variant raises
    MambaADError or runs out of memory, its outcome holds the error, nothing is kept, and the others are compared.

    Raises MambaADError where no variant could be fitted, with the first one's reason.
    """
    kept = ResultsFile(results)
    described = machine.conditions(options.device, "fp32")
    context = _context(data, options, described)
    outcomes = [Outcome(variant, []) for variant in variants]
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    for seed in seeds:
        for outcome in outcomes:
            variant = outcome.variant
            if outcome.error:
                continue
            key = _key(variant, options.size, seed, context)
            if key not in kept.cells:
                on_progress(f"{variant.name}, seed {seed}")
                try:
                    cell = _record(variant, data, options, seed, on_progress)
                except (MambaADError, MemoryError, RuntimeError) as error:
                    outcome.error = reason(error)
                    if isinstance(error, RuntimeError) and outcome.error != OUT_OF_MEMORY:
                        raise
                    continue
                kept.add({"key": key, **cell, "mambaad": __version__, **context})
                on_cell(variant, kept.cells[key])
            outcome.cells.append(kept.cells[key])
    if outcomes and not any(outcome.cells for outcome in outcomes):
        raise MambaADError(f"no detector could be fitted; {outcomes[0].variant.name}: {outcomes[0].error}")
    return Comparison(described, data, options.size, options.budget, seeds, outcomes)


def _context(data: Dataset, options: ComparisonOptions, described: dict[str, str]) -> dict[str, Any]:
    """What changes the results of all cells of a run, as values for JSON."""
    return {
        "data": data.fingerprint,
        "budget": options.budget._asdict(),
        "encoder_weights": options.encoder_weights and _digest(options.encoder_weights),
        "machine": {name: described[name] for name in ("device", "threads", "torch")},
        "code": comparison_results.source_digest(),
    }


def _key(variant: Variant, size: tuple[int, int] | None, seed: int, context: dict[str, Any]) -> str:
    """A digest of what changes the result of a cell; the name of the variant does not."""
    facts = [asdict(_settings(variant, size)), as_dict(variant.recipe), seed, context]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _settings(variant: Variant, size: tuple[int, int] | None) -> Settings:
    if variant.detector == peers.PATCHCORE:
        return Settings(variant.detector, variant.encoder, size or PRESETS[variant.preset].size)
    if size is not None:
        return Settings(variant.detector, variant.encoder, size, options=variant.options)
    return replace(PRESETS[variant.preset], encoder=variant.encoder, options=variant.options)


class _FitProgress(Progress):
    """Counts the steps of a fit, reports them as text, and lists the files that were left out."""

    def __init__(self, title: str, on_progress: Callable[[str], None]) -> None:
        self.title, self.on_progress = title, on_progress
        self.steps = 0
        self.left_out: list[str] = []

    def unreadable(self, error: ImageError) -> None:
        self.left_out.append(f"left out of training: {error}")

    def step(self, step: int, steps: int, loss: float, images: int) -> None:
        self.steps += 1
        self.on_progress(f"{self.title}: step {step} of {steps}, loss {loss:.4f}")


def _record(
    variant: Variant, data: Dataset, options: ComparisonOptions, seed: int, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """A cell: metrics in 0 … 1 (None where undefined), their mean and those of each class, and times in seconds."""
    title = f"{variant.name}, seed {seed}"
    settings = _settings(variant, options.size)
    recipe = options.budget.limited(replace(variant.recipe, seed=seed))
    progress = _FitProgress(title, on_progress)
    start = time.perf_counter()
    record = _fitted(variant, data, settings, recipe, options, progress)
    fit_seconds = time.perf_counter() - start
    on_progress(f"{title}: {len(data.test)} test images")
    evaluated = evaluation.evaluate(TorchScorer(record), data.test)
    if evaluated.unfinished:
        raise KeyboardInterrupt
    return {
        "variant": variant.name,
        "settings": asdict(settings),
        "recipe": as_dict(recipe),
        "seed": seed,
        "mean": evaluated.mean,
        "classes": {metrics.name: metrics.metrics for metrics in evaluated.classes},
        "fit_seconds": fit_seconds,
        "steps": progress.steps,
        **_speed(record),
        "file_bytes": _file_bytes(record),
        "notes": [*progress.left_out, *notes(evaluated)],
    }


def _fitted(
    variant: Variant, data: Dataset, settings: Settings, recipe: Recipe, options: ComparisonOptions, progress: Progress
) -> ModelRecord:
    paths, classes = [sample.path for sample in data.train], [sample.class_name for sample in data.train]
    if variant.detector == peers.PATCHCORE:
        weights = None if options.encoder_weights is None else read_state_dict(options.encoder_weights)
        return peers.fit(paths, classes, peers.PeerOptions(settings, recipe.seed, options.device, weights), progress)
    files = [ImageFile(path, path, name) for path, name in zip(paths, classes, strict=True)]
    run = RunOptions(options.device, encoder_weights=options.encoder_weights)
    return training.fit(GoodFiles(files, classes), settings, recipe, run, progress)


def _speed(record: ModelRecord) -> dict[str, float]:
    """Times of encoder, detector and anomaly map for the size of the first class: of one image the median and the 99th
    percentile, and the images a second of a batch."""
    network = inference_network(record.network, {}, "torch")
    size = network.input_size(next(iter(record.products.values())).size)
    alone, batch = (_times(scoring_pass(maps_of(network, record), size, n, network.device)) for n in (1, BATCH))
    return {
        "score_seconds": float(np.median(alone)),
        "score_seconds_p99": float(np.percentile(alone, 99)),
        "images_a_second": BATCH / float(np.median(batch)),
    }


def _times(score_images: Callable[[], object]) -> list[float]:
    """Seconds of passes, after a first one that is not counted."""
    score_images()
    times: list[float] = []
    while len(times) < MIN_PASSES or (len(times) < MAX_PASSES and sum(times) < MAX_PASS_SECONDS):
        start = time.perf_counter()
        score_images()
        times.append(time.perf_counter() - start)
    return times


def _file_bytes(record: ModelRecord) -> int | None:
    """The size of the model file; None of a detector of another library, which has none of ours."""
    if record.network.settings.detector not in DETECTORS:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        store.save(record, path)
        return path.stat().st_size
