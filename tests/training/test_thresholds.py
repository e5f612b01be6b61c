"""What a threshold promises is kept on new good images: many small sets of toy features, whose truth is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.inspection import recognition
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Product
from mambaad_cli.training import trial
from mambaad_cli.training.describe_product import Trained, describe_product
from mambaad_cli.training.features import Features, Group, Seen
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.loop import TrainingLoop
from mambaad_cli.training.memories import remember
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import RunOptions
from mambaad_cli.training.splits import folds_of
from mambaad_cli.training.trial import Decoder, Trial
from tests.conftest import picture, record_of, tiny_network
from tests.training.conftest import goods_of, job_of, judged, promising, scores_of, tiny_recipe

SIZE = (16, 16)
SETS = 60  # small sets of good images
FRESH = 40  # new good images for each


def toy_features(count: int, generator: torch.Generator) -> list[Tensor]:
    """Of the two stages that a memory compares, (n, h, w, c) each: good images differ in every patch alike."""
    return [torch.randn(count, side, side, channels, generator=generator) for side, channels in ((6, 4), (3, 4))]


def described(job: Job, stages: list[Tensor], digests: Sequence[bytes] = ()) -> Product:
    """A product of images with these features, as a fit describes it."""
    count = len(stages[0])
    seen = [Seen(digest=digest) for digest in digests] or [Seen()] * count
    features = Features([Group(stages, list(range(count)), [1] * count)], seen)
    good = GoodImages(features, ["nut"] * count, list(range(1, count)), [0], lambda i: None)
    return describe_product(job, good, "nut", remember(job, good, range(count)), [Trained(job.network, good.train)])


@pytest.mark.parametrize(("count", "fewest"), [(10, 0.4), (20, 0.4)])
def test_new_good_images_exceed_a_threshold_about_as_often_as_it_says(count: int, fewest: float, toy_job: Job) -> None:
    """The highest of n scores: one of n + 1 good images exceeds it, or somewhat fewer.

    Scores err on the safe side: what is expected at a position comes from one image less, and from FEW_IMAGES on the
    memory that lacks an image's patches was chosen beside them.
    """
    generator = torch.Generator().manual_seed(5)
    exceeding = 0
    for _ in range(SETS):
        product = described(toy_job, toy_features(count, generator))
        fresh = [stage.permute(0, 3, 1, 2) for stage in toy_features(FRESH, generator)]
        scores = toy_job.network.anomaly_maps(fresh, SIZE, product.learnt).flatten(1).amax(1)
        exceeding += int((scores > max(product.scores)).sum())
    promised = 1 / (count + 1)
    deviation = (promised * (1 - promised) / (count + 2)) ** 0.5  # of Beta(1, n), the share above the highest of n
    error = (deviation**2 / SETS + promised / (SETS * FRESH)) ** 0.5
    assert fewest * promised < exceeding / (SETS * FRESH) < promised + 3 * error


@pytest.fixture
def toy_job() -> Job:
    network = tiny_network(detector="memory", options={}, size=SIZE)
    recipe = tiny_recipe(evidence="memory", memory_size=60)
    return Job(network, {"nut": Product("nut", SIZE)}, recipe, RunOptions(), Progress())


# ---- copies of a photo ----


@pytest.mark.parametrize("count", [12, 20])
def test_a_photo_is_not_compared_with_its_copies(toy_job: Job, count: int) -> None:
    """A burst of six copies would be known in each comparison, and look more usual than new photos: it counts once."""
    job = toy_job.by(replace(toy_job.recipe, memory_size=2000))
    stages = toy_features(count, torch.Generator().manual_seed(1))
    for stage in stages:
        stage[1:6] = stage[0]
    digests = [*([b"burst"] * 6), *(bytes([i]) for i in range(6, count))]
    scores = described(job, stages, digests).scores
    assert len(scores) == count - 5
    assert scores[0] > 0.6 * min(scores[1:])
    unaware = described(job, stages).scores
    assert min(unaware[:6]) < 0.7 * min(unaware[6:])


def test_a_product_of_one_photo_and_its_copies_has_no_threshold(toy_job: Job) -> None:
    stages = [stage[:1].expand(6, -1, -1, -1).clone() for stage in toy_features(6, torch.Generator().manual_seed(2))]
    product = described(toy_job, stages, [b"a"] * 6)
    assert product.calibration is None
    assert product.learnt.memories


@pytest.mark.parametrize("evidence", ["decoder", "memory"])
def test_copies_are_all_learnt_from_or_all_held_out(
    run: Callable[..., ModelRecord], tmp_path: Path, evidence: str
) -> None:
    for i in range(10):
        images.write(tmp_path / "twice" / f"{i}.png", picture(i // 2))
    model = run(images.find([tmp_path / "twice"]), evidence=evidence)
    assert promising(model) == {"part"}
    assert len(scores_of(model)["part"]) == (1 if evidence == "decoder" else 5)


def test_no_fold_learns_from_copies_of_the_photos_that_it_scores(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        images.write(tmp_path / "twice" / f"{i}.png", picture(i // 2))
    files = images.find([tmp_path / "twice"])
    learnt: list[set[str]] = []
    real = TrainingLoop.__init__

    def start(self: TrainingLoop, *args: Any) -> None:
        learnt.append({str(int(files[i].path.stem) // 2) for i in args[2]})
        real(self, *args)

    monkeypatch.setattr(TrainingLoop, "__init__", start)
    run(files, folds=3)
    parts = folds_of(["part"] * 12, 3, 42)
    for fold, part in zip(learnt[1:], parts, strict=True):
        assert fold.isdisjoint(str(int(files[i].path.stem) // 2) for i in part)


# ---- the rest of what is measured ----


def test_dropped_images_tell_nothing_of_what_their_product_looks_like(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, first in (("nut", 0), ("bolt", 100)):
        for i in range(10):
            images.write(tmp_path / "in" / name / f"{i}.png", picture(first + i % 3) // 2 + i)
    odd = 255 - picture(1) // 3
    odd[30:60, 20:70] = (255, 0, 255)
    images.write(tmp_path / "in" / "nut" / "4.png", odd)
    learnt: list[int] = []
    real = recognition.learn

    def learn(signatures: Tensor, names: Sequence[str], held_out: Sequence[int]) -> Any:
        learnt.append(len(names))
        return real(signatures, names, held_out)

    monkeypatch.setattr(recognition, "learn", learn)
    files = images.find([tmp_path / "in"])
    run(files, evidence="both", drop_suspects=1)
    assert learnt == [19]


def test_a_memory_that_only_told_suspects_is_no_evidence(run: Callable[..., ModelRecord], tmp_path: Path) -> None:
    for i in range(10):
        images.write(tmp_path / "part" / f"{i}.png", picture(i % 3) // 2 + i)
    files = images.find([tmp_path / "part"])
    model = run(files, evidence="decoder", drop_suspects=1)
    assert model.products["part"].learnt.memories == ()
    scored = [row.score for row in judged(model, files)]
    for score in scores_of(model)["part"]:
        assert any(found == pytest.approx(score, abs=1e-4) for found in scored)  # batches are split over threads


def test_simulated_defects_take_no_more_pictures_than_they_need() -> None:
    """A product with a thousand held-out photos does not have all of them read again, and kept."""
    read: list[int] = []

    def pixels(i: int) -> Tensor:
        read.append(i)
        return torch.rand(3, 32, 32)

    good = GoodImages(Features([], [Seen()] * 1000), ["nut"] * 1000, [], list(range(1000)), pixels)
    drawn = trial.simulated_defects(good, good.held_out, 7, seed=1)
    assert len(drawn) == 7
    assert len(read) <= 7 + 1


@pytest.mark.parametrize("evidence", ["both", "decoder"])
def test_maps_of_no_images_lie_where_the_others_do(tiny_model: FittedModel, evidence: str) -> None:
    """On a GPU as well: with folds, and of fewer than five images, none is held out that defects are drawn into."""
    job = job_of(record_of(tiny_model), goods_of([]), tiny_recipe(evidence=evidence), device="meta")
    good = GoodImages(Features([], []), [], [], [], lambda i: None)
    empty = Trial(job, good, job.products["nut"], [Decoder(job.network, ())], None, [], [])
    maps, _ = empty.good_maps()
    assert maps is not None
    assert (maps.device.type, tuple(maps.shape)) == ("meta", (0, 64, 64))
    assert empty.defects([], None) == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("choices", [{"folds": 2}, {"two_looks": True}, {"evidence": "memory"}])
def test_a_fit_on_a_gpu_describes_products_of_which_nothing_is_held_out(
    run: Callable[..., ModelRecord], goods: Path, choices: dict[str, Any]
) -> None:
    files = [file for file in images.find([goods]) if file.group == "nut" or int(file.path.stem) < 4]
    model = run(files, device="cuda", **{"evidence": "both"} | choices)
    assert set(scores_of(model)) == {"bolt", "nut"}
