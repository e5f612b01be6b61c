"""The network that is exported, still in PyTorch, beside the model that it was made from."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli.data import images
from mambaad_cli.export.judgement import Judgement, largest_printed_as
from mambaad_cli.export.network import WholeModel, products
from mambaad_cli.inspection.calibration import exceeds, six_digits
from mambaad_cli.inspection.exported_model import VERDICTS
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import PredictOptions, predict, size_for
from mambaad_cli.model.settings import Settings
from tests.conftest import TINY
from tests.export.conftest import WHOLE

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


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_says_what_the_model_says(kind: str, tiny_fit: Callable[..., FittedModel], photos: Path) -> None:
    settings, choices = KINDS[kind]
    model = tiny_fit(settings, **choices)
    files = images.find([photos])
    named = [file._replace(path=file.path) for file in files]
    recognised = [one._replace() for one in model.predict([images.read(file.path) for file in named])]
    whole = WholeModel(model.for_inference(), settings.size).eval()
    wanted = model.wanted(lambda _, shape: size_for(model, "", shape))
    inputs = [wanted.of_file(0, file.path)[0] for file in files]
    image = torch.stack([one.pixels for one in inputs]).permute(0, 2, 3, 1) * 255
    box = torch.tensor([one.box for one in inputs]) if settings.letterbox else None
    with torch.no_grad():
        found = whole(image, torch.full((len(files),), -1), box)
    assert found.score.tolist() == pytest.approx([one.score for one in recognised], rel=1e-4, abs=1e-5)
    names = [products(model)[i] if i >= 0 else "" for i in found.product.tolist()]
    assert names == [one.class_name for one in recognised]
    certainty = [math.nan if one.certainty is None else one.certainty for one in recognised]
    assert found.certainty.tolist() == pytest.approx(certainty, rel=1e-3, abs=1e-4, nan_ok=True)
    for one, verdict, score in zip(recognised, found.verdict.tolist(), found.score.tolist(), strict=True):
        if one.threshold is None or abs(score - one.threshold) > 1e-4 * abs(one.threshold):
            assert VERDICTS[verdict] == one.verdict


def test_one_product_alone_is_judged_as_if_its_class_were_given(tiny_model: FittedModel, photos: Path) -> None:
    files = images.find([photos])
    expected = list(predict(tiny_model, files, PredictOptions("bolt")))
    whole = WholeModel(tiny_model, (64, 64), "bolt").eval()
    image = torch.stack([images.resize(images.read(file.path), (64, 64)) for file in files]).permute(0, 2, 3, 1) * 255
    with torch.no_grad():
        found = whole(image)
    assert found.score.tolist() == pytest.approx([one.score for one in expected], rel=1e-4)
    assert found.threshold.tolist() == [4.0] * 12
    assert found.product.tolist() == [0] * 12
    assert found.certainty.isnan().all()


# ---- scores to verdicts ----


def judge(model: FittedModel, scores: list[float], product: list[int]) -> Any:
    maps = torch.tensor(scores)[:, None, None].expand(-1, 2, 2)
    given = torch.tensor(product)
    return Judgement(model, ["nut", "bolt"])(maps, None, given, torch.full((len(scores),), 0.5), given > -2)


def test_verdict_threshold_and_p_value_are_those_that_are_printed(tiny_model: FittedModel) -> None:
    scores = [3.0, 3.000001, 3.00001, 2.5, 1.0, 9.0, -1.0]
    for number, name in enumerate(["nut", "bolt", ""]):
        found = judge(tiny_model, scores, [number if name else -1] * len(scores))
        threshold = tiny_model.threshold(name)
        assert threshold is not None
        as_float32 = [float(np.float32(score)) for score in scores]
        assert [VERDICTS[i] == "anomalous" for i in found.verdict] == [exceeds(one, threshold) for one in as_float32]
        assert found.threshold.tolist() == [threshold] * len(scores)
        assert found.p_value.tolist() == pytest.approx([tiny_model.p_value(name, one) for one in as_float32], rel=1e-6)


def test_without_scores_the_verdict_is_uncalibrated(tiny_model: FittedModel) -> None:
    found = judge(replace(tiny_model, scores={}, held_out=set()), [1.0, 9.0], [0, -1])
    assert [VERDICTS[i] for i in found.verdict] == ["uncalibrated"] * 2
    assert found.threshold.isnan().all()
    assert found.p_value.isnan().all()


def test_a_map_that_is_not_finite_is_an_error_and_an_unlike_image_is_unknown(tiny_model: FittedModel) -> None:
    found = judge(tiny_model, [math.nan, math.inf, 1.0], [0, 0, -2])
    assert [VERDICTS[i] for i in found.verdict] == ["error", "error", "unknown"]
    assert found.threshold.isnan().all()
    assert found.product.tolist()[2] == -1


@pytest.mark.parametrize("value", [3.0, -2.5, 1.23456789, 1e-7, 999999.5, 0.0])
def test_the_largest_float_that_is_printed_alike(value: float) -> None:
    found = np.float32(largest_printed_as(value))
    assert six_digits(float(found)) <= six_digits(value)
    assert six_digits(float(np.nextafter(found, np.float32(np.inf)))) > six_digits(value)
