"""Masks are read as they are, and no defect is lost when they are scaled."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data.datasets import Sample, load
from mambaad_cli.data.masks import mask_files, read_mask, resize_mask
from tests.data.image_files import encoded, png, saved
from tests.data.trees import write

# Masks and labels


def a_sample(mask: Path | None, defect: str = "cut") -> Sample:
    return Sample(Path("image.png"), "nut", "test", defect, mask)


def test_a_mask_is_what_is_above_zero(tmp_path):
    levels = np.array([[0, 1, 2], [127, 255, 0]], np.uint8)
    expected = [[False, True, True], [True, True, False]]
    assert read_mask(a_sample(write(tmp_path / "grey.png", levels)), (2, 3)).tolist() == expected
    deep = write(tmp_path / "deep.png", levels.astype(np.uint16))
    assert read_mask(a_sample(deep), (2, 3)).tolist() == expected
    faint_blue = np.dstack([levels.clip(0, 1), 0 * levels, 0 * levels])
    assert read_mask(a_sample(write(tmp_path / "colour.png", faint_blue)), (2, 3)).tolist() == expected
    opaque = np.dstack([faint_blue, np.full_like(levels, 255)])
    assert read_mask(a_sample(write(tmp_path / "alpha.png", opaque)), (2, 3)).tolist() == expected


def test_a_good_sample_has_an_empty_mask():
    mask = read_mask(a_sample(None, "good"), (3, 5))
    assert mask.shape == (3, 5)
    assert mask.dtype == bool
    assert not mask.any()


def test_an_anomalous_sample_without_mask_has_no_pixels_to_compare():
    with pytest.raises(MambaADError, match=r"image\.png is anomalous and has no mask"):
        read_mask(a_sample(None), (3, 5))


def test_a_mask_of_another_size_names_both_files_and_sizes(tmp_path):
    mask = write(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(MambaADError, match=r"m\.png is 6×4 px, its image image\.png 5×3: "):
        read_mask(a_sample(mask), (3, 5))


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_mask_that_cannot_be_read_is_named(tmp_path, content):
    mask = tmp_path / "m.png"
    if content is not None:
        mask.write_bytes(content)
    with pytest.raises(MambaADError, match=r"cannot read mask .*m\.png"):
        read_mask(a_sample(mask), (3, 5))


def test_a_3x3_defect_in_1024_stays_a_defect_at_every_place_and_size(tmp_path):
    pixels = np.zeros((1024, 1024), np.uint8)
    pixels[401:404, 700:703] = 255
    write(tmp_path / "test/cut/0.png", pixels)
    write(tmp_path / "ground_truth/cut/0_mask.png", pixels)
    write(tmp_path / "train/good/0.png", pixels)
    sample = load(tmp_path)[-1]
    assert sample.anomalous
    assert resize_mask(read_mask(sample, (1024, 1024)), (256, 256)).sum() == 1
    for top in range(500, 516):
        for side in (16, 100, 256):
            mask = np.zeros((1024, 1024), bool)
            mask[top : top + 3, 3 * top - 1000 : 3 * top - 997] = True
            y, x = np.nonzero(resize_mask(mask, (side, side)))
            assert 1 <= len(y) <= 4
            assert (np.abs(y - top * side // 1024) <= 1).all()
            assert (np.abs(x - (3 * top - 1000) * side // 1024) <= 1).all()


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (7, 31), (64, 48), (100, 90)])
def test_masks_without_small_regions_resize_as_nearest_does(size):
    mask = np.zeros((64, 48), bool)
    mask[3:30, 5:40] = True
    mask[40:60, 20:30] = True
    nearest = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")
    assert (resize_mask(mask, size) == (nearest[0, 0].numpy() > 0)).all()


def test_every_region_of_a_resized_mask_is_kept_and_none_is_invented():
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = generator.random((40, 56)) < 0.02
        mask[5:15, 30:50] |= generator.random() < 0.5
        resized = resize_mask(mask, (10, 14))
        touched = mask.reshape(10, 4, 14, 4).any(axis=(1, 3))
        assert not (resized & ~touched).any()
        count, regions = cv2.connectedComponents(mask.astype(np.uint8))
        for region in range(1, count):
            y, x = np.nonzero(regions == region)
            assert resized[y // 4, x // 4].any()


# Several masks, and masks of lossy files


def test_a_folder_of_masks_marks_what_any_of_them_marks_whatever_its_value(tmp_path):
    left, right = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    left[:, :2], right[1, 4:] = 239, 1
    files = [write(tmp_path / "000/000.png", left), write(tmp_path / "000/001.png", right)]
    sample = a_sample(tmp_path / "000")
    assert read_mask(sample, (4, 6)).tolist() == ((left > 0) | (right > 0)).tolist()
    assert mask_files(sample) == files
    write(tmp_path / "000/002.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(MambaADError, match=r"002\.png is 3×3 px"):
        read_mask(sample, (4, 6))


def drawn(values: tuple[int, ...], shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A mask of discs, one for each value."""
    mask = np.zeros(shape, np.uint8)
    for i, value in enumerate(values):
        cv2.circle(mask, (25 + 50 * i, 40 + 20 * i), 17, value, -1)
    return mask


@pytest.mark.parametrize("values", [(255,), (255, 246, 239)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 75}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("WEBP", {"quality": 75}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_a_mask_of_lossy_compression_marks_the_defect_and_no_crumbs_around_it(tmp_path, values, kind, options):
    expected = drawn(values) > 0
    path = saved(tmp_path / "m", encoded(drawn(values), kind, **options))
    stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert ((stored > 0) != expected).sum() > 100  # that is what any value but 0 would mark
    assert (read_mask(a_sample(path), (120, 160)) != expected).sum() <= 12 * len(values)


@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (255, 246, 239), (128, 1)])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_mask_marks_every_value_but_0(tmp_path, values, kind, options):
    path = saved(tmp_path / "m", encoded(drawn(values), kind, **options))
    assert np.array_equal(read_mask(a_sample(path), (120, 160)), drawn(values) > 0)


def test_a_mask_that_claims_too_many_pixels_is_refused_unread(tmp_path):
    with pytest.raises(MambaADError, match=r"cannot read mask .*claims 60000×60000"):
        read_mask(a_sample(saved(tmp_path / "m.png", png(60000, 60000, 8, 0, b""))), (4, 4))
