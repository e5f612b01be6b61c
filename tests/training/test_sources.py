"""Where the patches of a memory come from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.augmentation import before_moving, moved, moves
from mambaad_cli.data.images import decoded_bytes
from mambaad_cli.inspection import store
from mambaad_cli.inspection.explaining import what_is_missing
from mambaad_cli.inspection.lessons import Lesson
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.sources import MAX_BYTES, Sources
from mambaad_cli.inspection.teaching import taught
from mambaad_cli.training import sources as making
from mambaad_cli.training.adding import add
from mambaad_cli.training.sources import small_pictures
from tests.conftest import around, picture
from tests.training.conftest import goods_of

CHOICES = {"evidence": "both", "memory_size": 60}


def sources_in(model: ModelRecord, name: str) -> Sources:
    sources = model.products[name].learnt.sources
    assert sources is not None
    return sources


def suspicious(model: ModelRecord) -> FittedModel:
    """The model with thresholds that no photo keeps, so that every photo has a region."""
    products = [
        replace(product, calibration=replace(product.calibration, scores=(-1e3, -1e3)))
        for product in model.products.values()
        if product.calibration
    ]
    return around(model.with_products(*products))


def test_the_nearest_patch_of_a_photo_that_is_remembered_is_its_own(
    run: Callable[..., ModelRecord], goods: Path, tmp_path: Path
) -> None:
    """With a memory of all patches: its name and its place, told by a model that was saved."""
    store.save(run(two_looks=True, evidence="both", memory_size=10_000), tmp_path / "m.safetensors")
    model = suspicious(store.load(tmp_path / "m.safetensors"))
    for name in ("nut", "bolt"):
        for number in range(6):
            prediction = model.predict(goods / name / f"{number}.png", class_name=name)
            explanation = prediction.explain()[0]
            nearest = explanation.nearest[0]
            assert nearest.origin.photo == f"{number}.png"
            assert (nearest.origin.x, nearest.origin.y) == pytest.approx(explanation.place, abs=1e-4)
            assert nearest.distance < 0.1 * explanation.nearest[1].distance
            assert len({patch.origin.photo for patch in explanation.nearest}) == 3


def test_pictures_show_the_photos(run: Callable[..., ModelRecord], goods: Path) -> None:
    sources = sources_in(run(**CHOICES), "nut")
    assert set(sources.photos) <= {f"{i}.png" for i in range(6)}
    for photo, encoded in zip(sources.photos, sources.pictures, strict=True):
        shown = decoded_bytes(encoded.numpy()).astype(float)
        kept = images.read(goods / "nut" / photo).astype(float)
        assert shown.shape == kept.shape
        assert np.abs(shown - kept).mean() < 12  # of 255


def test_a_model_without_examples_keeps_no_photos_and_says_so(run: Callable[..., ModelRecord]) -> None:
    model = run(keep_examples=False, **CHOICES)
    assert all(product.learnt.sources is None for product in model.products.values())
    lines = what_is_missing(model.products)
    assert len(lines) == 2
    assert "--no-examples" in lines[0]
    explanation = suspicious(model).predict(picture(3), class_name="nut").explain()[0]
    assert explanation.nearest == ()
    assert explanation.decoder_expected is None
    assert sum(explanation.evidence.values()) == pytest.approx(explanation.region.peak, rel=1e-5)


def test_pictures_of_a_product_stay_below_their_limit(tmp_path: Path) -> None:
    """Of noise, which compresses worst; also where there are more photos than pictures."""
    rng = np.random.default_rng(0)
    paths = {}
    for i in range(9):
        paths[i] = tmp_path / f"{i}.png"
        images.write(paths[i], rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    for limit, most in ((20_000, 400), (200_000, 400), (200_000, 4)):
        pictures = small_pictures(paths, limit, most)
        assert len(pictures) == min(9, most)
        assert limit / 8 < sum(map(len, pictures.values())) <= limit
        assert decoded_bytes(pictures[0].numpy()).shape[2] == 3
    assert MAX_BYTES <= 3 * 10**6


@pytest.mark.slow
def test_added_photos_join_those_that_patches_come_from(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run(**CHOICES)
    before = sources_in(model, "nut")
    for i in range(6):
        images.write(tmp_path / "more" / "nut" / f"new_{i}.png", picture(50 + i))
    files = images.find([tmp_path / "more"])
    limit = 2 * sum(map(len, before.pictures))
    monkeypatch.setattr(making, "MAX_BYTES", limit)
    grown = add(model, goods_of(files, ["nut"] * 6))
    after = sources_in(grown, "nut")
    assert {name.startswith("new_") for name in after.photos} == {True, False}
    assert sum(map(len, after.pictures)) <= limit
    patches = grown.products["nut"].learnt.memories[0].patches
    assert [len(places) for places in after.places] == [len(patches)]
    assert int(after.places[0].min()) >= 0
    before_rows = {(before.photos[n], x, y) for n, x, y in before.places[0].tolist()}
    for n, x, y in after.places[0].tolist():
        assert after.photos[n].startswith("new_") or (after.photos[n], x, y) in before_rows
    assert grown.products["bolt"].learnt.sources is model.products["bolt"].learnt.sources


def test_places_stay_where_a_part_was_taught_as_good_and_the_part_is_named(run: Callable[..., ModelRecord]) -> None:
    model = run(**CHOICES)
    product, network = model.products["nut"], model.network
    with torch.inference_mode():
        patches = network.patches(
            network.features(around(model).scorer.preparation.of_picture(picture(9), "nut").pixels[None])
        )
    kept = tuple(view[0].flatten(0, 1) for view in patches)
    lesson = Lesson("rejected.png", "0", True, tuple(view[10:30] for view in kept), 5.0)
    learnt = taught(product, [lesson], network.settings.far_weight).product
    assert learnt.learnt.sources is product.learnt.sources
    again = suspicious(model.with_products(learnt))
    names = [patch.origin.photo for patch in again.predict(picture(9), class_name="nut").explain()[0].nearest]
    assert len(names) == 3
    assert {"rejected.png", *(f"{i}.png" for i in range(6))} >= set(names)
    assert all(
        patches.origin.encoded is None
        for patches in again.predict(picture(9), class_name="nut").explain()[0].nearest
        if patches.origin.photo == "rejected.png"
    )


def test_a_place_in_a_moved_view_is_that_of_the_image_which_is_seen_there() -> None:
    """The image's pixels are their own x and y; a view shows at each of its places where it comes from."""
    height, width = 40, 60
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    own = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    for flips, turned in ((False, False), (True, False), (True, True)):
        shown = moved(own, 4, 7, flips, turned)
        for view, move in zip(shown, moves((height, width), 4, 7, flips, turned), strict=True):
            places = before_moving(own.permute(1, 2, 0), move)
            assert (places - view.permute(1, 2, 0)).abs().max() < 0.02  # a pixel at the borders
