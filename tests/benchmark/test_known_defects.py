"""What known defects teach, measured on a labelled dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mambaad_cli.benchmark import known_defects
from mambaad_cli.benchmark.known_defects import drawn, judged, outcome, photos_of
from mambaad_cli.data import images
from mambaad_cli.data.samples import Sample
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.teaching import taught
from mambaad_cli.inspection.torch_scorer import TorchScorer
from tests.conftest import around, calibrated

from tests.inspection.conftest import DETAILED, photos_of as pictures_of, two_products  # isort: skip
from tests.inspection.test_teaching import with_spot


@pytest.fixture(scope="module")
def record() -> ModelRecord:
    torch.manual_seed(0)
    return two_products(**DETAILED)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Nuts as in MVTec AD: 4 good ones, and 4 each of three kinds of defects."""
    colours = {"white": (250, 250, 250), "red": (250, 10, 10), "black": (5, 5, 5)}
    for i, photo in enumerate(pictures_of("nut", 4, start=60)):
        images.write(tmp_path / "nut" / "train" / "good" / f"{i}.png", photo)
        images.write(tmp_path / "nut" / "test" / "good" / f"{i}.png", photo)
        for kind, colour in colours.items():
            images.write(tmp_path / "nut" / "test" / kind / f"{i}.png", with_spot(photo, colour))
            mask = with_spot(np.zeros_like(photo), (255, 255, 255))
            images.write(tmp_path / "nut" / "ground_truth" / kind / f"{i}_mask.png", mask)
    return tmp_path


def test_each_photo_is_judged_as_the_model_judges_it(record: ModelRecord, dataset: Path) -> None:
    bad = [Sample(path, "nut", "test", "red", None) for path in sorted((dataset / "nut/test/red").iterdir())]
    photos = list(photos_of(TorchScorer(record), bad, "nut"))
    product = taught(record.products["nut"], [photo.lesson for photo in photos[:3]], 0.5).product
    scores = judged(record.network, product, photos)
    model = around(record.with_products(product))
    expected = [model.predict(photo.sample.path, "nut").score for photo in photos]
    assert scores.tolist() == pytest.approx(expected, rel=1e-2)  # the patches are kept in half precision


def test_known_defects_are_not_judged_and_kinds_are_apart(record: ModelRecord, dataset: Path) -> None:
    samples = [
        Sample(path, "nut", "test", path.parent.name, None) for path in sorted((dataset / "nut/test").glob("*/*.png"))
    ]
    photos = list(photos_of(TorchScorer(record), samples, "nut"))
    assert len(drawn(photos, 5, 0, kinds=False)) == 5
    two = drawn(photos, 6, 0, kinds=True)
    assert len({photo.sample.defect for photo in two}) == 2
    assert drawn([photo for photo in photos if photo.sample.defect in ("good", "red")], 5, 0, kinds=True) == []
    assert all(photo.sample.anomalous for photo in (*two, *drawn(photos, 9, 1, kinds=False)))


def test_an_outcome_is_counted_at_both_thresholds(record: ModelRecord) -> None:
    product = calibrated(record.products["nut"], [1.0, 2.0])
    found = outcome(product, np.array([0.5, 2.5, 3.0, 1.5]), np.array([False, False, True, True]))
    assert found == (0.75, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("kinds", [False, True])
def test_the_program_prints_a_row_for_each_number_and_the_mean(
    record: ModelRecord, dataset: Path, capsys: pytest.CaptureFixture[str], kinds: bool
) -> None:
    store.save(record, dataset / "m.safetensors")
    options = ["--known", "1,3", "--seeds", "1", *(["--kinds"] if kinds else [])]
    known_defects.main([str(dataset / "m.safetensors"), str(dataset), *options])
    rows = capsys.readouterr().out.splitlines()
    expected = [(name, count) for name in ("nut", "mean") for count in ("1", "3")]
    assert [tuple(row.strip("| ").split(" | ")[:2]) for row in rows[2:]] == expected
