import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile, Opened
from mambaad_cli.data.loading import Input, Wanted, prepared, read_ahead, within
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.predict import predict, product_of
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.torch_scorer import TorchScorer
from tests.conftest import around, picture, record_of, with_products, with_scores, with_settings


def scores(predictions: Any) -> dict[str, float]:
    return {prediction.file.path.name: prediction.score for prediction in predictions}


def fixed_maps(monkeypatch: pytest.MonkeyPatch, anomaly_map: torch.Tensor) -> None:
    """Let every model give this one map (H, W), cold outside regions of interest."""

    def maps(network: Network, features: list[torch.Tensor], size: Any, learnt: Any, inside: Any = None) -> Any:
        return network.cold(anomaly_map.expand(len(features[0]), -1, -1), inside)

    monkeypatch.setattr(Network, "anomaly_maps", maps)


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageFile]:
    for i in range(9):
        images.write(tmp_path / "photos" / f"{i}.png", picture(i, 40 + 10 * i, 90))
    return images.find([tmp_path / "photos"])


# ---- the same score whatever else happens ----


def test_a_score_does_not_depend_on_batch_workers_neighbours_or_order(
    tiny_model: FittedModel, photos: list[ImageFile]
) -> None:
    alone = {file.path.name: next(predict(tiny_model.scorer, [file])).score for file in photos}
    assert len(set(alone.values())) == len(photos)
    for batch, workers in ((1, 1), (4, 1), (9, 3), (100, 8)):
        assert scores(
            predict(tiny_model.scorer, photos, PredictOptions(batch=batch, workers=workers))
        ) == pytest.approx(alone, rel=1e-5)
    assert scores(predict(tiny_model.scorer, photos[::-1])) == pytest.approx(alone, rel=1e-5)
    assert scores(predict(tiny_model.scorer, photos[3:5])) == pytest.approx(
        scores(predict(tiny_model.scorer, photos[4:2:-1])), 1e-5
    )


