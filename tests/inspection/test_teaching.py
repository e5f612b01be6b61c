"""What a product is taught by verdicts: known defects are found, nothing gets worse unseen, and all can be undone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.inspection import store
from mambaad_cli.inspection.judged_photos import Judging
from mambaad_cli.inspection.lessons import Lesson
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.recalibrate import rejecting
from mambaad_cli.inspection.teaching import taught, taught_record, untaught
from mambaad_cli.inspection.torch_scorer import TorchScorer
from tests.conftest import around
from tests.inspection.conftest import DETAILED, photos_of, two_products

SPOT = (30, 40)  # row and column of a defect's centre


def with_spot(photo: np.ndarray, colour: tuple[int, int, int] = (90, 110, 100)) -> np.ndarray:
    photo = photo.copy()
    cv2.circle(photo, SPOT[::-1], 7, colour, -1)
    return photo


@pytest.fixture(scope="module")
def record() -> ModelRecord:
    torch.manual_seed(0)
    return two_products(**DETAILED)


@pytest.fixture
def spots(tmp_path: Path) -> list[ImageFile]:
    """Six nuts with the same kind of defect."""
    for i, photo in enumerate(photos_of("nut", 6, start=40)):
        images.write(tmp_path / "bad" / "nut" / "spot" / f"{i}.png", with_spot(photo))
    return images.find([tmp_path / "bad"])


def lessons_of(record: ModelRecord, files: list[ImageFile], good: bool = False, **choices: Any) -> list[Lesson]:
    judging = Judging(TorchScorer(record), **choices)
    return (judging.lessons(good=files) if good else judging.lessons(bad=files)).get("nut", [])


def lessons_in(record: ModelRecord) -> tuple[Lesson, ...]:
    taught = record.products["nut"].learnt.taught
    return taught.lessons if taught else ()


def score(record: ModelRecord, photo: np.ndarray) -> float:
    found = around(record).predict(photo, class_name="nut").score
    assert found is not None
    return found


def test_known_defects_raise_the_scores_of_their_like_and_hardly_those_of_good_parts(record: ModelRecord) -> None:
    """Defects that differ from good patches in one direction; each is judged by classifiers that do not know it."""
    nut = record.products["nut"]
    lectured = taught(nut, alike_in_one_direction(nut, 6), 0.5)
    rises = [row.after - row.before for row in lectured.judged]
    hardest = nut.learnt.hardest
    assert hardest is not None
    usual = np.subtract(lectured.product.scores, hardest.scores)
    assert lectured.weight > 0
    assert usual.min() >= 0  # it only adds
    assert min(rises) > 3 * max(np.median(usual), 0.01)
    assert lectured.found(before=False) >= lectured.found(before=True)


def alike_in_one_direction(product: Product, count: int, kind: str = "") -> list[Lesson]:
    hardest = product.learnt.hardest
    assert hardest is not None
    directions = [memory.whitening.inverse()[0] * 8 for memory in product.learnt.memories]
    return [
        Lesson(
            f"{kind}{i}.png",
            f"{kind}{i}",
            False,
            tuple(view[i % len(view)] + step for view, step in zip(hardest.patches, directions, strict=True)),
            float(np.median(hardest.scores)),
            kind,
        )
        for i in range(count)
    ]


def test_a_weight_that_would_hide_other_kinds_of_defects_is_not_taken(record: ModelRecord) -> None:
    """Good images that look like the one kind: the more it counts, the less the other stands out."""
    nut = record.products["nut"]
    hardest = nut.learnt.hardest
    assert hardest is not None
    scratches = alike_in_one_direction(nut, 4, "scratch")
    spots = [
        replace(one, digest=f"spot{i}", kind="spot", score=max(hardest.scores) + 0.1,
                patches=tuple(view[i] for view in hardest.patches))
        for i, one in enumerate(scratches)
    ]  # fmt: skip
    lectured = taught(nut, [*scratches, *spots], 0.5)
    assert lectured.weight in (0.0, 0.25, 0.5, 1.0)
    good = np.asarray(lectured.product.scores)
    unseen = [row.before for row in lectured.judged if row.lesson.kind == "spot"]
    assert np.mean(np.less.outer(good, unseen)) >= 1 - 0.01 - 1e-9


def test_each_known_defect_is_judged_without_itself_and_its_copies(record: ModelRecord, spots: list[ImageFile]) -> None:
    """A defect like no other, taught twice, would find itself."""
    lesson = lessons_of(record, spots)[0]
    odd = replace(lesson, patches=tuple(view + 40.0 for view in lesson.patches))
    alone = taught(record.products["nut"], [odd, replace(odd, name="again")], 0.5)
    assert [row.after for row in alone.judged] == [row.before for row in alone.judged]


def test_the_threshold_is_set_anew_from_good_images_that_the_classifier_does_not_know(
    record: ModelRecord, spots: list[ImageFile]
) -> None:
    nut = taught_record(record, {"nut": lessons_of(record, spots)})[0].products["nut"]
    assert nut.calibration is not None
    assert nut.untaught == record.products["nut"].calibration
    hardest = record.products["nut"].learnt.hardest
    assert hardest is not None
    assert len(nut.scores) == len(hardest.scores)
    assert all(after >= before for after, before in zip(nut.scores, hardest.scores, strict=True))
    assert not nut.calibration.new_photos


def test_all_is_undone_and_a_part_of_it_too(record: ModelRecord, spots: list[ImageFile], tmp_path: Path) -> None:
    for i, photo in enumerate(photos_of("nut", 2, start=90)):
        images.write(tmp_path / "good" / "nut" / f"{i}.png", with_spot(photo, (255, 0, 0)))
    bad, good = lessons_of(record, spots), lessons_of(record, images.find([tmp_path / "good"]), good=True)
    both, _ = taught_record(record, {"nut": [*bad, *good]})
    back, _ = taught_record(both, {}, [lesson.name for lesson in (*bad, *good)])
    before, again = record.products["nut"], back.products["nut"]
    assert (again.learnt.taught, again.learnt.known, again.untaught) == (None, None, None)
    assert again.calibration == before.calibration
    for memory, other in zip(again.learnt.memories, before.learnt.memories, strict=True):
        assert torch.equal(memory.patches, other.patches)
        torch.testing.assert_close(memory.spacing, other.spacing)
    part, _ = taught_record(both, {}, [lesson.name for lesson in good])
    only, _ = taught_record(record, {"nut": bad})
    assert part.products["nut"].scores == pytest.approx(only.products["nut"].scores)
    with pytest.raises(MambaADError, match=r"elsewhere\.png was never taught"):
        taught_record(both, {}, ["elsewhere.png"])


def test_a_part_rejected_by_mistake_is_known_afterwards_and_counts_for_the_threshold(
    record: ModelRecord, tmp_path: Path
) -> None:
    """A mark that good parts may have."""
    photos = [with_spot(photo, (255, 0, 0)) for photo in photos_of("nut", 3, start=90)]
    images.write(tmp_path / "good" / "nut" / "0.png", photos[0])
    good = lessons_of(record, images.find([tmp_path / "good"]), good=True)
    after, _ = taught_record(record, {"nut": good})
    assert score(after, photos[0]) < score(record, photos[0])
    nut = after.products["nut"]
    assert nut.scores[-1] == good[0].score
    assert (nut.threshold or 0.0) >= (record.products["nut"].threshold or 0.0)
    assert len(nut.learnt.memories[0].patches) > len(record.products["nut"].learnt.memories[0].patches)


def test_a_model_is_the_same_after_its_file_was_read(
    record: ModelRecord, spots: list[ImageFile], tmp_path: Path
) -> None:
    after, _ = taught_record(record, {"nut": lessons_of(record, spots)})
    store.save(after, tmp_path / "m.safetensors")
    read = store.load(tmp_path / "m.safetensors")
    photo = with_spot(photos_of("nut", 1, start=60)[0])
    assert score(read, photo) == pytest.approx(score(after, photo), rel=1e-3)
    assert read.products["nut"].calibration == after.products["nut"].calibration
    told = [replace(one, patches=()).__dict__ for one in lessons_in(read)]
    assert told == [replace(one, patches=()).__dict__ for one in lessons_in(after)]
    fewer, lectured = taught_record(read, {}, [lessons_in(read)[0].name])
    assert len(lessons_in(fewer)) == len(lectured["nut"].judged) == len(told) - 1 > 1


def test_at_another_size_nothing_is_held_against_the_scores_of_the_first(
    record: ModelRecord, spots: list[ImageFile]
) -> None:
    larger = record.at_size((96, 96))
    assert larger.products["nut"].learnt.hardest is None
    again = replace(larger.products["nut"], calibration=record.products["nut"].calibration)
    with pytest.raises(MambaADError, match="nut: the model keeps no good patches"):
        taught_record(larger.with_products(again), {"nut": lessons_of(record, spots)})
    nut = record.products["nut"]
    assert nut.under(nut.size).learnt.hardest is nut.learnt.hardest
    uncalibrated = replace(nut, calibration=None)
    assert uncalibrated.under(nut.size).learnt.hardest is nut.learnt.hardest
    assert uncalibrated.under((96, 96)).learnt.hardest is None


def test_a_product_that_was_taught_is_not_calibrated_at_another_size(
    record: ModelRecord, spots: list[ImageFile], tmp_path: Path
) -> None:
    """Its file could not hold the lessons, whose scores are of the first size."""
    after, _ = taught_record(record, {"nut": lessons_of(record, spots)})
    for i, photo in enumerate(photos_of("nut", 3, start=60)):
        images.write(tmp_path / "more" / "nut" / f"{i}.png", photo)
    with pytest.raises(MambaADError, match="nut was taught by verdicts at another size or region: forget them first"):
        around(after.at_size((96, 96))).calibrate(tmp_path / "more")
    around(record.at_size((96, 96))).calibrate(tmp_path / "more")
    same = around(after)
    same.calibrate(tmp_path / "more")
    assert lessons_in(same.fitted.record) if same.fitted else False


def test_the_share_that_may_be_rejected_stays_when_more_is_learnt_or_all_is_forgotten(
    record: ModelRecord, spots: list[ImageFile]
) -> None:
    lessons = lessons_of(record, spots)
    after = rejecting(taught_record(record, {"nut": lessons[:-1]})[0], 0.2)
    more, _ = taught_record(after, {"nut": lessons[-1:]})
    none, _ = taught_record(after, {}, [lesson.name for lesson in lessons[:-1]])
    for changed in (after, more, none):
        calibration = changed.products["nut"].calibration
        assert calibration is not None
        assert calibration.max_false_reject == 0.2
    assert record.products["bolt"].untaught is none.products["bolt"].untaught is None


def test_without_what_it_could_be_held_against_nothing_is_taught(record: ModelRecord, spots: list[ImageFile]) -> None:
    nut = record.products["nut"]
    poor = record.with_products(replace(nut, learnt=replace(nut.learnt, hardest=None)))
    with pytest.raises(MambaADError, match="nut: the model keeps no good patches"):
        taught_record(poor, {"nut": lessons_of(record, spots)})


def test_a_model_with_tiles_is_taught_nothing_and_can_forget(rich_record: ModelRecord) -> None:
    """Lessons are scored by the map of the whole photo, its threshold by that of the tiles too."""
    nut, known = rich_record.products["nut"], lessons_in(rich_record)
    with pytest.raises(MambaADError, match="nut: a model with tiles learns no verdicts: fit without --tiles"):
        taught_record(rich_record.with_products(untaught(nut)), {"nut": known})
    after, _ = taught_record(rich_record, {}, [lesson.name for lesson in known])
    assert after.products["nut"].calibration == nut.untaught


# ---- photos that teach nothing ----


def complaints(record: ModelRecord, folder: Path, masks: Path | None = None) -> list[str]:
    said: list[str] = []

    def on_left_out(file: ImageFile, why: str) -> None:
        said.append(f"{file.path.name}: {why}")

    lessons_of(record, images.find([folder]), masks=masks and MaskFolder(masks), on_left_out=on_left_out)
    return said


def test_a_photo_that_teaches_nothing_is_one_line(record: ModelRecord, tmp_path: Path) -> None:
    images.write(tmp_path / "bad" / "nut" / "usual.png", photos_of("nut", 8)[3])  # the model learnt from it
    (tmp_path / "bad" / "nut" / "broken.png").write_bytes(b"no picture")
    said = complaints(record, tmp_path / "bad")
    assert len(said) == 2
    assert "usual.png: shows nothing unusual: mark its defect, with --masks" in said


def test_a_mask_says_where_the_defect_is(record: ModelRecord, tmp_path: Path) -> None:
    photo = with_spot(photos_of("nut", 1, start=40)[0])
    for name in ("marked", "empty"):
        images.write(tmp_path / "bad" / "nut" / f"{name}.png", photo)
        mask = np.zeros(photo.shape, np.uint8)
        if name == "marked":
            cv2.circle(mask, SPOT[::-1], 7, (255, 255, 255), -1)
        images.write(tmp_path / "masks" / f"{name}_mask.png", mask)
    assert complaints(record, tmp_path / "bad", tmp_path / "masks") == ["empty.png: its mask marks nothing"]
    (lesson,) = lessons_of(record, images.find([tmp_path / "bad"]), masks=MaskFolder(tmp_path / "masks"))
    (whole,) = lessons_of(record, images.find([tmp_path / "bad" / "nut" / "marked.png"]), class_name="nut")
    assert 0 < len(lesson.patches[0]) < len(whole.patches[0])


def test_a_photo_is_not_both_good_and_bad(record: ModelRecord, spots: list[ImageFile]) -> None:
    bad = lessons_of(record, spots[:1])
    good = lessons_of(record, spots[:1], good=True)
    with pytest.raises(MambaADError, match="is both good and bad"):
        taught_record(record, {"nut": [*bad, *good]})
    taught_bad, _ = taught_record(record, {"nut": bad})
    with pytest.raises(MambaADError, match="is both good and bad"):
        taught_record(taught_bad, {"nut": good})


def test_a_product_that_was_not_taught_stays_as_it_is(record: ModelRecord, spots: list[ImageFile]) -> None:
    after, lectured = taught_record(record, {"nut": lessons_of(record, spots)})
    assert list(lectured) == ["nut"]
    assert after.products["bolt"] is record.products["bolt"]
    assert untaught(record.products["bolt"]) is record.products["bolt"]
