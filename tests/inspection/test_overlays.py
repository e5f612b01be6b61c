import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.inspection import overlays as maps
from mambaad_cli.inspection.heatmap import Tile, three_figures
from mambaad_cli.inspection.overlays import MapOptions, colour_scale, output_paths, write_maps
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from tests.conftest import calibrated, picture, with_products, with_scores, with_settings


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def mapped(model: FittedModel, given: list[Path], output: Path, raw: str | None = None) -> dict[str, int]:
    files = images.find(given)
    predictions = predict(model.scorer, files, PredictOptions(maps=True))
    return dict(write_maps(predictions, files, model.scorer, output, MapOptions(raw)))


def put(top: Path, *paths: str) -> Path:
    for i, path in enumerate(paths):
        images.write(top / path, picture(i, 40 + i, 60))
    return top


# ---- what is written ----


def test_overlays_have_the_size_of_their_images_in_the_same_folders(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.jpg", "nut/b.png", "nut/deep/c.bmp", "bolt/b.tif")
    assert sum(mapped(tiny_model, [given], tmp_path / "out").values()) == 4
    assert names(tmp_path / "out") == ["a.png", "bolt/b.png", "contact_sheet.png", "nut/b.png", "nut/deep/c.png"]
    for path, source in (("a", "a.jpg"), ("nut/b", "nut/b.png"), ("nut/deep/c", "nut/deep/c.bmp")):
        overlay = images.read(tmp_path / "out" / f"{path}.png")
        assert overlay.shape == images.read(given / source).shape


def test_an_overlay_of_a_good_part_is_the_photo_itself_and_of_a_bad_one_is_not(
    tiny_model: FittedModel, tmp_path: Path
) -> None:
    given = put(tmp_path / "in", "a.png")
    for threshold, same in ((1e6, True), (1.0, False)):
        model = with_scores(tiny_model, {"nut": [0.99 * threshold, threshold]})
        counts = mapped(model, [given], tmp_path / "out")
        assert counts == {"good" if same else "anomalous": 1}
        assert np.array_equal(images.read(tmp_path / "out" / "a.png"), images.read(given / "a.png")) == same


def test_raw_npy_is_the_map_itself(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.png", "b.png")
    mapped(tiny_model, [given], tmp_path / "out", "npy")
    for one in predict(tiny_model.scorer, images.find([given]), PredictOptions(maps=True)):
        stored = np.load(tmp_path / "out" / one.file.path.with_suffix(".map.npy").name)
        assert one.anomaly_map is not None
        assert (stored.dtype, stored.shape) == (np.float32, (64, 64))
        assert np.allclose(stored, one.anomaly_map, rtol=1e-5)
        assert stored.max() == pytest.approx(one.score, rel=1e-5)


def test_raw_png_gives_the_map_back_through_the_threshold(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "nut/a.png", "bolt/a.png")
    mapped(tiny_model, [given], tmp_path / "out", "png")
    for one in predict(tiny_model.scorer, images.find([given]), PredictOptions(maps=True)):
        code = cv2.imread(str(tmp_path / "out" / one.class_name / "a.map.png"), cv2.IMREAD_UNCHANGED)
        assert code is not None
        assert code.dtype == np.uint16
        assert one.anomaly_map is not None
        assert one.threshold == {"nut": 3.0, "bolt": 4.0}[one.class_name]
        back = one.threshold + (code.astype(float) - 32768) / 16384 * one.threshold
        assert np.abs(back - one.anomaly_map).max() <= 0.51 * one.threshold / 16384 + 1e-4


def test_an_image_that_cannot_be_read_has_no_score_on_the_contact_sheet(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tile] = []
    monkeypatch.setattr(maps, "contact_sheet", lambda tiles: shown.extend(tiles) or np.zeros((4, 4, 3), np.uint8))
    put(tmp_path / "in", "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"not an image")
    mapped(tiny_model, [tmp_path / "in"], tmp_path / "out")
    assert [three_figures(one.score) for one in shown if one.title == "b.png"] == [""]
    assert all(three_figures(one.score) for one in shown if one.title == "a.png")


def test_without_raw_no_maps_are_written(tiny_model: FittedModel, tmp_path: Path) -> None:
    mapped(tiny_model, [put(tmp_path / "in", "a.png")], tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png", "contact_sheet.png"]


def test_the_map_of_a_letterboxed_image_covers_the_image_alone(tiny_model: FittedModel, tmp_path: Path) -> None:
    images.write(tmp_path / "in" / "a.png", picture(0, 40, 80))
    mapped(with_settings(tiny_model, letterbox=True), [tmp_path / "in"], tmp_path / "out", "npy")
    assert np.load(tmp_path / "out" / "a.map.npy").shape == (32, 64)
    assert images.read(tmp_path / "out" / "a.png").shape == (40, 80, 3)


def test_the_colours_of_a_class_start_at_its_median_and_turn_at_its_threshold(tiny_model: FittedModel) -> None:
    assert colour_scale(tiny_model.products, "nut") == (2.0, 3.0)
    assert colour_scale(tiny_model.products, "bolt") == (4.0, 4.0)


def test_without_a_threshold_there_is_no_scale_and_it_says_what_next(tiny_model: FittedModel, tmp_path: Path) -> None:
    with pytest.raises(MambaADError, match="run mambaad calibrate"):
        mapped(with_scores(tiny_model, {}), [put(tmp_path / "in", "a.png")], tmp_path / "out")


# ---- regions ----


def test_regions_are_framed_and_listed_an_image_a_line(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.png", "b.png", "nut/c.png")
    (given / "d.png").write_text("text")
    files = images.find([given])
    scorer = with_products(tiny_model, calibrated(tiny_model.products["nut"], [0.1, 0.2])).scorer
    plain = tmp_path / "plain"
    write_maps(predict(scorer, files, PredictOptions(maps=True)), files, scorer, plain)
    predictions = list(predict(scorer, files, PredictOptions(maps=True, min_area=0)))
    write_maps(predictions, files, scorer, tmp_path / "out", MapOptions(regions=True))
    assert set(names(tmp_path / "out")) - set(names(plain)) == {"regions.jsonl"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "regions.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(file.path) for file in files]
    for row, one in zip(rows, predictions, strict=True):
        assert (row["regions"] is None) == (one.verdict == "error")
        if one.regions is not None:
            assert [found["box"] for found in row["regions"]] == [list(found.box) for found in one.regions]
            assert len(one.regions) > 0
            path = one.file.relative.with_suffix(".png")
            framed, bare = images.read(tmp_path / "out" / path), images.read(plain / path)
            assert not np.array_equal(framed, bare)


def test_a_good_image_has_neither_regions_nor_frames(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.png")
    files = images.find([given])
    scorer = with_scores(tiny_model, {"nut": [1e6, 2e6]}).scorer
    predictions = predict(scorer, files, PredictOptions(maps=True, min_area=0))
    write_maps(predictions, files, scorer, tmp_path / "out", MapOptions(regions=True))
    assert np.array_equal(images.read(tmp_path / "out" / "a.png"), images.read(given / "a.png"))
    assert json.loads((tmp_path / "out" / "regions.jsonl").read_text())["regions"] == []


# ---- errors ----


def test_unreadable_images_get_a_tile_but_no_overlay_and_are_counted(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.png", "c.png")
    (given / "b.png").write_text("text")
    assert mapped(tiny_model, [given], tmp_path / "out")["error"] == 1
    assert names(tmp_path / "out") == ["a.png", "c.png", "contact_sheet.png"]


def test_images_that_are_all_unreadable_still_give_a_sheet(tiny_model: FittedModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert mapped(tiny_model, [tmp_path / "in"], tmp_path / "out") == {"error": 1}
    assert names(tmp_path / "out") == ["contact_sheet.png"]


def test_a_picture_of_any_kind_can_be_mapped(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = tmp_path / "in"
    images.write(given / "one.png", picture()[:1, :1])
    images.write(given / "wide.png", np.zeros((1, 3000, 3), np.uint8))
    images.write(given / "deep.png", picture()[..., 0].astype(np.uint16) * 257)
    mapped(tiny_model, [given], tmp_path / "out")
    assert [images.read(tmp_path / "out" / f"{name}.png").shape for name in ("one", "wide", "deep")] == [
        (1, 1, 3),
        (1, 3000, 3),
        (80, 96, 3),
    ]


# ---- the contact sheet ----


def plain(number: int, score: float, folder: Path) -> Prediction:
    """A prediction whose picture is one colour: its number."""
    colour = np.full((30, 30, 3), number, np.uint8)
    file = ImageFile(folder / f"{number}.png", Path(f"{number}.png"), "")
    return Prediction(file, "nut", score, 3.0, "good", "", np.zeros((64, 64), np.float32), colour)


def test_the_contact_sheet_shows_errors_first_and_then_the_worst(tiny_model: FittedModel, tmp_path: Path) -> None:
    predictions = [plain(number, score, tmp_path) for number, score in ((10, 0.5), (60, 2.5), (110, 1.5))]
    predictions.append(
        Prediction(predictions[0].file._replace(relative=Path("e.png")), "", None, None, "error", "gone")
    )
    write_maps(predictions, [one.file for one in predictions], tiny_model.scorer, tmp_path / "out")
    sheet = images.read(tmp_path / "out" / "contact_sheet.png")
    height, width = sheet.shape[:2]
    quarters = [sheet[:, : width // 2], sheet[:, width // 2 :]]
    middles = [
        int(half[row : row + height // 4, 90:130].reshape(-1, 3)[:, 0][60:].min())
        for row in (60, height // 2 + 60)
        for half in quarters
    ]
    assert middles == pytest.approx([64, 60, 110, 10], abs=3)


def test_many_images_are_spread_over_numbered_sheets(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mambaad_cli.inspection.overlays.TILES", 4)
    predictions = [plain(number, number / 100, tmp_path) for number in range(9)]
    write_maps(predictions, [one.file for one in predictions], tiny_model.scorer, tmp_path / "out")
    sheets = [name for name in names(tmp_path / "out") if name.startswith("contact")]
    assert sheets == ["contact_sheet.png", "contact_sheet_2.png", "contact_sheet_3.png"]


def test_overlays_are_written_as_they_come(tiny_model: FittedModel, tmp_path: Path) -> None:
    predictions = [plain(number, 1.0, tmp_path) for number in range(5)]

    def watched() -> Iterator[Prediction]:
        for i, one in enumerate(predictions):
            assert len(names(tmp_path / "out")) == i
            yield one

    (tmp_path / "out").mkdir()
    write_maps(watched(), [one.file for one in predictions], tiny_model.scorer, tmp_path / "out")


# ---- nothing is overwritten ----


def files_named(*paths: str) -> list[ImageFile]:
    return [ImageFile(Path("in") / path, Path(path), "") for path in paths]


@pytest.mark.parametrize(
    "paths",
    [
        ("a.jpg", "a.png", "a.bmp", "A.PNG", "a_2.png", "a_2_2.tif"),
        ("x/a.png", "y/a.png", "a.png"),
        ("contact_sheet.png", "contact_sheet.jpg", "Contact_Sheet.bmp", "contact_sheet_2.png"),
        ("a", "a.png", "a.b.png", "a.c.png", ".a.png"),
    ],
)
def test_two_images_never_share_an_output(paths: tuple[str, ...]) -> None:
    outputs = output_paths(files_named(*paths), Path("out"))
    assert len({str(path).casefold() for path in outputs} | {"out/contact_sheet.png"}) == len(paths) + 1
    assert [path.parent for path in outputs] == [Path("out") / Path(path).parent for path in paths]


def test_raw_maps_do_not_overwrite_overlays(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.jpg", "a.map.jpg")
    mapped(tiny_model, [given], tmp_path / "out", "png")
    assert len(names(tmp_path / "out")) == 2 + 2 + 1


def test_sheets_do_not_overwrite_overlays(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mambaad_cli.inspection.overlays.TILES", 1)
    given = put(tmp_path / "in", "contact_sheet.png", "a.png")
    mapped(tiny_model, [given], tmp_path / "out")
    assert len(names(tmp_path / "out")) == 2 + 2


@pytest.mark.parametrize(
    "paths",
    [("a.png",), ("a.jpg", "a.png"), ("a.jpg", "contact_sheet.png"), ("a.jpg", "contact_sheet.PNG"), ("x/a.png",)],
)
@pytest.mark.parametrize("through", ["same", "link"])
def test_an_image_is_never_overwritten(
    tiny_model: FittedModel, tmp_path: Path, paths: tuple[str, ...], through: str
) -> None:
    given = put(tmp_path / "in", *paths)
    (tmp_path / "link").symlink_to(given)
    before = {path: (given / path).read_bytes() for path in paths}
    with suppress(MambaADError):  # where an output would lie on an image
        mapped(tiny_model, [given], given if through == "same" else tmp_path / "link")
    assert {path: (given / path).read_bytes() for path in paths} == before


def test_an_output_on_an_image_is_refused_before_anything_is_written(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.jpg", "b.png")
    with pytest.raises(MambaADError, match=r"b\.png is one of the images: choose another --output folder$"):
        mapped(tiny_model, [given], given)
    assert names(given) == ["a.jpg", "b.png"]


def test_images_of_other_names_may_have_their_overlays_beside_them(tiny_model: FittedModel, tmp_path: Path) -> None:
    given = put(tmp_path / "in", "a.jpg", "b.bmp")
    mapped(tiny_model, [given], given)
    assert names(given) == ["a.jpg", "a.png", "b.bmp", "b.png", "contact_sheet.png"]
