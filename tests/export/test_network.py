"""The network that is exported, still in PyTorch, beside the model that it was made from."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data import images, loading
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input
from mambaad_cli.data.roi import MaskFolder, parse
from mambaad_cli.export import resizing
from mambaad_cli.export.judgement import GraphOutputs, Verdicts, largest_printed_as
from mambaad_cli.export.network import WholeModel, names_of
from mambaad_cli.inspection.calibration import exceeds, six_digits
from mambaad_cli.inspection.exported_scorer import VERDICTS
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Learnt, p_value_of, threshold_of
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.known_defects import KnownDefects
from mambaad_cli.model.memory import Memory
from mambaad_cli.model.settings import Settings
from tests.conftest import TINY, picture, record_of, with_scores
from tests.export.conftest import WHOLE, Fit, scorer_of

DECODER: dict[str, Any] = {"evidence": "decoder", "distance": "published"}
KINDS: dict[str, tuple[Settings, dict[str, Any]]] = {
    "whole": (WHOLE, {"memory_size": 700}),
    "one look": (replace(WHOLE, looks=1), {"memory_size": 700}),
    "decoder": (
        Settings("mambaad", "test_resnet", (64, 48), letterbox=True, options=TINY | {"order": "hilbert"}),
        {"evidence": "decoder"},
    ),
    "published": (Settings("mambaad", "test_resnet", (64, 64), options=TINY | {"directions": 8}), DECODER),
    "memory": (
        Settings("memory", "test_resnet", (64, 64), local_contrast=0.4),
        {"evidence": "memory", "distance": "published"},
    ),
    "rd4ad": (Settings("rd4ad", "test_resnet", (72, 88)), DECODER),
    "uniad": (Settings("uniad", "test_resnet", (96, 80)), DECODER),
}


REGIONS: dict[str, tuple[Settings, dict[str, Any]]] = {
    "whole": KINDS["whole"],
    "memory alone": (replace(WHOLE, looks=1), {"memory_size": 300, "evidence": "memory", "distance": "published"}),
    "decoder alone": (replace(WHOLE, detail=1.0), {"evidence": "decoder"}),
    "published": KINDS["published"],
}


def graph_outputs(whole: WholeModel, inputs: Sequence[Input]) -> GraphOutputs:
    """What the network says of images that were prepared for it, of no product that is told."""
    image = torch.stack([each.pixels for each in inputs]).permute(0, 2, 3, 1) * 255
    boxes = torch.tensor([each.box for each in inputs]) if whole.takes_box else None
    regions = None
    if whole.takes_inside:
        regions = torch.stack([each.inside for each in inputs if each.inside is not None])
    told = torch.full((len(inputs),), -1) if whole.takes_told else None
    with torch.no_grad():
        return whole.eval()(image, told, boxes, regions)


def prepared(scorer: TorchScorer, files: Sequence[ImageFile]) -> list[Input]:
    only = next(iter(scorer.products)) if len(scorer.products) == 1 else ""  # as `predict` takes it for
    wanted = scorer.preparation.wanted(only)
    return [wanted.of_file(i, file.path)[0] for i, file in enumerate(files)]


def for_inference(scorer: TorchScorer) -> ModelRecord:
    """The record of the scorer with the encoder that it scores with."""
    assert scorer.network is not None
    return replace(scorer.record, network=scorer.network)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_says_what_the_model_says(kind: str, tiny_fit: Fit, photos: Path) -> None:
    settings, choices = KINDS[kind]
    scorer = scorer_of(tiny_fit(settings, **choices))
    files = images.find([photos])
    recognised = predict_untold(scorer, files)
    outputs = graph_outputs(WholeModel(for_inference(scorer)), prepared(scorer, files))
    assert outputs.score.tolist() == pytest.approx([each.score for each in recognised], rel=1e-4, abs=1e-5)
    names = [names_of(scorer.record)[i] if i >= 0 else "" for i in outputs.product.tolist()]
    assert names == [each.class_name for each in recognised]
    certainty = [math.nan if each.certainty is None else each.certainty for each in recognised]
    assert outputs.certainty.tolist() == pytest.approx(certainty, rel=1e-3, abs=1e-4, nan_ok=True)
    for expected, verdict, score in zip(recognised, outputs.verdict.tolist(), outputs.score.tolist(), strict=True):
        if expected.threshold is None or abs(score - expected.threshold) > 1e-4 * abs(expected.threshold):
            assert VERDICTS[verdict] == expected.verdict or expected.warning  # the graph does not judge the camera


@pytest.mark.parametrize("kind", ["whole", "one look"])
def test_known_defects_are_known_to_the_network(kind: str, tiny_fit: Fit, photos: Path) -> None:
    """Of one of two products; the other one has none."""
    settings, choices = KINDS[kind]
    plain = tiny_fit(settings, **choices)
    nut = plain.products["nut"]
    channels = len(nut.learnt.memories[0].mean)
    classifiers = tuple(torch.linspace(-1, 1, channels + 1) for _ in nut.learnt.memories)
    known = replace(nut, learnt=replace(nut.learnt, known=KnownDefects(classifiers, -1.0, 0.2)))
    scorer, files = scorer_of(plain.with_products(known)), images.find([photos])
    expected, before = predict_untold(scorer, files), predict_untold(scorer_of(plain), files)
    outputs = graph_outputs(WholeModel(for_inference(scorer)), prepared(scorer, files))
    assert outputs.score.tolist() == pytest.approx([each.score for each in expected], rel=1e-4, abs=1e-4)
    changed = {new.class_name for new, old in zip(expected, before, strict=True) if new.score != old.score}
    assert changed == {"nut"}


def predict_untold(scorer: TorchScorer, files: Sequence[ImageFile]) -> list[Prediction]:
    """Predictions of files that no folder tells the product of."""
    return FittedModel(scorer).predict([images.read(file.path) for file in files])


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("of_each_photo", [False, True])
def test_a_region_enters_the_network_where_it_enters_the_model(
    of_each_photo: bool, kind: str, tiny_fit: Fit, masks: MaskFolder, tmp_path: Path
) -> None:
    """Outside, every patch is unusual: were it not cold before maps are smoothed, it would glow over the border."""
    settings, choices = REGIONS[kind]
    if of_each_photo:
        scorer = scorer_of(tiny_fit(settings, masks=masks, only="nut", **choices), masks)
    else:
        scorer = scorer_of(tiny_fit(settings, inside=(parse("23%,20%,41%,55%"),), only="nut", **choices))
    for i in range(4):  # new photos: of those that are remembered distances are nearly zero, which rounding moves most
        images.write(tmp_path / f"{i}.png", picture(200 + i, 90, 96))
    files = images.find([tmp_path])
    expected = list(predict(scorer, files, PredictOptions(maps=True)))
    outputs = graph_outputs(WholeModel(for_inference(scorer)), prepared(scorer, files))
    assert outputs.score.tolist() == pytest.approx([each.score for each in expected], rel=1e-4)
    for each, anomaly_map in zip(expected, outputs.map.numpy(), strict=True):
        assert each.anomaly_map is not None
        assert np.allclose(each.anomaly_map, anomaly_map, rtol=1e-3, atol=1e-3 * abs(each.anomaly_map).max())


@pytest.mark.parametrize("size", [(64, 48), (9, 7), (4, 12), (96, 64)])
def test_regions_are_scaled_as_everywhere_else(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(20, 96, 64, generator=generator) > torch.linspace(0, 1, 20)[:, None, None]
    inside[:, 40:] = False
    assert torch.equal(resizing.at_size(inside, size), loading.at_size(inside, size))


def test_one_product_alone_is_judged_as_if_its_class_were_given(tiny_model: FittedModel, photos: Path) -> None:
    files = images.find([photos])
    expected = list(predict(tiny_model.scorer, files, PredictOptions("bolt")))
    whole = WholeModel(record_of(tiny_model), "bolt").eval()
    image = torch.stack([images.resize(images.read(file.path), (64, 64)) for file in files]).permute(0, 2, 3, 1) * 255
    with torch.no_grad():
        outputs = whole(image)
    assert outputs.score.tolist() == pytest.approx([each.score for each in expected], rel=1e-4)
    assert outputs.threshold.tolist() == [4.0] * 12
    assert outputs.product.tolist() == [0] * 12
    assert outputs.certainty.isnan().all()


def test_products_of_which_different_things_are_known_share_no_graph(tiny_model: FittedModel) -> None:
    record = record_of(tiny_model)
    learnt = Learnt(memories=(Memory(*[torch.ones(1, 1)] * 5),))
    with pytest.raises(MambaADError, match="export each with --class"):
        WholeModel(record.with_products(replace(record.products["nut"], learnt=learnt)))


# ---- scores to verdicts ----


def judge(model: FittedModel, scores: list[float], product: list[int]) -> GraphOutputs:
    maps = torch.tensor(scores)[:, None, None].expand(-1, 2, 2)
    places = torch.tensor(product)
    verdicts = Verdicts(model.products, ["nut", "bolt"])
    return verdicts(maps, None, places, torch.full((len(scores),), 0.5), places > -2)


@pytest.mark.parametrize("scores", [{}, {"bolt": [2.0, 4.0, 2.5]}])  # {}: as the fixture has them
def test_verdict_threshold_and_p_value_are_those_that_are_printed(
    scores: dict[str, list[float]], tiny_model: FittedModel
) -> None:
    model = with_scores(tiny_model, scores) if scores else tiny_model
    image_scores = [3.0, 3.000001, 3.00001, 2.5, 1.0, 9.0, -1.0]
    for number, name in enumerate(["nut", "bolt", ""]):
        outputs = judge(model, image_scores, [number if name else -1] * len(image_scores))
        threshold = threshold_of(model.products, name)
        assert threshold is not None
        as_float32 = [float(np.float32(score)) for score in image_scores]
        anomalous = [exceeds(score, threshold) for score in as_float32]
        assert [VERDICTS[i] == "anomalous" for i in outputs.verdict] == anomalous
        assert outputs.threshold.tolist() == [threshold] * len(image_scores)
        p_values = [p_value_of(model.products, name, score) for score in as_float32]
        assert outputs.p_value.tolist() == pytest.approx(p_values, rel=1e-6)


def test_scores_of_images_that_were_learnt_from_give_no_p_value(tiny_model: FittedModel) -> None:
    outputs = judge(with_scores(tiny_model, {"nut": [1.0], "bolt": [2.0]}, promising=False), [1.0, 9.0], [0, -1])
    assert [VERDICTS[i] for i in outputs.verdict] == ["good", "anomalous"]
    assert outputs.p_value.isnan().all()


def test_without_scores_the_verdict_is_uncalibrated(tiny_model: FittedModel) -> None:
    outputs = judge(with_scores(tiny_model, {}), [1.0, 9.0], [0, -1])
    assert [VERDICTS[i] for i in outputs.verdict] == ["uncalibrated"] * 2
    assert outputs.threshold.isnan().all()
    assert outputs.p_value.isnan().all()


def test_a_map_that_is_not_finite_is_an_error_and_an_unlike_image_is_unknown(tiny_model: FittedModel) -> None:
    outputs = judge(tiny_model, [math.nan, math.inf, 1.0], [0, 0, -2])
    assert [VERDICTS[i] for i in outputs.verdict] == ["error", "error", "unknown"]
    assert outputs.threshold.isnan().all()
    assert outputs.product.tolist()[2] == -1


@pytest.mark.parametrize("value", [3.0, -2.5, 1.23456789, 1e-7, 999999.5, 0.0])
def test_the_largest_float_that_is_printed_alike(value: float) -> None:
    largest = np.float32(largest_printed_as(value))
    assert six_digits(float(largest)) <= six_digits(value)
    assert six_digits(float(np.nextafter(largest, np.float32(np.inf)))) > six_digits(value)
