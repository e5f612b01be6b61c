"""Photos at their own resolution: where tiles lie, how they are stitched, and what they find."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pytest
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.roi import parse
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.predict import predict, predict_images
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.tiles import OVERLAP, close_grid, corners_of, padded_to_tiles, smoothed
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.training import memories, tiles
from mambaad_cli.training.adding import add
from mambaad_cli.training.fit import fit
from mambaad_cli.training.memories import Remembered
from mambaad_cli.training.recipe import RunOptions
from mambaad_cli.training.tiles import SCORED_PHOTOS, TilePhotos
from tests.conftest import calibrated, picture
from tests.training.conftest import calibration_of, goods_of, judged, scores_of, tiny_recipe, tiny_settings

TILE = (128, 128)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LEARNT_TILES", 24)
    monkeypatch.setattr(tiles, "MAX_DEFECTS", 5)


def surface(seed: int, height: int, width: int) -> np.ndarray:
    """Rolled metal: fine grain on slow bands of brightness."""
    rng = np.random.default_rng(seed)
    bands = np.cumsum(rng.normal(0, 0.2, height))[:, None] + np.cumsum(rng.normal(0, 0.2, width))
    grain = rng.normal(0, 4, (height, width))
    return np.repeat(np.clip(128 + bands + grain, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def mottled(seed: int) -> np.ndarray:
    """A line scan of rolled metal with stains, 8000×2000: what is small is hidden where they are seen small."""
    stains = np.random.default_rng(seed).normal(0, 10, (2000 // 25, 8000 // 25)).astype(np.float32)
    large = cv2.resize(stains, (8000, 2000), interpolation=cv2.INTER_CUBIC)[..., None]
    return (surface(seed, 2000, 8000) + large).clip(50, 255).astype(np.uint8)


def fitted(
    photos: list[np.ndarray], folder: Path, weights: Path, evidence: str = "memory", **regions: Any
) -> ModelRecord:
    files = []
    for i, photo in enumerate(photos):
        images.write(folder / f"{i}.png", photo)
        files.append(ImageFile(folder / f"{i}.png", Path(f"{i}.png"), "sheet"))
    settings = replace(tiny_settings(), tiles=TILE)
    recipe = tiny_recipe(evidence=evidence, memory_size=300, views=0, epochs=1)
    return fit(
        goods_of(files, ["sheet"] * len(files), **regions), settings, recipe, RunOptions(encoder_weights=weights)
    )


@pytest.fixture
def sheets(tmp_path: Path, weights: Path) -> ModelRecord:
    return fitted([surface(i, 300, 420) for i in range(8)], tmp_path / "good", weights)


def maps(model: ModelRecord, *photos: np.ndarray) -> list[np.ndarray]:
    found = predict_images(TorchScorer(model), list(photos), PredictOptions("sheet", maps=True, min_area=0))
    return [row.anomaly_map for row in found if row.anomaly_map is not None]


@pytest.mark.parametrize("length", [128, 144, 192, 208, 1024, 8000])
def test_tiles_cover_a_side_and_overlap(length: int) -> None:
    corners = corners_of(length, 128)
    assert (corners[0], corners[-1] + 128) == (0, length)
    assert all(0 < after - before <= 128 - OVERLAP for before, after in pairwise(corners))
    assert all(corner % 16 == 0 for corner in corners)


def test_a_photo_smaller_than_a_tile_is_one_tile(sheets: ModelRecord) -> None:
    assert padded_to_tiles(surface(0, 50, 300), TILE).shape == (128, 304, 3)
    small = surface(99, 60, 90)
    (found,) = maps(sheets, small)
    assert found.shape == (15, 22)
    assert np.isfinite(found).all()


def test_the_map_of_a_good_photo_shows_no_grid(sheets: ModelRecord) -> None:
    """Steps of the map across the borders of tiles are no larger than elsewhere."""
    learnt = sheets.products["sheet"].learnt.tiles
    assert learnt is not None
    view = sheets.network.tile_view(learnt.memory)
    across, elsewhere = [], []
    for seed in range(30, 36):
        found = smoothed(close_grid(view.distances, view.size, surface(seed, 128, 1216)), (32, 304)).numpy()
        steps = np.abs(np.diff(found, axis=1)).mean(0)
        borders = {b // 4 for left in corners_of(1216, 128) for b in (left + 16, left + 112) if 16 < b < 1200}
        near = np.zeros(len(steps), bool)
        for border in borders:
            near[border - 1 : border + 2] = True
        across.append(steps[near].mean())
        elsewhere.append(steps[~near].mean())
    assert np.mean(across) < 1.25 * np.mean(elsewhere)


def test_tiles_see_what_the_whole_photo_hides_and_say_where(sheets: ModelRecord, tmp_path: Path) -> None:
    photo = surface(50, 300, 420)
    photo[196:212, 296:312] = 20
    images.write(tmp_path / "bad" / "1.png", photo)
    good, bad = maps(sheets, surface(50, 300, 420), photo)
    y, x = np.unravel_index(bad.argmax(), bad.shape)
    assert (abs(4 * y - 204) < 24, abs(4 * x - 304) < 24) == (True, True)
    assert bad.max() > good.max()
    model = sheets.with_products(calibrated(sheets.products["sheet"], [float(good.max())]))
    row = next(predict(TorchScorer(model), images.find([tmp_path / "bad"]), PredictOptions(min_area=0)))
    assert row.regions is not None
    left, top, width, height = row.regions[0].box
    assert left <= 304 <= left + width
    assert top <= 204 <= top + height


def test_a_model_with_tiles_is_the_same_after_it_was_saved(sheets: ModelRecord, tmp_path: Path) -> None:
    store.save(sheets, tmp_path / "m.safetensors")
    again = store.load(tmp_path / "m.safetensors")
    photo = surface(60, 300, 420)
    np.testing.assert_array_equal(maps(sheets, photo)[0], maps(again, photo)[0])
    assert again.network.settings.tiles == TILE
    assert calibration_of(again, "sheet") == calibration_of(sheets, "sheet")
    assert len(calibration_of(again, "sheet").simulated) == 5


def test_the_threshold_is_of_whole_photos_seen_as_score_sees_them(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a photo's own patches, which are left out of both memories, and for its share in what is expected."""
    monkeypatch.setattr(Remembered, "without", lambda remembered, *_: remembered.memory)
    monkeypatch.setattr(memories, "FEW_IMAGES", 0)
    monkeypatch.setattr(tiles, "expected_from", expected_from_the_first(tiles.expected_from))
    model = fitted([surface(i, 300, 420) for i in range(9)], tmp_path / "good", weights)
    learnt = model.products["sheet"].learnt.tiles
    assert learnt is not None
    assert learnt.expected.std() > 0  # not the same everywhere
    found = sorted(row.score or 0.0 for row in judged(model, images.find([tmp_path / "good"])))
    assert sorted(scores_of(model)["sheet"]) == pytest.approx(found, rel=1e-4)