def test_a_score_is_the_maximum_of_the_map(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    for one in predict(tiny_model.scorer, photos[:3], PredictOptions(maps=True)):
        assert one.anomaly_map is not None
        assert one.anomaly_map.shape == (64, 64)
        assert one.score == one.anomaly_map.max()
        assert one.picture is not None
        assert np.array_equal(one.picture, images.read(one.file.path))


def test_without_maps_pictures_and_maps_are_not_kept(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    assert all(one.anomaly_map is None and one.picture is None for one in predict(tiny_model.scorer, photos))


def test_the_model_is_left_as_it_was(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    encoder = record_of(tiny_model).network.encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    list(predict(tiny_model.scorer, photos))
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- order, errors, streaming ----


def test_predictions_come_in_the_order_of_the_files_unreadable_ones_included(
    tiny_model: FittedModel, photos: list[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("text")
    bad = [ImageFile(tmp_path / name, Path(name), "") for name in ("text.png", "gone.png")]
    files = [bad[0], *photos[:4], bad[1], *photos[4:], bad[0]]
    for batch in (1, 3, 50):
        found = list(predict(tiny_model.scorer, files, PredictOptions(batch=batch, workers=4)))
        assert [one.file for one in found] == files
        assert [one.verdict == "error" for one in found] == [file in bad for file in files]
        assert scores(one for one in found if not one.error) == pytest.approx(
            scores(predict(tiny_model.scorer, photos)), 1e-5
        )


def test_an_error_has_a_reason_and_neither_score_nor_threshold(tiny_model: FittedModel, tmp_path: Path) -> None:
    gone = ImageFile(tmp_path / "nut" / "gone.png", Path("gone.png"), "")
    assert list(predict(tiny_model.scorer, [gone])) == [Prediction(gone, "nut", None, None, "error", "no such file")]


def test_bf16_moves_scores_a_little_and_fp32_not_at_all(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    exact = scores(predict(tiny_model.scorer, photos))
    at_bf16 = around(record_of(tiny_model).at_precision("bf16"))
    rounded = scores(predict(at_bf16.scorer, photos))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)
    assert scores(predict(tiny_model.scorer, photos)) == exact


def test_no_files_give_no_predictions(tiny_model: FittedModel) -> None:
    assert list(predict(tiny_model.scorer, [])) == []


def test_the_first_result_comes_long_before_the_last_image_is_read(
    tiny_model: FittedModel, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Opened] = []
    decode = Opened.decoded

    def watched(file: Opened, *size: Any) -> np.ndarray:
        decoded.append(file)
        return decode(file, *size)

    monkeypatch.setattr(Opened, "decoded", watched)
    stream = predict(tiny_model.scorer, photos * 10, PredictOptions(batch=4, workers=1))
    assert next(stream).file == photos[0]
    assert 4 <= len(decoded) <= 2 * 4 + 4 * 1 + 8 + 1  # what is worked on and waits, and what is read ahead
    stream.close()  # type: ignore[attr-defined]
    assert len(decoded) < 30


def test_reading_ahead_keeps_the_order_and_stops_with_whoever_takes(photos: list[ImageFile]) -> None:
    paths = [file.path for file in photos]
    found = list(read_ahead(iter(paths), Wanted((32, 48)), workers=4))
    for path, one in zip(paths, found, strict=True):
        assert isinstance(one, Input)
        assert torch.equal(one.pixels, images.resize(images.read(path), (32, 48)))
        assert (one.box, one.picture) == (None, None)
    before = threading.active_count()
    stream = read_ahead(paths * 100, Wanted((32, 48)), workers=4)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


# ---- verdicts ----


@pytest.mark.parametrize(
    ("folder", "top", "verdict"),
    [("nut", 2.9, "good"), ("nut", 3.1, "anomalous"), ("bolt", 3.1, "good"), ("bolt", 4.1, "anomalous")],
)
def test_the_verdict_follows_the_threshold_of_the_images_class(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, top: float, verdict: str
) -> None:
    fixed_maps(monkeypatch, torch.full((64, 64), top))
    images.write(tmp_path / folder / "today" / "a.png", picture())
    (one,) = predict(tiny_model.scorer, images.find([tmp_path]))
    assert (one.class_name, one.verdict) == (folder, verdict)
    assert one.threshold == {"nut": 3.0, "bolt": 4.0}[folder]


def test_a_good_image_that_set_the_threshold_is_good_whatever_its_batch(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order move a score by some 1e-7 of itself: that is not a defect."""
    images.write(tmp_path / "nut" / "a.png", picture())
    for top in (3.0, 3.0 * (1 + 5e-7)):
        fixed_maps(monkeypatch, torch.full((64, 64), top))
        (one,) = predict(tiny_model.scorer, images.find([tmp_path]))
        assert one.verdict == "good"


def test_a_map_that_is_not_a_number_is_never_good(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_maps(monkeypatch, torch.full((64, 64), float("nan")))
    images.write(tmp_path / "a.png", picture())
    (one,) = predict(tiny_model.scorer, images.find([tmp_path]))
    assert one.verdict in ("anomalous", "error")


def test_without_a_threshold_images_are_scored_but_not_judged(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    expected = scores(predict(tiny_model.scorer, photos))
    found = list(predict(with_scores(tiny_model, {}).scorer, photos))
    assert {(one.verdict, one.threshold) for one in found} == {("uncalibrated", None)}
    assert scores(found) == expected


@pytest.mark.parametrize(
    ("top", "verdict"), [(1.9, "good"), (2.0, "good"), (2.1, "review"), (3.0, "review"), (3.1, "anomalous")]
)
def test_review_lies_between_its_threshold_and_that_of_anomalies(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: float, verdict: str
) -> None:
    """nut: half the good images lie above 2, and 3 % may lie above 3."""
    fixed_maps(monkeypatch, torch.full((64, 64), top))
    images.write(tmp_path / "nut" / "a.png", picture())
    (one,) = predict(tiny_model.scorer, images.find([tmp_path]), PredictOptions(review=0.5))
    assert (one.verdict, one.threshold) == (verdict, 3.0)


@pytest.mark.parametrize(("folder", "top", "expected"), [("nut", 2.5, 0.5), ("bolt", 2.5, 2 / 3), ("", 2.5, 2 / 3)])
def test_the_p_value_is_that_of_the_images_class_and_of_an_unknown_one_the_highest(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, top: float, expected: float
) -> None:
    fixed_maps(monkeypatch, torch.full((64, 64), top))
    images.write(tmp_path / folder / "a.png", picture())
    (one,) = predict(tiny_model.scorer, images.find([tmp_path]))
    assert one.p_value == pytest.approx(expected)


def test_scores_of_training_images_give_no_p_value(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    of_learnt = with_scores(tiny_model, {"nut": [1.0, 2.0, 3.0], "bolt": [2.0, 4.0]}, promising=False)
    assert {one.p_value for one in predict(of_learnt.scorer, photos[:2])} == {None}


# ---- regions ----


def test_regions_are_looked_for_where_asked_and_lie_in_the_pixels_of_the_image(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anomaly_map = torch.zeros(64, 64)
    anomaly_map[32:40, 16:24] = 5.0
    anomaly_map[0, 0] = 4.0
    fixed_maps(monkeypatch, anomaly_map)
    images.write(tmp_path / "nut" / "a.png", picture(0, 128, 320))
    files = images.find([tmp_path])
    (one,) = predict(tiny_model.scorer, files, PredictOptions(min_area=0))
    assert one.regions is not None
    assert [(found.box, found.area) for found in one.regions] == [((80, 64, 40, 16), 640), ((0, 0, 5, 2), 10)]
    assert one.picture is None
    (one,) = predict(tiny_model.scorer, files, PredictOptions(min_area=11))
    assert one.regions is not None
    assert (one.verdict, [found.area for found in one.regions]) == ("anomalous", [640])
    (one,) = predict(tiny_model.scorer, files)
    assert one.regions is None


def test_regions_of_a_letterboxed_image_leave_out_the_padding(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anomaly_map = torch.full((64, 64), 9.0)
    anomaly_map[16:48] = 0.0  # 40 × 80 pixels fill these rows, 1.25 a value
    anomaly_map[24:28, 32:40] = 5.0
    fixed_maps(monkeypatch, anomaly_map)
    images.write(tmp_path / "nut" / "a.png", picture(0, 40, 80))
    (one,) = predict(letterboxed(tiny_model).scorer, images.find([tmp_path]), PredictOptions(min_area=0))
    assert one.regions is not None
    assert [(found.box, found.area) for found in one.regions] == [((40, 10, 10, 5), 50)]


def test_without_a_threshold_regions_are_not_known(tiny_model: FittedModel, photos: list[ImageFile]) -> None:
    uncalibrated = with_scores(tiny_model, {}).scorer
    assert {one.regions for one in predict(uncalibrated, photos[:2], PredictOptions(min_area=0))} == {None}


# ---- classes ----


def file_below(given: str, relative: str) -> ImageFile:
    """A file that was found in a folder that was given."""
    return ImageFile(Path(given) / relative, Path(relative), given)


@pytest.mark.parametrize(
    ("given", "relative", "expected"),
    [
        ("line", "nut/a.png", "nut"),
        ("bolt", "nut/a.png", "nut"),
        ("line", "nut/today/bolt.png", "nut"),
        ("nut", "today/a.png", "nut"),
        ("line/nut", "a.png", "nut"),
        ("line", "screw/a.png", ""),
        ("line", "nuts/a.png", ""),
    ],
)
def test_the_class_is_the_nearest_folder_named_like_one(
    tiny_model: FittedModel, given: str, relative: str, expected: str
) -> None:
    assert product_of(file_below(given, relative), tiny_model.products) == expected


def test_a_folder_above_the_one_that_was_given_names_no_class(tiny_model: FittedModel, tmp_path: Path) -> None:
    """A line's folder may be called like a product of another line."""
    images.write(tmp_path / "nut" / "mixed" / "today" / "a.png", picture())
    for given, expected in (("nut/mixed", ""), ("nut/mixed/today", ""), ("nut", "nut"), ("", "nut")):
        (file,) = images.find([tmp_path / given])
        assert product_of(file, tiny_model.products) == expected, given


def test_the_folder_of_a_file_that_is_named_itself_names_its_class(tiny_model: FittedModel, tmp_path: Path) -> None:
    images.write(tmp_path / "nut" / "a.png", picture())
    images.write(tmp_path / "nut" / "today" / "b.png", picture())
    for path, expected in (("nut/a.png", "nut"), ("nut/today/b.png", "")):
        (file,) = images.find([tmp_path / path])
        assert product_of(file, tiny_model.products) == expected, path


def test_the_class_is_seen_from_inside_its_folder_too(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.write(tmp_path / "nut" / "a.png", picture())
    monkeypatch.chdir(tmp_path / "nut")
    for given in ("a.png", "."):
        (file,) = images.find([Path(given)])
        assert product_of(file, tiny_model.products) == "nut"


def test_the_only_class_there_is_needs_no_folder(tiny_model: FittedModel) -> None:
    only = with_products(tiny_model, tiny_model.products["nut"])
    assert product_of(file_below("anywhere", "bolt/a.png"), only.products) == "nut"


def test_a_class_that_is_named_overrides_the_folders(tiny_model: FittedModel, tmp_path: Path) -> None:
    images.write(tmp_path / "nut" / "a.png", picture())
    (one,) = predict(tiny_model.scorer, images.find([tmp_path]), PredictOptions(class_name="bolt"))
    assert (one.class_name, one.threshold) == ("bolt", 4.0)


# ---- letterbox ----


def letterboxed(model: FittedModel) -> FittedModel:
    return with_settings(model, letterbox=True)


def test_what_lies_in_the_padding_is_neither_scored_nor_shown(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anomaly_map = torch.full((64, 64), 9.0)
    anomaly_map[16:48] = torch.arange(32.0).view(32, 1) / 31  # 40 × 80 pixels fill these rows
    fixed_maps(monkeypatch, anomaly_map)
    images.write(tmp_path / "a.png", picture(0, 40, 80))
    (one,) = predict(letterboxed(tiny_model).scorer, images.find([tmp_path]), PredictOptions(maps=True))
    assert (one.score, one.verdict) == (1.0, "good")
    assert one.anomaly_map is not None
    assert np.array_equal(one.anomaly_map, anomaly_map[16:48].numpy())


def test_a_letterboxed_image_is_scaled_alike_in_both_directions(tiny_model: FittedModel, tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", picture(0, 100, 50))
    (one,) = predict(letterboxed(tiny_model).scorer, images.find([tmp_path]), PredictOptions(maps=True))
    assert one.anomaly_map is not None
    assert one.anomaly_map.shape == (64, 32)


def test_the_box_cuts_rows_and_columns() -> None:
    grid = torch.arange(20).view(4, 5)
    assert within(grid, (1, 2, 2, 3)).tolist() == [[7, 8, 9], [12, 13, 14]]
    assert within(grid, None) is grid


def test_an_image_keeps_its_own_mask_where_its_product_is_recognised_first(tiny_model: FittedModel) -> None:
    """Seen at the size and in the region of the product, but not outside the mask that came with the image."""
    own_mask, of_bolt = np.zeros((64, 64), bool), np.zeros((32, 32), bool)
    own_mask[:, :40], of_bolt[16:, :] = True, True
    image = prepared(np.full((64, 64, 3), 255, np.uint8), (64, 64), keep=True, region=own_mask)
    products = (Product("nut", (32, 64)), Product("bolt", (64, 64), region=of_bolt))
    preparation = with_products(tiny_model, *products).scorer.preparation
    nut, bolt = preparation.seen_as(image, "nut"), preparation.seen_as(image, "bolt")
    assert nut.inside is not None
    assert bolt.inside is not None
    assert (nut.inside.sum(), bolt.inside.sum()) == (32 * 40, 32 * 40)
    assert float(nut.pixels[:, :, 41:].max()) < 0.5
    assert float(bolt.pixels[:, :31].max()) < 0.5


# ---- a photo as no good one was taken ----


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (np.zeros((80, 96, 3), np.uint8), "darker than good photos"),
        (np.full((80, 96, 3), 255, np.uint8), "brighter than good photos"),
    ],
)
def test_a_photo_as_no_good_one_was_taken_is_for_review_and_says_why(
    tiny_model: FittedModel, failed: np.ndarray, said: str
) -> None:
    taken = [tiny_model.predict(picture(i), "nut").photo for i in range(5)]
    for limit, verdict in ((99.0, "review"), (-99.0, "anomalous")):  # its score says what it says
        model = with_scores(tiny_model, {"nut": [limit]}, photos=tuple(photo for photo in taken if photo))
        good, bad = model.predict([picture(2), failed], "nut")
        assert (good.verdict, good.warning) == ("good" if verdict == "review" else "anomalous", "")
        assert bad.verdict == verdict
        assert said in bad.warning


@pytest.mark.parametrize("side_by_side", [1, 3, 40])
def test_batches_that_are_judged_side_by_side_give_the_same_in_order(
    tiny_model: FittedModel, photos: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_by_side: int
) -> None:
    gone = ImageFile(tmp_path / "nut" / "gone.png", Path("gone.png"), "")
    files = [*photos, gone, *photos]
    monkeypatch.setattr(TorchScorer, "side_by_side", property(lambda scorer: 1))
    alone = list(predict(tiny_model.scorer, files))
    monkeypatch.setattr(TorchScorer, "side_by_side", property(lambda scorer: side_by_side))
    found = list(predict(tiny_model.scorer, files))
    assert [one.file for one in found] == files
    assert [one.error for one in found] == [one.error for one in alone]
    assert scores(one for one in found if not one.error) == pytest.approx(
        scores(one for one in alone if not one.error), rel=1e-5
    )
