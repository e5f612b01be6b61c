import cv2
import numpy as np
import pytest
import torch

from mambaad_cli.data.photo_statistics import PhotoStatistics, photo_statistics


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
