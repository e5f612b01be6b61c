"""The scores behind a threshold are those that `score` gives, whatever counts of a photo."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.roi import MaskFolder, parse
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.anomaly_map import Residual
from mambaad_cli.training import describe_product, memories
from mambaad_cli.training import fit as fit_module
from mambaad_cli.training.describe_product import Trained
from mambaad_cli.training.features import Features, Group, Seen, features_of_files
from mambaad_cli.training.good import GoodImages
from mambaad_cli.training.job import Job
from mambaad_cli.training.memories import Compared, Remembered
from mambaad_cli.training.splits import folds_of, split
from tests.conftest import picture, record_of
from tests.training.conftest import (
    counted,
    goods_of,
    job_of,
    judged,
    scores_of,
)

ROUNDING = 1e-4
"""Of scores near 1 that differ by how a batch is split over threads: features of an untrained decoder nearly cancel."""


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize(
    ("evidence", "two_looks"),
    [("decoder", False), ("memory", False), ("memory", True), ("both", False), ("both", True)],
)
@pytest.mark.parametrize("counting", ["all", "region", "masks"])
def test_the_scores_behind_the_threshold_are_those_that_score_gives(
    run: Callable[..., ModelRecord],
    goods: Path,
    letterbox: bool,
    evidence: str,
    two_looks: bool,
    counting: str,
    as_if_known: None,
) -> None:
    """But for the image's own patches, which are left out of the memory behind the threshold."""
    regions = counted(counting, goods)
    model = run(letterbox=letterbox, evidence=evidence, two_looks=two_looks, **regions)
    assert_scored_alike(model, goods, 1 if evidence == "decoder" else 6, regions.get("masks"))


@pytest.mark.parametrize("counting", ["all", "region"])
@pytest.mark.parametrize("evidence", ["memory", "both"])
def test_a_turned_product_is_scored_as_its_threshold_was_measured(
    run: Callable[..., ModelRecord],
    goods: Path,
    evidence: str,
    counting: str,
    as_if_known: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_module, "turned_classes", lambda *_: frozenset({"nut"}))
    model = run(evidence=evidence, two_looks=True, **counted(counting, goods))
    assert {name: product.turned for name, product in model.products.items()} == {"bolt": False, "nut": True}
    assert_scored_alike(model, goods, 6)


