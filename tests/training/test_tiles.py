"""Photos at their own resolution: where tiles lie, how they are stitched, and what they find."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.roi import parse
from mambaad_cli.inspection import model_file
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.predict import PredictOptions, predict
from mambaad_cli.inspection.tiles import OVERLAP, close_grid, corners_of, padded_to_tiles, smoothed, tile_distances
from mambaad_cli.training import tiles
from mambaad_cli.training.fit import add, fit
from mambaad_cli.training.memories import Remembered
from mambaad_cli.training.recipe import RunOptions
from tests.conftest import picture
from tests.training.conftest import tiny_recipe, tiny_settings

TILE = (128, 128)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LEARNT", 24)
    monkeypatch.setattr(tiles, "SIMULATED", 5)


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
    photos: list[np.ndarray], folder: Path, weights: Path, evidence: str = "memory", **run: object
) -> FittedModel:
    files = []
    for i, photo in enumerate(photos):
        images.write(folder / f"{i}.png", photo)
        files.append(ImageFile(folder / f"{i}.png", Path(f"{i}.png"), "sheet"))
    settings = replace(tiny_settings(), tiles=TILE)
    recipe = tiny_recipe(evidence=evidence, memory_size=300, views=0, epochs=1)
    return fit(files, ["sheet"] * len(files), settings, recipe, RunOptions(encoder_weights=weights, **run))  # type: ignore[arg-type]


@pytest.fixture
def sheets(tmp_path: Path, weights: Path) -> FittedModel:
    return fitted([surface(i, 300, 420) for i in range(8)], tmp_path / "good", weights)


def maps(model: FittedModel, *photos: np.ndarray) -> list[np.ndarray]:
    found = model.predict(list(photos), "sheet")
    return [one.anomaly_map for one in found if one.anomaly_map is not None]


@pytest.mark.parametrize("length", [128, 144, 192, 208, 1024, 8000])
def test_tiles_cover_a_side_and_overlap(length: int) -> None:
    corners = corners_of(length, 128)
    assert (corners[0], corners[-1] + 128) == (0, length)
    assert all(0 < after - before <= 128 - OVERLAP for before, after in pairwise(corners))
    assert all(corner % 16 == 0 for corner in corners)


def test_a_photo_smaller_than_a_tile_is_one_tile(sheets: FittedModel) -> None:
    assert padded_to_tiles(surface(0, 50, 300), TILE).shape == (128, 304, 3)
    small = surface(99, 60, 90)
    (found,) = maps(sheets, small)
    assert found.shape == (15, 22)
    assert np.isfinite(found).all()


def test_the_map_of_a_good_photo_shows_no_grid(sheets: FittedModel) -> None:
    """Steps of the map across the borders of tiles are no larger than elsewhere."""
    memory = sheets.tiles["sheet"].memory
    across, elsewhere = [], []
    for seed in range(30, 36):
        look = partial(tile_distances, sheets, memory)
        found = smoothed(close_grid(look, sheets.tile_size, surface(seed, 128, 1216)), (32, 304)).numpy()
        steps = np.abs(np.diff(found, axis=1)).mean(0)
        borders = {b // 4 for left in corners_of(1216, 128) for b in (left + 16, left + 112) if 16 < b < 1200}
        near = np.zeros(len(steps), bool)
        for border in borders:
            near[border - 1 : border + 2] = True
        across.append(steps[near].mean())
        elsewhere.append(steps[~near].mean())
    assert np.mean(across) < 1.25 * np.mean(elsewhere)


def test_tiles_see_what_the_whole_photo_hides_and_say_where(sheets: FittedModel, tmp_path: Path) -> None:
    photo = surface(50, 300, 420)
    photo[200:208, 300:308] = 20
    images.write(tmp_path / "bad" / "1.png", photo)
    good, bad = maps(sheets, surface(50, 300, 420), photo)
    y, x = np.unravel_index(bad.argmax(), bad.shape)
    assert (abs(4 * y - 204) < 24, abs(4 * x - 304) < 24) == (True, True)
    assert bad.max() > good.max()
    sheets.scores["sheet"] = [float(good.max())]
    one = next(predict(sheets, images.find([tmp_path / "bad"]), PredictOptions(min_area=0)))
    assert one.regions is not None
    left, top, width, height = one.regions[0].box
    assert left <= 304 <= left + width
    assert top <= 204 <= top + height


def test_a_model_with_tiles_is_the_same_after_it_was_saved(sheets: FittedModel, tmp_path: Path) -> None:
    model_file.save(sheets, tmp_path / "m.safetensors")
    again = model_file.load(tmp_path / "m.safetensors")
    photo = surface(60, 300, 420)
    np.testing.assert_array_equal(maps(sheets, photo)[0], maps(again, photo)[0])
    assert (again.settings.tiles, again.scores, again.simulated) == (TILE, sheets.scores, sheets.simulated)
    assert len(again.simulated["sheet"]) == 5


def test_the_threshold_is_of_whole_photos_seen_as_score_sees_them(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a photo's own patches, which are left out of both memories, and for its share in what is expected."""
    monkeypatch.setattr(Remembered, "without", lambda remembered, *_: remembered.memory)
    monkeypatch.setattr(tiles, "expected_from", lambda grids: torch.ones(1, 1))
    model = fitted([surface(i, 300, 420) for i in range(8)], tmp_path / "good", weights)
    found = sorted(one.score or 0.0 for one in predict(model, images.find([tmp_path / "good"])))
    assert sorted(model.scores["sheet"]) == pytest.approx(found, rel=1e-4)


def test_a_photo_is_scored_as_if_it_were_new(sheets: FittedModel, tmp_path: Path) -> None:
    known = [one.score or 0.0 for one in predict(sheets, images.find([tmp_path / "good"]))]
    assert len(sheets.scores["sheet"]) == 8
    assert median(sheets.scores["sheet"]) > median(known)


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
    model = fit(files, ["sheet"] * 6, settings, recipe, RunOptions(encoder_weights=weights))
    (found,) = maps(model, surface(90, 400, 600))
    assert found.shape == (50, 75)


def test_what_tiles_cannot_do_is_one_line(sheets: FittedModel, tmp_path: Path) -> None:
    images.write(tmp_path / "more" / "1.png", picture())
    with pytest.raises(MambaADError, match="own resolution"):
        add(sheets, images.find([tmp_path / "more"]), ["nut"])


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
        model = fit(files, ["sheet"] * 10, replace(settings, tiles=tile), recipe, RunOptions())
        scores = [one.score or 0.0 for one in model.predict([good, bad], "sheet")]
        found[name] = (scores[1] > scores[0] * 1.01, scores[1] > (model.threshold("sheet") or 0.0))
    assert found == {"tiles": (True, True), "whole": (False, False)}
