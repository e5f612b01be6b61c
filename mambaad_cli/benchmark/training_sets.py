"""python -m mambaad_cli.benchmark.training_sets: how accuracy depends on the good images that a model learns from.

For each class of a labelled dataset, one model each: from few good images (`--few 5,10,20,40`), or from all of them
with some per cent of defects of the test set hidden among them (`--mixed 2,5,10`), with all of them learnt and with
`--drop-suspects auto`. The hidden defects are not tested on. Markdown on stdout.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.evaluation import Proportion, evaluate
from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.data import datasets
from mambaad_cli.data.datasets import Sample
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.training.fit import fit
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions, preset


class TrainingSet(NamedTuple):
    """The samples that a model learns from and those that it is tested on."""

    label: str
    train: list[Sample]
    test: list[Sample]
    drop: bool = False  # leave out suspects


class TrainingSetResult(NamedTuple):
    """The results of the model of a training set."""

    product: str
    label: str
    images: int  # learnt from and held out
    left_out: str  # suspects, and how many of them are hidden defects
    auroc: float
    misses: Proportion  # defects that are not above the threshold
    rejected: Proportion  # good test images above it


def few(good: Sequence[Sample], test: Sequence[Sample], counts: Sequence[int], seed: int) -> Iterator[TrainingSet]:
    """Sets of the given numbers of good images, chosen at random, and the set of all of them."""
    shuffled = random.Random(seed).sample(list(good), len(good))
    for count in counts:
        if count < len(good):
            yield TrainingSet(f"{count} images", shuffled[:count], list(test))
    yield TrainingSet("all images", list(good), list(test))


def mixed(good: Sequence[Sample], test: Sequence[Sample], shares: Sequence[float], seed: int) -> Iterator[TrainingSet]:
    """All good images with the given shares of defects among them in per cent, with and without dropping suspects."""
    defects = [sample for sample in test if sample.anomalous]
    most = hidden_among(len(good), max(shares, default=0.0))
    shuffled = random.Random(seed).sample(defects, len(defects))
    rest = [sample for sample in test if sample not in set(shuffled[:most])]  # the same test images for all rows
    for share in (0.0, *shares):
        hidden = shuffled[: hidden_among(len(good), share)]
        for drop in (False, True):
            label = f"{share:g} % defects" + (", suspects dropped" if drop else "")
            yield TrainingSet(label, [*good, *hidden], rest, drop)


def hidden_among(good: int, share: float) -> int:
    """How many defects are `share` per cent of a set that holds them and `good` good images.

    >>> hidden_among(95, 5), hidden_among(27, 2)
    (5, 1)
    """
    return round(good * share / (100 - share))


class _Dropped(Progress):
    """Remembers which images were left out."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def suspects(self, odd_images: Sequence[tuple[ImageFile, float, tuple[float, float]]], dropped: int) -> None:
        self.paths = [file.path for file, _, _ in odd_images[:dropped]]


def measured(product: str, training_set: TrainingSet, recipe: Recipe, detector: str) -> TrainingSetResult:
    """Fit a model on the set and evaluate it."""
    left_out = _Dropped()
    files = [ImageFile(sample.path, sample.path, product) for sample in training_set.train]
    recipe = replace(recipe, drop_suspects="auto" if training_set.drop else 0, keep_examples=False)
    record = fit(GoodFiles(files, [product] * len(files)), preset(detector)[0], recipe, RunOptions(), left_out)
    metrics = evaluate(
        TorchScorer(record), [sample._replace(class_name=product) for sample in training_set.test]
    ).classes[0]
    hidden = {sample.path for sample in training_set.train if sample.anomalous}
    dropped = len(left_out.paths)
    note = f"{dropped}, {len(hidden & set(left_out.paths))}/{len(hidden)} hidden" if training_set.drop else ""
    auroc = metrics.metrics["image_auroc"]
    if auroc is None or metrics.misses is None or metrics.false_rejects is None:
        raise MambaADError(f"{product} has not both good and anomalous test images")
    learnt = len(files) - dropped
    return TrainingSetResult(product, training_set.label, learnt, note, auroc, metrics.misses, metrics.false_rejects)


def to_markdown(rows: Sequence[TrainingSetResult]) -> str:
    """A table of all rows."""
    head = "| product | learnt from | images | left out | image AU-ROC | missed | rejected |"
    rule = "|---|---|---:|---:|---:|---:|---:|"
    lines = [
        f"| {row.product} | {row.label} | {row.images} | {row.left_out} | {100 * row.auroc:.1f} "
        f"| {row.misses.count}/{row.misses.total} | {row.rejected.count}/{row.rejected.total} |"
        for row in rows
    ]
    return "\n".join([head, rule, *lines])


def numbers(text: str) -> list[float]:
    """
    >>> numbers("5,10")
    [5.0, 10.0]
    """
    return [float(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, help="labelled datasets, as for mambaad eval")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--few", type=numbers, help="numbers of good images")
    kind.add_argument("--mixed", type=numbers, help="per cent of defects among the good images")
    parser.add_argument("--detector", choices=("small", "memory"), default="memory")
    parser.add_argument("--max-minutes", type=float, help="of each fit of small")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    say_backend()
    recipe = replace(preset(options.detector)[1], seed=options.seed, max_minutes=options.max_minutes)
    sets: Callable[..., Iterator[TrainingSet]] = few if options.few else mixed
    rows: list[TrainingSetResult] = []
    for root in options.datasets:
        samples = datasets.load(root, None)
        for product in dict.fromkeys(sample.class_name for sample in samples):
            of_product = [sample for sample in samples if sample.class_name == product]
            test = [sample for sample in of_product if sample.split == "test"]
            counts = [round(count) for count in options.few] if options.few else options.mixed
            for training_set in sets(datasets.training_images(of_product), test, counts, options.seed):
                rows.append(measured(product, training_set, recipe, options.detector))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
