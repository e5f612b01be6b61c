"""python -m mambaad_cli.benchmark.known_defects: what known defects teach a model, by how many of them there are.

Of each class of a labelled dataset, some defects of the test set are taught to a fitted model (`--known 1,2,5,10`), as
`mambaad learn` does it, and the others are judged before and after. With `--kinds` the known ones are of two kinds, and
the others of kinds that are not known. Markdown on stdout.

Letters: h × w positions of a view, c channels.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.data import datasets
from mambaad_cli.data.datasets import Sample
from mambaad_cli.data.loading import within
from mambaad_cli.data.masks import read_mask
from mambaad_cli.inspection import store
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.judged_photos import mask_in_map
from mambaad_cli.inspection.lessons import KEPT, Lesson
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.teaching import taught
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.known_defects import hardest_patches, likenesses
from mambaad_cli.model.memory import fuse_looks

KINDS_KNOWN = 2  # with --kinds
ALLOWED = 0.97  # the share of good test images that a threshold from them passes: 3 % are rejected


class TestPhoto(NamedTuple):
    """A test photo, and all that is needed to judge it whatever is taught."""

    sample: Sample
    lesson: Lesson
    views: list[Tensor]  # patches (h, w, c) of each view, in half precision


class Outcome(NamedTuple):
    """How good images and defects that are not known are told apart."""

    auroc: float
    tpr: float  # found where 3 % of the good test images are rejected
    found: float  # at the product's own threshold
    rejected: float


@torch.inference_mode()
def photos_of(scorer: TorchScorer, samples: Sequence[Sample], name: str) -> Iterator[TestPhoto]:
    """The test photos of one class."""
    network, learnt = scorer.network or scorer.record.network, scorer.products[name].learnt
    wanted = scorer.preparation.wanted(name)
    for sample in samples:
        image = wanted.of_file(0, sample.path)[0]
        features = network.features(image.pixels[None])
        size = network.map_size((image.pixels.shape[1], image.pixels.shape[2]))
        anomaly_map = network.unusual_maps(features, size, learnt)[0]
        score = float(within(anomaly_map, image.box).max())
        has_mask = sample.anomalous and sample.mask is not None
        mask = mask_in_map(read_mask(sample, image.shape), image, size) if has_mask else None
        views = [view[0] for view in network.patches(features)]
        patches = hardest_patches(anomaly_map, views, KEPT, mask)
        lesson = Lesson(str(sample.path), str(sample.path), False, patches, score, sample.defect)
        yield TestPhoto(sample, lesson, [view.half() for view in views])


def judged(network: Network, product: Product, photos: Sequence[TestPhoto]) -> np.ndarray:
    """The score of each photo by what the product knows: (n,)."""
    known = product.learnt.known
    scores = np.array([photo.lesson.score for photo in photos])
    if known is None:
        return scores
    settings, size = network.settings, network.map_size(network.input_size(product.size))
    peaks = []
    for photo in photos:
        found = likenesses(known.classifiers, [view.float()[None] for view in photo.views])
        peaks.append(float(fuse_looks(found, size, settings.far_weight, settings.memory_sigma).max()))
    return np.asarray(scores + known.gain * np.clip(np.asarray(peaks) - known.centre, 0, None))


def outcome(product: Product, scores: np.ndarray, anomalous: np.ndarray) -> Outcome:
    """How the scores of photos tell defects from good ones."""
    from sklearn.metrics import roc_auc_score

    good, bad = scores[~anomalous], scores[anomalous]
    threshold = product.threshold
    assert threshold is not None
    found, rejected = (float(np.mean([exceeds(score, threshold) for score in some])) for some in (bad, good))
    return Outcome(float(roc_auc_score(anomalous, scores)), float(np.mean(bad > np.quantile(good, ALLOWED))),
                   found, rejected)  # fmt: skip


def compared(network: Network, product: Product, photos: Sequence[TestPhoto], known: Sequence[TestPhoto],
             unseen_kinds: bool) -> tuple[Outcome, Outcome, float]:  # fmt: skip
    """Before and after some defects are known, on the other photos; and the weight that they got."""
    taken, kinds = {id(photo) for photo in known}, {photo.sample.defect for photo in known}
    others = [
        photo for photo in photos if id(photo) not in taken and not (unseen_kinds and photo.sample.defect in kinds)
    ]
    anomalous = np.array([photo.sample.anomalous for photo in others])
    lectured = taught(product, [photo.lesson for photo in known], network.settings.far_weight)
    before = outcome(product, judged(network, product, others), anomalous)
    return before, outcome(lectured.product, judged(network, lectured.product, others), anomalous), lectured.weight


def drawn(photos: Sequence[TestPhoto], count: int, seed: int, kinds: bool) -> list[TestPhoto]:
    """`count` known defects at random; of two kinds where kinds count, or none where there are too few kinds."""
    rng = random.Random(seed)
    bad = [photo for photo in photos if photo.sample.anomalous]
    if kinds:
        names = sorted({photo.sample.defect for photo in bad})
        if len(names) <= KINDS_KNOWN:
            return []
        chosen = rng.sample(names, KINDS_KNOWN)
        bad = [photo for photo in bad if photo.sample.defect in chosen]
    return rng.sample(bad, min(count, len(bad)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print for each class and number of known defects what they change."""
    parser = argparse.ArgumentParser("python -m mambaad_cli.benchmark.known_defects", description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path, help="of any layout that `mambaad eval` reads")
    parser.add_argument("--known", default="5,10", help="numbers of known defects")
    parser.add_argument("--seeds", type=int, default=3, help="draws of known defects, of which the mean is given")
    parser.add_argument("--kinds", action="store_true", help="judge on kinds of defects that are not known")
    options = parser.parse_args(arguments)
    try:
        say_backend()
        scorer = TorchScorer(store.load(options.model), "auto").expecting(None)
        samples = [sample for sample in datasets.load(options.dataset) if sample.split == "test"]
        print("| class | known | weight | image AU-ROC | found at 3 % | found | rejected |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        means: dict[int, list[np.ndarray]] = {}
        for name, product in scorer.products.items():
            of_class = [one for one in samples if one.class_name == name]
            photos = list(photos_of(scorer, of_class, name))
            for count in map(int, options.known.split(",")):
                rows = []
                for seed in range(options.seeds):
                    known = drawn(photos, count, seed, options.kinds)
                    if known:  # none of a class that the dataset lacks
                        before, after, weight = compared(scorer.record.network, product, photos, known, options.kinds)
                        rows.append([*before, *after, weight])
                if rows:
                    means.setdefault(count, []).append(np.mean(rows, 0))
                    print(_row(name, count, means[count][-1]), flush=True)
        for count, results in means.items():
            print(_row("mean", count, np.mean(results, 0)))
    except MambaADError as error:
        parser.exit(1, f"mambaad: {error}\n")


def _row(name: str, count: int, values: np.ndarray) -> str:
    cells = [f"{100 * before:.1f} → {100 * after:.1f}" for before, after in zip(values[:4], values[4:8], strict=True)]
    return f"| {name} | {count} | {values[8]:.2f} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
