"""Why a region is anomalous: shares of the evidence, nearest good patches, strips and rows."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from mambaad_cli.data import images
from mambaad_cli.inspection import store
from mambaad_cli.inspection.explaining import DECODER, USUAL, what_is_missing, witness_maps
from mambaad_cli.inspection.explanation import explained_json
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.row_files import read_file
from mambaad_cli.inspection.strips import TILE
from mambaad_cli.model.anomaly_map import fuse, weights_at
from tests.conftest import around, calibrated, picture
from tests.inspection.conftest import DETAILED, TILED, photos_of, two_products
from tests.inspection.test_older_formats import format_2, write


def stained(seed: int = 30) -> np.ndarray:
    """A nut with a stain, which the model has not seen."""
    photo = picture(seed)
    photo[30:44, 40:60] = (250, 20, 20)
    return photo


def strict(record: ModelRecord) -> FittedModel:
    """The model with thresholds that most of a photo exceeds."""
    products = [calibrated(product, (-1.0, -1.0)) for product in record.products.values()]
    return around(record.with_products(*products))


def shares_add_up(prediction: Prediction) -> Mapping[str, float]:
    """Those of the first region, where those of all regions add up to the peaks."""
    explanations = prediction.explain()
    assert prediction.regions
    assert [one.region for one in explanations] == list(prediction.regions)
    for one in explanations:
        assert sum(one.evidence.values()) == pytest.approx(one.region.peak, rel=1e-5, abs=1e-5)
    return explanations[0].evidence


# ---- the evidence ----


@pytest.mark.parametrize("settings", [{}, {"letterbox": True}, DETAILED, DETAILED | TILED])
def test_the_shares_of_the_evidence_add_up_to_the_peak(settings: dict[str, Any]) -> None:
    region = np.zeros((80, 96), bool)
    region[8:72, 16:88] = True
    looks = {"far_look", "close_look"} if settings.get("looks") == 2 else {"memory"}
    for mask in (None, region):
        evidence = shares_add_up(strict(two_products(mask, **settings)).predict(stained(), class_name="nut"))
        assert set(evidence) == {DECODER, USUAL, *looks} | ({"tiles"} if "tiles" in settings else set())
        assert all(evidence[name] != 0 for name in evidence)


def test_known_defects_have_a_share_and_the_nearest_is_named(rich_record: ModelRecord) -> None:
    nut = rich_record.products["nut"]
    assert nut.learnt.known is not None
    loud = replace(nut.learnt, known=nut.learnt.known._replace(gain=1.0, centre=-50.0))
    model = strict(rich_record.with_products(replace(nut, learnt=loud)))
    prediction = model.predict(stained(), class_name="nut")
    assert shares_add_up(prediction)["learnt_defects"] > 0
    defect = prediction.explain()[0].known_defect
    assert defect is not None
    assert (defect.name in {"0.png", "1.png", "2.png"}, defect.kind) == (True, "spot")  # 3.png was taught as good


def test_a_known_defect_is_nearest_to_its_own_photo(rich_record: ModelRecord) -> None:
    """Its patches were kept: those of the lessons 0 to 2 are of the good photos 20 to 22."""
    model = strict(rich_record)
    prediction = model.predict(photos_of("nut", 1, start=21)[0], class_name="nut")
    peak = prediction.explain()[0]
    assert peak.known_defect is not None
    assert (peak.known_defect.name, round(peak.known_defect.distance)) == ("1.png", 0)


def test_the_share_of_the_decoder_is_the_map_of_a_model_without_memory() -> None:
    record = two_products(**DETAILED)
    network, learnt = record.network, record.products["nut"].learnt
    image = around(record).scorer.preparation.of_picture(stained(), "nut")
    assert learnt.fusion is not None
    alone = replace(learnt, fusion=learnt.fusion._replace(memory=learnt.fusion.memory._replace(weight=0.0)))
    with torch.inference_mode():
        features = network.features(image.pixels[None])
        parts = witness_maps(network, features, (64, 80), learnt)
        expected = network.anomaly_maps(features, (64, 80), alone)
        far_alone = replace(network, settings=replace(network.settings, far_weight=0.0))
        without_far = far_alone.anomaly_maps(features, (64, 80), learnt)
        whole = network.anomaly_maps(features, (64, 80), learnt)
    decoder = learnt.fusion.decoder
    usual = decoder.weight * decoder.centre / decoder.spread
    assert torch.allclose(parts[DECODER].float() - usual, expected, atol=1e-4)
    assert torch.allclose(parts["far_look"].float(), whole - without_far, atol=1e-4)
    assert torch.allclose(sum(parts.values()).float(), whole, atol=1e-4)


def test_weights_say_what_a_distance_adds_to_a_pixel_of_the_map() -> None:
    distances = torch.rand(1, 6, 9)
    fused = fuse([distances], (48, 72), 2.5)
    for at in ((0, 0), (20, 31), (47, 71)):
        assert float((distances[0] * weights_at(at, (48, 72), (6, 9), 2.5)).sum()) == pytest.approx(
            float(fused[0, at[0], at[1]])
        )


def test_a_model_that_only_compares_or_only_reconstructs_is_explained() -> None:
    record = two_products(**DETAILED)
    nut = record.products["nut"]
    compares = replace(nut, learnt=replace(nut.learnt, fusion=None, statistics=()))
    reconstructs = replace(nut, learnt=replace(nut.learnt, fusion=None, memories=(), sources=None))
    published = replace(reconstructs, learnt=replace(reconstructs.learnt, statistics=()))
    found = [
        shares_add_up(strict(record.with_products(product)).predict(stained(), class_name="nut"))
        for product in (compares, reconstructs, published)
    ]
    assert [set(evidence) for evidence in found] == [{"far_look", "close_look"}, {DECODER}, {DECODER}]


# ---- the good patches ----


def test_the_peak_lies_in_the_stain_and_its_patch_too() -> None:
    explanation = strict(two_products(**DETAILED)).predict(stained(), class_name="nut").explain()[0]
    x, y = explanation.place
    assert 30 / 96 < x < 70 / 96
    assert 20 / 80 < y < 54 / 80
    assert explanation.distance is not None
    assert explanation.expected is not None
    assert explanation.distance > explanation.expected > 0
    assert len({patch.origin.photo for patch in explanation.nearest}) == 3
    distances = [patch.distance for patch in explanation.nearest]
    assert min(distances) > 0
    assert explanation.decoder_expected is not None
    assert explanation.decoder_expected.origin.photo.startswith("good_")


# ---- files ----


def test_map_writes_a_strip_beside_each_overlay_with_regions_and_a_row_for_each_image(
    rich_record: ModelRecord, tmp_path: Path
) -> None:
    store.save(strict(rich_record).fitted.record, tmp_path / "m.safetensors")  # type: ignore[union-attr]
    images.write(tmp_path / "in" / "a.png", stained())
    images.write(tmp_path / "in" / "b.png", stained(31))
    (tmp_path / "in" / "c.png").write_text("text")
    arguments = ["map", tmp_path / "in", "-o", tmp_path / "out", "-m", tmp_path / "m.safetensors", "--explain"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--class", "nut"], env={"COLUMNS": "80"})
    assert "2 overlays, contact_sheet.png and explanations.jsonl" in result.stdout, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.png", "a_explain.png", "b.png", "b_explain.png", "contact_sheet.png", "explanations.jsonl",
    ]  # fmt: skip
    strip = images.read(tmp_path / "out" / "a_explain.png")
    rows = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert strip.shape[1] > 6 * TILE
    assert strip.shape[0] > TILE * min(10, len(rows[0]["regions"]))
    assert [row["verdict"] for row in rows] == ["anomalous", "anomalous", "error"]
    assert rows[2]["regions"] is None
    region = rows[0]["regions"][0]
    assert set(region) == {
        "box", "area_px", "peak", "centre", "evidence", "look", "place", "distance", "expected", "nearest",
        "decoder_expected", "known_defect",
    }  # fmt: skip
    assert sum(region["evidence"].values()) == pytest.approx(region["peak"]["value"], rel=1e-4)  # six digits each
    assert set(region["nearest"][0]) == set(region["decoder_expected"]) == {"photo", "x", "y", "distance"}
    assert set(region["known_defect"]) == {"name", "kind", "distance"}
    read = read_file(tmp_path / "out" / "explanations.jsonl").rows  # as any other rows
    assert [len(row.regions or ()) for row in read] == [len(row["regions"] or ()) for row in rows]


def test_names_of_photos_and_strips_do_not_meet(rich_record: ModelRecord, tmp_path: Path) -> None:
    store.save(strict(rich_record).fitted.record, tmp_path / "m.safetensors")  # type: ignore[union-attr]
    for name in ("a", "a_explain"):
        images.write(tmp_path / "in" / f"{name}.png", stained())
    arguments = ["map", tmp_path / "in", "-o", tmp_path / "out", "-m", tmp_path / "m.safetensors", "--explain"]
    CliRunner().invoke(app, [*map(str, arguments), "--class", "nut"])
    names = {path.name for path in (tmp_path / "out").glob("a*")}
    assert names == {"a.png", "a_explain.png", "a_explain_2.png", "a_explain_2_explain.png"}


def test_sources_are_the_same_after_they_were_saved(rich_record: ModelRecord, rich_file: Path) -> None:
    for name, product in store.load(rich_file).products.items():
        before, after = rich_record.products[name].learnt.sources, product.learnt.sources
        assert before is not None
        assert after is not None
        assert after.photos == before.photos
        pairs = [*zip(before.places, after.places, strict=True), *zip(before.pictures, after.pictures, strict=True)]
        assert all(torch.equal(*pair) for pair in pairs)
    assert [len(picture) > 0 for picture in after.pictures] == [True] * 7 + [False]


def test_a_file_of_an_earlier_version_explains_the_evidence_and_says_what_is_missing(
    rich_record: ModelRecord, tmp_path: Path
) -> None:
    record = store.load(write(tmp_path / "old.safetensors", *format_2(rich_record)))
    lines = what_is_missing(record.products)
    assert len(lines) == 2
    assert "an earlier version made it" in lines[0]
    prediction = strict(record).predict(stained(), class_name="nut")
    shares_add_up(prediction)
    assert prediction.explain()[0].nearest == ()
    assert prediction.explain_strip().shape[2] == 3
    assert what_is_missing(rich_record.products) == []


@pytest.mark.parametrize("way", ["photo", "ends", "float"])
def test_sources_that_do_not_fit_are_refused(
    rich_record: ModelRecord, rich_file: Path, tmp_path: Path, way: str
) -> None:
    tensors = load_file(rich_file)
    changed = {"photo": "product.0.sources.0", "ends": "product.0.sources.ends", "float": "product.0.sources.1"}[way]
    tensors[changed] = tensors[changed].float() if way == "float" else tensors[changed] + 100
    from tests.inspection.test_damaged_models import content_of

    write(tmp_path / "m.safetensors", content_of(rich_file)[0], tensors)
    with pytest.raises(MambaADError, match="is damaged"):
        store.load(tmp_path / "m.safetensors")


def test_a_picture_that_is_damaged_is_one_line(rich_record: ModelRecord) -> None:
    nut = rich_record.products["nut"]
    assert nut.learnt.sources is not None
    text = torch.tensor(list(b"text"), dtype=torch.uint8)
    damaged = replace(nut.learnt.sources, pictures=(text,) * len(nut.learnt.sources.photos))
    model = strict(rich_record.with_products(replace(nut, learnt=replace(nut.learnt, sources=damaged))))
    with pytest.raises(MambaADError, match="picture of good_.* is damaged"):
        model.predict(stained(), class_name="nut").explain_strip()


# ---- in a program ----


def test_predict_gives_explanations_when_they_are_asked_for(rich_record: ModelRecord, tmp_path: Path) -> None:
    model = strict(rich_record)
    images.write(tmp_path / "nut" / "a.png", stained())
    prediction = model.predict(tmp_path / "nut" / "a.png")
    assert prediction.explanations is None
    assert json.loads(json.dumps([explained_json(one) for one in prediction.explain()]))
    assert prediction.explain_strip().dtype == np.uint8
    streamed = next(iter(model.predict_many([tmp_path])))
    with pytest.raises(MambaADError, match="ask predict for this one image"):
        streamed.explain()
    good = around(rich_record.with_products(calibrated(rich_record.products["nut"], (1e6, 1e6))))
    assert good.predict(tmp_path / "nut" / "a.png", class_name="nut").explain() == ()
