"""Model files of mambaad 0.1 and 0.2, written here as those versions wrote them."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import roi
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import Example, ModelRecord
from mambaad_cli.inspection.product import Conditions, Learnt
from mambaad_cli.inspection.recognition import MARGIN
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.quantised import stored
from tests.inspection.conftest import DETAILED, TILED, photos_of, prepared, two_products

LIMIT = 31.5  # squared distance, of the recogniser


def networks_tensors(record: ModelRecord) -> dict[str, Tensor]:
    network = record.network
    parts = {"encoder": network.encoder, "detector": network.detector}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def memory_tensors(prefix: str, memory: Any, in_half: bool = False) -> dict[str, Tensor]:
    """Patches as 8-bit integers with their steps, or, in the first files of 0.2, as half-precision floats."""
    parts = memory._asdict()
    if in_half:
        parts["patches"] = memory.patches.half()
    else:
        parts["patches"], parts["steps"] = stored(memory.patches)
    return {f"{prefix}.{part}": tensor for part, tensor in parts.items()}


def format_2(record: ModelRecord, in_half: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a record as mambaad 0.2 wrote them: one table by product for each fact."""
    products, network = record.products, record.network
    measured = {name: product.calibration for name, product in products.items() if product.calibration}
    rois = {name: product.region for name, product in products.items() if product.region is not None}
    with_tiles = {name: product.learnt.tiles for name, product in products.items() if product.learnt.tiles}
    facts: dict[str, Any] = {
        "format": 2,
        "mambaad": "0.2.0",
        "settings": dataclasses.asdict(network.settings),
        "recipe": dict(record.recipe),
        "scores": {name: list(calibration.scores) for name, calibration in measured.items()},
        "held_out": sorted(name for name, calibration in measured.items() if calibration.promising),
        "trained_on": {name: product.images for name, product in products.items()},
        "max_false_reject": 0.05,
        "sizes": {name: network.input_size(product.size) for name, product in products.items()},
        "photos": {name: product.photo_shape for name, product in products.items() if product.photo_shape},
        "simulated": {name: [tuple(defect) for defect in each.simulated] for name, each in measured.items()},
        "photo_statistics": {name: [list(photo) for photo in each.photos] for name, each in measured.items()},
        "statistics": {name: len(product.learnt.statistics) for name, product in products.items()},
        "memories": [name for name, product in products.items() if product.learnt.memories],
        "fusion": {name: product.learnt.fusion for name, product in products.items() if product.learnt.fusion},
        "tiles": {name: tiles.fusion for name, tiles in with_tiles.items()},
        "rois": list(rois),
        "own_masks": any(product.own_masks for product in products.values()),
        "examples": [(example.class_name, example.held_out, example.box) for example in record.examples],
    }
    tensors = networks_tensors(record)
    for i, product in enumerate(products.values()):
        for scale, statistics in enumerate(product.learnt.statistics):
            tensors |= {f"statistics.{i}.{scale}.{part}": value for part, value in statistics._asdict().items()}
        for view, memory in enumerate(product.learnt.memories):
            tensors |= memory_tensors(f"memory.{i}.{view}" if view else f"memory.{i}", memory, in_half)
    for i, tiles in enumerate(with_tiles.values()):
        tensors |= memory_tensors(f"tiles.{i}", tiles.memory, in_half) | {f"tiles.{i}.places": tiles.expected}
    if record.recogniser is not None:
        facts["recogniser"] = {"names": record.recogniser.names, "limit": LIMIT}
        tensors |= {"recogniser.means": record.recogniser.means, "recogniser.precision": record.recogniser.precision}
    tensors |= {f"example.{i}": example.encoded for i, example in enumerate(record.examples)}
    tensors |= {f"roi.{i}": torch.from_numpy(roi.encoded(mask)) for i, mask in enumerate(rois.values())}
    return facts, tensors


def write(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"mambaad": json.dumps(facts)})
    return path


@pytest.fixture(scope="module")
def detailed() -> ModelRecord:
    """Two products with two views, tiles and no region."""
    torch.manual_seed(0)
    return two_products(**DETAILED, **TILED, own_aspect=True)


