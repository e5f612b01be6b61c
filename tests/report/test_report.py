import base64
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.row_files import Row
from mambaad_cli.report import page, pictures
from mambaad_cli.report.collect import Collector, Shown, row_of, with_overlays, with_photos
from mambaad_cli.report.content import Entry, Report, VerdictCounts, link_to
from tests.conftest import around, calibrated, picture, record_of
from tests.report.rows import rows_of


def test_counts_and_yields_by_product_and_day() -> None:
    """By hand: an unreadable image counts as an image and is not judged; one for review has not passed."""
    report = Report("", [Entry(row) for row in rows_of(38)], [])
    assert [(one.product, one.day, one.passed, one.total) for one in report.counts] == [
        ("bolt", "2026-03-01", 9, 9),
        ("bolt", "2026-03-02", 3, 10),
        ("nut", "2026-03-01", 8, 10),
        ("nut", "2026-03-02", 0, 9),
    ]
    one = VerdictCounts("nut", "", {"good": 6, "review": 1, "anomalous": 1, "error": 2})
    assert (one.total, one.judged, one.yield_rate) == (10, 8, 0.75)
    assert [round(end, 3) for end in one.interval] == [0.349, 0.968]  # Clopper & Pearson for 6 of 8
    assert VerdictCounts("nut", "", {"uncalibrated": 3}).yield_rate is None
    assert VerdictCounts("nut", "", {"error": 3}).yield_rate is None


@pytest.mark.parametrize("n", [1, 500, 2000])
def test_pictures_stay_within_their_bytes(n: int) -> None:
    """The worst photo for a codec: noise."""
    limits = pictures.limits_for(n)
    noise = np.random.default_rng(0).integers(0, 256, (limits.side, limits.side, 3), np.uint8)
    assert len(base64.b64decode(pictures.encoded(noise, limits).partition(",")[2])) <= limits.bytes


def test_2000_images_with_photo_and_overlay_are_less_than_20_MB(tmp_path: Path) -> None:
    """Each of their pictures as large as it may be, and four regions each."""
    rows, limits = rows_of(2000), pictures.limits_for(2000)
    full = "data:image/webp;base64," + base64.b64encode(bytes(limits.bytes)).decode()
    own = pictures.Pictures(full, full, limits.side, limits.side, (1000, 1000))
    region = Region((1000, 2000, 100, 200), 20000, 12.345, (1050, 2100), (1050, 2100))
    path = tmp_path / "report.html"
    page.write(Report("", [Entry(replace(row, regions=(region,) * 4), own, row.path) for row in rows], []), path)
    assert 15e6 < path.stat().st_size < 20e6


