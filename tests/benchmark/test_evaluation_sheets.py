"""The worst mistakes: which they are, and the sheets that show them."""

import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import evaluation as evaluate
from mambaad_cli.benchmark.evaluation import ImageResult
from mambaad_cli.benchmark.evaluation_sheets import check_sheets, worst, write_worst
from mambaad_cli.data import images
from mambaad_cli.inspection.heatmap import VERDICT_COLOURS
from tests.benchmark.brightness import brightness_model, grey
from tests.conftest import calibrated


def has_colour(sheet: np.ndarray, verdict: str) -> bool:
    return bool((sheet == VERDICT_COLOURS[verdict]).all(2).any())


def test_worst_are_the_mistakes_furthest_from_their_thresholds(tmp_path):
    samples = [
        *(grey(tmp_path, "good", value, "nut") for value in (10, 60, 90)),
        *(grey(tmp_path, "bent", value, "nut") for value in (30, 20, 80)),
        grey(tmp_path, "good", 150, "gear"),  # 1.5 thresholds, less than nut's 60
        grey(tmp_path, "bent", 40, "gear"),  # 0.4 thresholds, less than nut's 20
    ]
    model = brightness_model(scores={"nut": 40 / 255, "gear": 101 / 255})
    evaluation = evaluate.evaluate(model, samples)

    def values(results: list[ImageResult]) -> list[int]:
        return [int(one.sample.path.stem) for one in results]

    misses, alarms = worst(evaluation)
    assert (values(misses), values(alarms)) == ([40, 20, 30], [90, 60, 150])
    assert [values(some) for some in worst(evaluation, n=1)] == [[40], [90]]


def test_worst_sheets_show_the_mistakes_and_vanish_with_them(tmp_path):
    samples = [grey(tmp_path, "good", 60), grey(tmp_path, "bent", 20), grey(tmp_path, "bent", 30)]
    folder, model = tmp_path / "out", brightness_model(40)
    evaluation = evaluate.evaluate(model, samples)
    paths = write_worst(evaluation, model, folder)
    assert [path.name for path in paths] == ["worst_misses.png", "worst_false_alarms.png"]
    misses, alarms = map(images.read, paths)
    assert misses.shape[1] > 1.8 * alarms.shape[1]  # two pictures beside each other, and one
    assert has_colour(alarms, "anomalous")
    assert has_colour(misses, "good")
    assert not has_colour(misses, "anomalous")
    middle = alarms[alarms.shape[1] // 2, alarms.shape[1] // 2]
    assert middle[0] > middle[2]  # it glows: above the threshold
    assert (misses == 20).all(2).sum() > 200**2  # colder than half the good ones: the picture itself

    better = brightness_model(25)
    assert write_worst(evaluate.evaluate(better, samples[1:2]), better, folder) == paths[:1]
    assert sorted(path.name for path in folder.iterdir()) == ["worst_misses.png"]


def test_a_sheet_dims_what_lies_outside_the_region_of_interest(tmp_path):
    samples, model = [grey(tmp_path, "bent", 20)], brightness_model(200)
    evaluation = evaluate.evaluate(model, samples)
    (path,) = write_worst(evaluation, model, tmp_path / "whole")
    assert (images.read(path) == 20).all(2).sum() > 200**2
    right_half = np.arange(64) >= np.full((64, 1), 32)
    nut = calibrated(model.products["nut"].under(region=right_half), [200 / 255])
    model = model.with_record(model.record.with_products(nut))
    (path,) = write_worst(evaluation, model, tmp_path / "half")
    sheet = images.read(path)
    assert 0.4 * 200**2 < (sheet == 20).all(2).sum() < 0.6 * 224**2
    assert 0.4 * 200**2 < (sheet == 9).all(2).sum() < 0.6 * 224**2  # 45 % of 20


def test_a_file_of_the_user_is_never_removed_or_replaced(tmp_path):
    """Not even one that is called like a sheet."""
    folder, model = tmp_path / "out", brightness_model(40)
    images.write(folder / "worst_misses.png", np.full((8, 8, 3), 7, np.uint8))
    before = (folder / "worst_misses.png").read_bytes()
    without_misses = evaluate.evaluate(model, [grey(tmp_path, "good", 60), grey(tmp_path, "bent", 80)])
    with pytest.raises(MambaADError, match="worst_misses.png was not written by mambaad"):
        check_sheets(folder)
    write_worst(without_misses, model, folder)
    assert (folder / "worst_misses.png").read_bytes() == before
    with_misses = evaluate.evaluate(model, [grey(tmp_path, "bent", 20)])
    with pytest.raises(MambaADError, match="worst_misses.png was not written by mambaad"):
        write_worst(with_misses, model, folder)
    assert (folder / "worst_misses.png").read_bytes() == before


def test_sheets_of_an_earlier_evaluation_are_replaced(tmp_path):
    samples, model = [grey(tmp_path, "bent", 20), grey(tmp_path, "bent", 30)], brightness_model(40)
    (path,) = write_worst(evaluate.evaluate(model, samples), model, tmp_path / "out")
    first = path.read_bytes()
    check_sheets(tmp_path / "out")
    write_worst(evaluate.evaluate(model, samples[:1]), model, tmp_path / "out")
    assert path.read_bytes() != first
    check_sheets(tmp_path / "out")


def test_image_that_has_gone_since_is_left_out_of_the_sheet(tmp_path):
    samples, model = [grey(tmp_path, "bent", 20)], brightness_model(40)
    evaluation = evaluate.evaluate(model, samples)
    samples[0].path.unlink()
    assert write_worst(evaluation, model, tmp_path / "out") == []