@pytest.mark.parametrize("counting", ["all", "region"])
@pytest.mark.parametrize("evidence", ["decoder", "both"])
def test_with_folds_the_scores_are_those_of_score_but_for_the_decoder(
    run: Callable[..., ModelRecord],
    goods: Path,
    evidence: str,
    counting: str,
    as_if_known: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here each fold has the decoder of the model itself: one fusion, and one function, for all images."""

    def folds(job: Job, good: GoodImages, _: object) -> list[Trained]:
        parts = folds_of(good.names, job.recipe.folds, job.recipe.seed)
        return [Trained(job.network, good.train, frozenset(part)) for part in parts]

    monkeypatch.setattr(fit_module, "_folds", folds)
    model = run(evidence=evidence, folds=3, **counted(counting, goods))
    assert_scored_alike(model, goods, 6)


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("evidence", ["memory", "both"])
def test_a_blank_surround_outside_the_region_lifts_no_score_above_those_behind_the_threshold(
    run: Callable[..., ModelRecord], tmp_path: Path, evidence: str, letterbox: bool, as_if_known: None
) -> None:
    for i in range(12):
        surrounded = np.full((80, 96, 3), 255, np.uint8)
        surrounded[20:60, 24:72] = picture(i)[20:60, 24:72]
        images.write(tmp_path / "blank" / f"{i}.png", surrounded)
    files = images.find([tmp_path / "blank"])
    model = run(files, letterbox=letterbox, evidence=evidence, two_looks=True, inside=(parse("24,20,48,40"),))
    known, found = scores_of(model)["part"], [row.score or 0.0 for row in judged(model, files)]
    assert sorted(known) == pytest.approx(sorted(found), rel=1e-5, abs=1e-6)


@pytest.fixture
def as_if_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images behind the threshold are compared with their own patches too, as `score` compares them."""
    monkeypatch.setattr(Remembered, "without", lambda remembered, *_: remembered.memory)
    monkeypatch.setattr(Compared, "expected_without", lambda compared, _: compared.expected)
    monkeypatch.setattr(memories, "FEW_IMAGES", 0)


def assert_scored_alike(model: ModelRecord, goods: Path, count: int, masks: MaskFolder | None = None) -> None:
    scored = [(row.class_name, row.score or 0.0) for row in judged(model, images.find([goods]), masks)]
    for name, scores in scores_of(model).items():
        assert len(scores) == count
        own = [score for product, score in scored if product == name]
        alike = [min(own, key=lambda found, known=score: abs(found - known)) for score in scores]
        assert sorted(scores) == pytest.approx(sorted(alike), rel=ROUNDING, abs=ROUNDING)
        assert len(scores) < len(own) or sorted(alike) == pytest.approx(sorted(own), rel=ROUNDING, abs=ROUNDING)


def test_padding_does_not_set_the_threshold(run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 80 × 96 pixels fill rows 5 … 57 of 64."""
    padded = torch.full((64, 64), 9.0)
    padded[5:58] = 1.0
    monkeypatch.setattr(
        Network, "decoder_maps", lambda self, residuals, *_: padded.expand(len(residuals[0][0]), -1, -1)
    )
    assert scores_of(run(letterbox=True, epochs=1)) == {"bolt": [1.0], "nut": [1.0]}


def test_each_class_is_normal_in_its_own_way(
    run: Callable[..., ModelRecord], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe_product, "STATISTICS_IMAGES", 5)  # all that are learnt, and no nudged views
    model = run()
    there = goods_of(images.find([goods]))
    features, _ = features_of_files(job_of(model, there), there.files, there.classes)
    train, _ = split(there.classes, 42)
    bolts = torch.tensor([i for i in train if i < 6])
    with torch.inference_mode():
        residuals = model.network.residuals(features[bolts])
    known = {name: product.learnt.statistics for name, product in model.products.items()}
    for residual, normal in zip(residuals, known["bolt"], strict=True):
        torch.testing.assert_close(normal.mean, residual.difference.mean((0, 1, 2)))
    assert not torch.allclose(known["bolt"][0].mean, known["nut"][0].mean)


@pytest.mark.parametrize(("kept_bytes", "passes"), [(0, 3), (10**6, 1)])
@pytest.mark.parametrize(("most", "shown", "nudged"), [(8, 3, 2), (4, 3, 1), (3, 3, 0), (2, 2, 0)])
def test_nudged_views_tell_what_is_normal_where_images_are_few(
    tiny_model: FittedModel,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    shown: int,
    nudged: int,
    kept_bytes: int,
    passes: int,
) -> None:
    sizes: list[int] = []

    def residuals(self: Network, stages: list[Tensor]) -> list[Residual]:
        sizes.append(len(stages[0]))
        return [Residual(*torch.randn(2, len(stages[0]), 4, 4, 2))]

    monkeypatch.setattr(describe_product, "STATISTICS_IMAGES", most)
    monkeypatch.setattr(describe_product, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(Network, "residuals", residuals)
    features = Features([Group([torch.randn(8, 4, 4, 2)], [0, 1, 2, 3], [1] * 4)], [Seen()] * 4, 2)
    gone = {2}  # meanwhile
    good = GoodImages(features, ["nut"] * 4, [0, 2, 3], [], lambda i: None if i in gone else torch.rand(3, 64, 64))
    job = job_of(record_of(tiny_model), goods_of([]))
    describe_product.statistics_of(job, job.network, good, good.train)
    assert sizes == passes * [shown, nudged][: 2 if nudged else 1]  # once, if there is room to keep the residuals


def test_an_image_is_measured_as_one_of_its_class(run: Callable[..., ModelRecord], goods: Path) -> None:
    scorer = TorchScorer(run())
    pictures = [images.read(goods / "nut" / f"{i}.png") for i in range(2)]

    def maps(*names: str) -> list[Tensor]:
        inputs = [scorer.preparation.of_picture(picture, "nut") for picture in pictures]
        return [judgement.anomaly_map for judgement in scorer.judge(inputs, names)]

    mixed, nuts, bolts = maps("nut", "bolt"), maps("nut", "nut"), maps("bolt", "bolt")
    torch.testing.assert_close(mixed, [nuts[0], bolts[1]], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(nuts[1], bolts[1])