def test_a_picture_is_that_of_its_photo(tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", picture(3, 300, 400))
    (own, gone) = pictures.of_files([tmp_path / "a.png", tmp_path / "none.png"], pictures.limits_for(2), workers=2)
    assert gone is None
    assert own is not None
    assert (own.width, own.height, own.shape) == (384, 288, (300, 400))
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(own.photo.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    wanted = pictures.thumbnail(picture(3, 300, 400), 384)
    assert np.abs(decoded[..., ::-1].astype(int) - wanted).mean() < 6


def test_links_are_relative_and_never_a_protocol() -> None:
    assert link_to("/data/in/a.png", Path("/data/out/report.html")) == "../in/a.png"
    assert link_to("javascript:alert(1)", Path("report.html")) == "javascript%3Aalert%281%29"
    assert link_to("in/\udcff?.png", Path("report.html")) == "in/%FF%3F.png"


def test_only_the_worst_have_pictures(tmp_path: Path) -> None:
    for i in range(4):
        images.write(tmp_path / f"{i}.png", picture(i))
    rows = [Row(str(tmp_path / f"{i}.png"), "nut", float(i), 2.0, "good") for i in range(4)]
    entries = with_photos(rows, tmp_path / "report.html", most=2, workers=1, link=True)
    assert [(entry.name, entry.pictures is not None) for entry in entries] == [
        ("3.png", True),
        ("2.png", True),
        ("1.png", False),
        ("0.png", False),
    ]
    assert entries[0].link == "3.png"


def pixels_of(uri: str) -> np.ndarray:
    """The picture (h, w, 3) RGB in a data URI."""
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1]


def test_overlays_dim_what_lies_outside_the_region_of_interest(tiny_model: FittedModel, goods: Path) -> None:
    """Left half: outside. The threshold is too high for any glow, so that only the region changes the photo."""
    (prediction, *_) = predictions(tiny_model, goods)
    assert prediction.anomaly_map is not None
    inside = np.ones(prediction.anomaly_map.shape, bool)
    inside[:, : inside.shape[1] // 2] = False
    prediction = prediction._replace(threshold=1e9, cold=1e8, inside=inside)
    shown = pictures.of_prediction(prediction, prediction.colour_scale, pictures.limits_for(1))
    assert shown is not None
    photo, overlay = pixels_of(shown.photo).astype(float), pixels_of(shown.overlay).astype(float)
    third = shown.width // 3
    assert overlay[:, :third].mean() < 0.6 * photo[:, :third].mean()
    assert overlay[:, -third:].mean() == pytest.approx(photo[:, -third:].mean(), rel=0.05)


def predictions(model: FittedModel, goods: Path) -> list[Prediction]:
    return list(predict(model.scorer, images.find([goods]), PredictOptions(maps=True, min_area=0)))


def test_a_collector_keeps_the_worst_and_passes_all_on(tiny_model: FittedModel, goods: Path, tmp_path: Path) -> None:
    found = predictions(tiny_model, goods)
    collector = Collector(len(found), most=3)
    assert list(collector.passing(found)) == found
    entries = collector.entries(tmp_path / "report.html", link=False)
    margins = [entry.row.margin for entry in entries]
    assert margins == sorted(margins, reverse=True)
    assert len(collector.kept) == 3
    assert sum(entry.pictures is not None for entry in entries) == 3
    assert all(entry.pictures.overlay for entry in entries if entry.pictures)


def test_overlays_come_from_the_model_and_a_score_that_moved_is_counted(
    tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    found = predictions(tiny_model, goods)
    rows = [Row(str(one.file.path), one.class_name, one.score, one.threshold, one.verdict) for one in found]
    rows[0] = Row(rows[0].path, rows[0].class_name, 2 * (rows[0].score or 1), rows[0].threshold, "anomalous")
    rows.append(Row(str(tmp_path / "gone.png"), "nut", 1.0, 3.0, "good"))
    asked = []

    def predicted(name: str, files: list[ImageFile]) -> list[Prediction]:
        asked.append(name)
        return list(predict(tiny_model.scorer, files, PredictOptions(name, maps=True, min_area=0)))

    entries, differ = with_overlays(rows, predicted, tmp_path / "report.html", Shown(pictures=100))
    assert differ == 1
    assert sorted(asked) == ["bolt", "nut"]
    assert [entry.name for entry in entries if entry.pictures is None] == ["gone.png"]
    assert all(entry.row.regions is not None for entry in entries if entry.pictures)


def test_the_worst_image_tells_why_its_first_regions_are_anomalous(
    tiny_model: FittedModel, goods: Path, tmp_path: Path
) -> None:
    products = [calibrated(product, (-9.0, -9.0)) for product in tiny_model.products.values()]
    strict = around(record_of(tiny_model).with_products(*products))

    def predicted(name: str, files: list[ImageFile]) -> list[Prediction]:
        return list(predict(strict.scorer, files, PredictOptions(name, maps=True, min_area=0, explainable=True)))

    rows = [row_of(one) for one in predictions(strict, goods)]
    entries, _ = with_overlays(rows, predicted, tmp_path / "report.html", Shown(pictures=3, explained=1))
    first, *others = [entry.pictures.explained for entry in entries if entry.pictures]
    assert pixels_of(first[0]).shape[1] > 1000
    assert others == [(), ()]