def maps_of(record: ModelRecord, told: bool) -> list[Tensor]:
    """Of two new photos of each product."""
    scorer, maps = TorchScorer(record), []
    for name in ("nut", "bolt"):
        images = prepared(scorer.preparation, name, photos_of(name, 2, start=40))
        maps += [judgement.anomaly_map for judgement in scorer.judge(images, [name if told else ""] * 2)]
    return maps


@pytest.mark.parametrize("in_half", [False, True])
def test_a_file_of_0_2_gives_the_maps_that_its_model_gave(detailed: ModelRecord, tmp_path: Path, in_half: bool) -> None:
    found = store.load(write(tmp_path / "old", *format_2(detailed, in_half)))
    for told in (True, False):
        for a, b in zip(maps_of(found, told), maps_of(detailed, told), strict=True):
            torch.testing.assert_close(a, b, rtol=0.02 if in_half else 1e-5, atol=1e-3 * float(b.abs().max()))


def test_all_that_a_file_of_0_2_knows_is_known_of_its_products(detailed: ModelRecord, tmp_path: Path) -> None:
    photos = (PhotoStatistics(0.5, 0.25, 0.125),)
    nut = detailed.products["nut"]
    assert nut.calibration is not None
    nut = replace(nut, calibration=replace(nut.calibration, photos=photos, promising=False), own_masks=False)
    example = Example("nut", True, (1, 2, 3, 4), torch.arange(9, dtype=torch.uint8))
    record = replace(detailed.with_products(nut), examples=(example,), recipe={"steps": 3})
    found = store.load(write(tmp_path / "old", *format_2(record)))
    assert list(found.products) == ["nut", "bolt"]
    for name, product in found.products.items():
        before = record.products[name]
        for fact in ("name", "size", "images", "photo_shape", "region", "own_masks"):
            assert getattr(product, fact) == getattr(before, fact), (name, fact)
        assert (product.calibration is None) == (before.calibration is None)
        assert product.calibration == replace(
            before.calibration,  # type: ignore[type-var]
            max_false_reject=0.05,
            farthest=LIMIT / MARGIN,
        )
        assert product.calibration is not None
        assert product.calibration.conditions == Conditions(before.size)
        assert product.learnt.fusion == before.learnt.fusion
    assert found.unknown_limit == pytest.approx(LIMIT)
    assert found.recipe == {"steps": 3}
    (kept,) = found.examples
    assert (kept.class_name, kept.held_out, kept.box) == ("nut", True, (1, 2, 3, 4))


def test_a_file_of_0_2_can_be_saved_again(detailed: ModelRecord, tmp_path: Path) -> None:
    found = store.load(write(tmp_path / "old", *format_2(detailed)))
    store.save(found, tmp_path / "new")
    again = store.load(tmp_path / "new")
    assert [product.calibration for product in again.products.values()] == [
        product.calibration for product in found.products.values()
    ]
    for a, b in zip(maps_of(again, False), maps_of(found, False), strict=True):
        assert torch.equal(a, b)


def test_a_threshold_of_0_2_does_not_hold_inside_a_region_of_interest(tmp_path: Path) -> None:
    """Its maps near the border of a region were others: the scores behind the threshold are not those of today."""
    region = np.zeros((80, 96), bool)
    region[8:72, 16:88] = True
    found = store.load(write(tmp_path / "old", *format_2(two_products(region))))
    nut, bolt = found.products["nut"], found.products["bolt"]
    assert nut.region is not None
    assert np.array_equal(nut.region, region)
    assert nut.learnt.region is not None
    assert np.array_equal(nut.learnt.region, region)
    assert (nut.calibration, bolt.promising) == (None, True)


def test_a_model_of_0_2_that_was_calibrated_at_another_size_keeps_it(detailed: ModelRecord, tmp_path: Path) -> None:
    """`calibrate --res` wrote the size of the larger images, and of no product a size of its own."""
    facts, tensors = format_2(detailed)
    facts["settings"] |= {"size": (192, 256), "own_aspect": False}
    facts["sizes"] = {}
    found = store.load(write(tmp_path / "old", facts, tensors))
    assert found.network.settings.size == (96, 128)
    assert {product.size for product in found.products.values()} == {(96, 128)}
    assert found.network.input_size((96, 128)) == (192, 256)
    assert all(product.calibration is not None for product in found.products.values())


