import cv2
import numpy as np
import pytest
import torch

from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics, unlike


def picture() -> np.ndarray:
    """Coloured blocks with sharp edges, uint8 RGB."""
    blocks = np.random.default_rng(0).integers(20, 236, (8, 10, 3), np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)


def statistics_of(image: np.ndarray) -> PhotoStatistics:
    return photo_statistics(torch.from_numpy(image).permute(2, 0, 1) / 255)


def test_brightness_and_contrast_are_those_of_the_grey_image() -> None:
    grey = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY) / 255
    found = statistics_of(picture())
    assert found.brightness == pytest.approx(grey.mean(), abs=0.002)
    assert found.contrast == pytest.approx(grey.std(), abs=0.002)


def test_a_darker_lamp_is_seen_in_brightness_and_not_in_sharpness() -> None:
    bright, dark = statistics_of(picture()), statistics_of((picture() * 0.8).astype(np.uint8))
    assert dark.brightness == pytest.approx(0.8 * bright.brightness, rel=0.02)
    assert dark.sharpness == pytest.approx(bright.sharpness, rel=0.02)


def test_a_blurred_photo_is_less_sharp_and_as_bright() -> None:
    sharp, blurred = statistics_of(picture()), statistics_of(cv2.GaussianBlur(picture(), (0, 0), 2))
    assert blurred.sharpness < 0.8 * sharp.sharpness
    assert blurred.brightness == pytest.approx(sharp.brightness, abs=0.01)


# ---- what no good photo shows ----


def good_photos() -> list[PhotoStatistics]:
    """Of parts that differ a little, under a lamp that flickers a little."""
    rng = np.random.default_rng(1)
    photos = [picture().astype(float) * rng.uniform(0.97, 1.03) + rng.normal(0, 2, (80, 100, 3)) for _ in range(20)]
    return [statistics_of(photo.clip(0, 255).astype(np.uint8)) for photo in photos]


def half_dark(image: np.ndarray, side: slice) -> np.ndarray:
    dark = image.copy()
    dark[:, side] //= 5
    return dark


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (np.zeros((80, 100, 3), np.uint8), "darker than good photos"),
        (np.full((80, 100, 3), 255, np.uint8), "brighter than good photos"),
        (cv2.GaussianBlur(picture(), (0, 0), 2), "less sharp than good photos"),
        (half_dark(picture(), slice(50)), "darker on its left"),
        (half_dark(picture(), slice(50, None)), "darker on its right"),
        (half_dark(picture().transpose(1, 0, 2), slice(40)).transpose(1, 0, 2), "darker at its top"),
    ],
)
def test_what_a_failed_camera_gives_is_told(failed: np.ndarray, said: str) -> None:
    assert said in unlike(statistics_of(failed), good_photos())


def test_another_good_photo_is_like_them() -> None:
    good = good_photos()
    assert [unlike(photo, good[:10]) for photo in good[10:]] == [""] * 10


def test_of_what_earlier_models_do_not_keep_nothing_is_said() -> None:
    good = [PhotoStatistics(*photo[:3]) for photo in good_photos()]
    failed = good[0]._replace(focus=0.01, left_right=5.0, top_bottom=-5.0)
    assert unlike(failed, good) == ""
    assert unlike(failed, good_photos()) != ""
    assert unlike(failed, []) == ""