def expected_from_the_first(real: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """What is expected at each place, from the photos of the first call, whichever are given later."""
    first: list[Tensor] = []

    def expected_from(grids: Sequence[Tensor]) -> Tensor:
        if not first:
            first.append(real(grids))
        return first[0]

    return expected_from


def test_a_photo_is_scored_as_if_it_were_new(sheets: ModelRecord, tmp_path: Path) -> None:
    known = [row.score or 0.0 for row in judged(sheets, images.find([tmp_path / "good"]))]
    assert len(scores_of(sheets)["sheet"]) == 8
    assert median(scores_of(sheets)["sheet"]) > median(known)


def test_a_photo_is_not_compared_with_the_tiles_of_its_copies(tmp_path: Path, weights: Path) -> None:
    photos = [surface(i, 300, 420) for i in range(6)]
    once, twice = (
        scores_of(fitted(several, tmp_path / name, weights))["sheet"]
        for name, several in (("once", photos), ("twice", [*photos, *photos]))
    )
    assert len(twice) == 12
    assert median(twice) > 0.5 * median(once)


def test_no_more_photos_are_seen_in_all_their_tiles_than_the_threshold_needs() -> None:
    photos = TilePhotos("sheet", [None] * 5000, list(range(4000)), list(range(4000, 5000)))
    assert len(photos.scored) == SCORED_PHOTOS


@pytest.mark.parametrize("evidence", ["decoder", "both"])
def test_tiles_stand_beside_any_evidence_of_the_whole(tmp_path: Path, weights: Path, evidence: str) -> None:
    model = fitted([surface(i, 200, 260) for i in range(6)], tmp_path / "good", weights, evidence)
    (found,) = maps(model, surface(70, 200, 260))
    assert found.shape == (50, 65)


def test_a_region_of_interest_holds_for_tiles(tmp_path: Path, weights: Path) -> None:
    photos = [surface(i, 300, 420) for i in range(8)]
    model = fitted(photos, tmp_path / "good", weights, inside=(parse("100,80,200,160"),))
    plain, other = surface(80, 300, 420), surface(80, 300, 420)
    other[:70] = other[250:] = 255
    other[:, :90] = 0
    one, two = maps(model, plain, other)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert one[:18].max() <= one[22:58, 27:73].min()


def test_scaled_photos_have_smaller_maps(tmp_path: Path, weights: Path) -> None:
    files = []
    for i in range(6):
        images.write(tmp_path / "good" / f"{i}.png", surface(i, 400, 600))
        files.append(ImageFile(tmp_path / "good" / f"{i}.png", Path(f"{i}.png"), "sheet"))
    settings = replace(tiny_settings(), tiles=TILE, scale=0.5)
    recipe = tiny_recipe(evidence="memory", memory_size=300, views=0)
    model = fit(goods_of(files, ["sheet"] * 6), settings, recipe, RunOptions(encoder_weights=weights))
    (found,) = maps(model, surface(90, 400, 600))
    assert found.shape == (50, 75)


def test_what_tiles_cannot_do_is_one_line(sheets: ModelRecord, tmp_path: Path) -> None:
    images.write(tmp_path / "more" / "1.png", picture())
    with pytest.raises(MambaADError, match="own resolution"):
        add(sheets, goods_of(images.find([tmp_path / "more"]), ["nut"]))


@pytest.mark.slow
def test_ten_pixels_are_found_on_a_line_scan_of_8000_and_only_with_tiles(tmp_path: Path) -> None:
    """With the default encoder, whole photos of 8000×2000 are seen ten times smaller than they are, along a side."""
    from mambaad_cli.training.recipe import preset

    files = []
    for i in range(10):
        images.write(tmp_path / "good" / f"{i}.png", mottled(i))
        files.append(ImageFile(tmp_path / "good" / f"{i}.png", Path(f"{i}.png"), "sheet"))
    settings, recipe = preset("memory")
    good, bad = mottled(500), mottled(500)
    bad[1200:1210, 5000:5003] -= 45  # ten pixels long
    found = {}
    for name, tile in (("tiles", (384, 384)), ("whole", None)):
        model = fit(goods_of(files, ["sheet"] * 10), replace(settings, tiles=tile), recipe, RunOptions())
        scores = [float(anomaly_map.max()) for anomaly_map in maps(model, good, bad)]
        found[name] = (scores[1] > scores[0] * 1.01, scores[1] > (model.products["sheet"].threshold or 0.0))
    assert found == {"tiles": (True, True), "whole": (False, False)}