def test_a_limit_that_calibrate_took_away_stays_away(detailed: ModelRecord, tmp_path: Path) -> None:
    facts, tensors = format_2(detailed)
    facts["recogniser"]["limit"] = math.inf
    found = store.load(write(tmp_path / "old", facts, tensors))
    assert found.unknown_limit == math.inf


def test_a_file_of_0_2_0_without_photo_statistics_loads(detailed: ModelRecord, tmp_path: Path) -> None:
    facts, tensors = format_2(detailed)
    del facts["photo_statistics"]
    found = store.load(write(tmp_path / "old", facts, tensors))
    assert [product.calibration and product.calibration.photos for product in found.products.values()] == [(), ()]


@pytest.mark.parametrize("promising", [True, False])
def test_a_file_of_0_1_has_one_answer_for_all_products(tmp_path: Path, promising: bool) -> None:
    record = two_products()
    products = {
        name: replace(product, size=(64, 64), learnt=Learnt(product.learnt.statistics))
        for name, product in record.products.items()
    }
    record = replace(record, products=products, recogniser=None)
    facts = {
        "format": 1,
        "mambaad": "0.1.0",
        "settings": {
            name: getattr(record.network.settings, name)
            for name in ("detector", "encoder", "size", "letterbox", "options")
        },
        "scores": {"nut": [1.0, 2.0], "bolt": [3.0]},
        "held_out": promising,
        "trained_on": {"nut": 9, "bolt": 8},
        "max_false_reject": 0.01,
        "normal": {"nut": 3, "bolt": 3},
    }
    tensors = networks_tensors(record)
    parts = {"mean": "mean", "whitening": "whitening", "expected": "hard", "moments": "moments"}
    for i, product in enumerate(products.values()):
        for scale, statistics in enumerate(product.learnt.statistics):
            for part, then in parts.items():
                tensors[f"normal.{i}.{scale}.{then}"] = getattr(statistics, part)
    found = store.load(write(tmp_path / "old", facts, tensors))
    assert {name: (product.images, product.scores) for name, product in found.products.items()} == {
        "nut": (9, (1.0, 2.0)),
        "bolt": (8, (3.0,)),
    }
    assert {product.promising for product in found.products.values()} == {promising}
    assert found.network.settings.detail == 1.0
    for told in (True, False):
        for a, b in zip(maps_of(found, told), maps_of(record, told), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("scores"),
        lambda facts: facts.pop("held_out"),
        lambda facts: facts.update(trained_on=[1]),
        lambda facts: facts.update(sizes={"nut": [1]}),
        lambda facts: facts.update(statistics={}),
        lambda facts: facts.update(memories=["nut"]),
        lambda facts: facts.update(memories=["screw"]),
        lambda facts: facts.update(fusion={"nut": 3}),
        lambda facts: facts.update(tiles={"nut": None}),
        lambda facts: facts.update(rois=["nut", "bolt"]),
        lambda facts: facts.update(recogniser={"limit": 3}),
        lambda facts: facts.update(recogniser=[1]),
        lambda facts: facts.update(examples=[1]),
        lambda facts: facts.update(simulated={"nut": [[1]]}),
        lambda facts: facts.update(settings=None),
    ],
)
def test_a_damaged_description_of_0_2_is_one_line(detailed: ModelRecord, tmp_path: Path, change: Any) -> None:
    facts, tensors = format_2(detailed)
    change(facts)
    with pytest.raises(MambaADError, match="is damaged") as caught:
        store.load(write(tmp_path / "old", facts, tensors))
    assert "\n" not in str(caught.value)


def test_products_of_a_table_that_only_one_table_names(tmp_path: Path) -> None:
    """A model of mambaad 0.1 that was imported and calibrated has scores, and nothing learnt."""
    record = ModelRecord(two_products().network)
    facts, tensors = format_2(record)
    facts["scores"], facts["held_out"] = {"washer": [1.0, 2.0]}, ["washer"]
    (product,) = store.load(write(tmp_path / "old", facts, tensors)).products.values()
    assert (product.name, product.images, product.scores) == ("washer", 0, (1.0, 2.0))
    assert product.learnt.statistics == ()
