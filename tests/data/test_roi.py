"""Regions of interest: how they are typed, drawn and scaled, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import at_size, cold_outside, prepared, within
from mambaad_cli.data.roi import BLANK, MaskFolder, Wish, blanked, decoded, encoded, parse, regions_of_interest, scaled
from tests.data.image_files import png

PHOTO = (40, 80)  # height, width


def mask_file(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    return path


def region(*inside: str, ignore: tuple[str, ...] = ()) -> np.ndarray:
    wishes = [parse(text) for text in inside], [parse(text) for text in ignore]
    return regions_of_interest(*wishes, {"nut": PHOTO})["nut"]


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    expected = np.zeros(PHOTO, bool)
    expected[5:25, 10:40] = True
    np.testing.assert_array_equal(region("10,5,30,20"), expected)
    np.testing.assert_array_equal(region("12.5%,12.5%,37.5%,50%"), expected)
    np.testing.assert_array_equal(region("10,5 40,5 40,25 10,25"), expected)
    np.testing.assert_array_equal(region("10,5;40,5;40,25;10,25"), expected)


def test_a_triangle_covers_half_of_its_rectangle() -> None:
    assert region("0,0 80,0 0,40").mean() == pytest.approx(0.5, abs=0.02)


def test_a_region_that_sticks_out_is_cut_off() -> None:
    assert region("70,-10,100,100").sum() == 10 * 40


def test_regions_add_up_and_what_is_ignored_is_taken_away() -> None:
    found = region("0,0,10,40", "70,0,10,40", ignore=("0,0,100%,10",))
    assert found.sum() == 2 * 10 * 30
    assert region(ignore=("0,0,50%,100%",)).sum() == 40 * 40


def test_a_region_may_be_of_one_product_and_the_others_have_none() -> None:
    found = regions_of_interest([parse("nut=0,0,10,10")], [], {"nut": PHOTO, "bolt": PHOTO})
    assert list(found) == ["nut"]


def test_a_polygon_may_be_longer_than_the_name_of_a_file() -> None:
    corners = " ".join(f"{x},{x * x % 97}" for x in range(100))
    assert len(corners) > 255
    assert len(parse(corners).corners) == 100
    assert parse(f"nut={corners}").product == "nut"
    with pytest.raises(MambaADError, match="expected x,y,width,height"):
        parse("x" * 300)


def test_a_mask_image_counts_where_it_is_white_and_a_folder_holds_one_for_each_product(tmp_path: Path) -> None:
    mask = np.zeros(PHOTO, bool)
    mask[3:9, 4:20] = True
    mask_file(tmp_path / "nut.png", mask)
    np.testing.assert_array_equal(region(str(tmp_path / "nut.png")), mask)
    found = regions_of_interest([parse(str(tmp_path))], [], {"nut": PHOTO, "bolt": PHOTO})
    np.testing.assert_array_equal(found["nut"], mask)
    assert "bolt" not in found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,2,3", "three or more corners"),
        ("0,0 10,10", "three or more corners"),
        ("a,b,c,d", "expected x,y,width,height"),
        ("0,0,nan,10", "expected"),
        ("", "three or more corners"),
        ("100,0,50,10", "outside photos of 80×40"),
        ("0,0 10,10 20,20", "encloses no area"),
        ("0,0,0,10", "encloses no area"),
        ("bolt=0,0,5,5", "the products are nut"),
        ("no_such_mask.png", "no such file"),
    ],
)
def test_what_is_no_region_is_one_line(text: str, why: str) -> None:
    with pytest.raises((MambaADError, ImageError), match=why) as error:
        region(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "fill", "why"), [((10, 10), 1, "10×10 pixels"), (PHOTO, 0, "black all over")])
def test_a_mask_that_does_not_fit_is_one_line(tmp_path: Path, size: tuple[int, int], fill: int, why: str) -> None:
    path = mask_file(tmp_path / "nut.png", np.full(size, fill, bool))
    with pytest.raises(MambaADError, match=why):
        region(str(path))
    with pytest.raises(ImageError, match=why):
        MaskFolder(tmp_path).of(Path("somewhere/nut.jpg"), PHOTO)


def test_all_of_a_region_ignored_is_one_line() -> None:
    with pytest.raises(MambaADError, match="nothing is left"):
        region("0,0,10,10", ignore=("0,0,20,20",))


def test_a_photo_without_a_mask_in_the_folder_is_named(tmp_path: Path) -> None:
    mask_file(tmp_path / "1.png", np.ones(PHOTO, bool))
    with pytest.raises(ImageError, match="no mask named 2"):
        MaskFolder(tmp_path).of(Path("2.jpg"), PHOTO)


def test_nothing_outside_reaches_the_model() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*PHOTO, 3), np.uint8)
    other, mask = photo.copy(), region("20,10,30,20")
    other[~mask] = 255
    for letterbox in (False, True):
        one = prepared(photo, (32, 32), letterbox, region=mask)
        torch.testing.assert_close(one.pixels, prepared(other, (32, 32), letterbox, region=mask).pixels, rtol=0, atol=0)
        assert one.inside is not None
        assert one.inside.float().mean() == pytest.approx(mask.mean() * (0.5 if letterbox else 1), rel=0.25)
    assert tuple(blanked(photo, mask)[0, 0]) == BLANK


def test_a_map_is_cold_outside_its_region() -> None:
    maps = torch.arange(16.0).view(1, 4, 4)
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 1:3] = True
    found = cold_outside(maps, inside)
    assert (found[0][inside].tolist(), float(found[0][~inside].unique())) == ([5, 6, 9, 10], 5)
    torch.testing.assert_close(within(maps[0], None, inside), found[0])


def test_a_region_that_is_small_in_a_coarse_map_does_not_vanish() -> None:
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[30, 40] = True
    assert at_size(inside, (4, 4)).nonzero().tolist() == [[1, 2]]


def test_masks_survive_their_file_and_scaling() -> None:
    mask = region("20,10,30,20")
    np.testing.assert_array_equal(decoded(encoded(mask)), mask)
    np.testing.assert_array_equal(scaled(scaled(mask, (80, 160)), PHOTO), mask)


def test_a_wish_of_a_folder_speaks_of_the_products_in_it(tmp_path: Path) -> None:
    mask_file(tmp_path / "nut.png", np.ones(PHOTO, bool))
    wish = parse(str(tmp_path))
    assert wish == Wish(None, (), tmp_path)
    assert (wish.of("nut"), wish.of("bolt")) == (True, False)


# A mask for each photo, where photos of several products have the same names


def numbered(folder: Path, *names: str) -> MaskFolder:
    """Mask i, and no other, has its white in column i."""
    for i, name in enumerate(names):
        mask = np.zeros(PHOTO, bool)
        mask[:, i] = True
        mask_file(folder / name, mask)
    return MaskFolder(folder)


def number_of(masks: MaskFolder, photo: str | Path) -> int:
    return int(np.flatnonzero(masks.of(Path(photo), PHOTO)[0])[0])


def refusal(masks: MaskFolder, photo: str) -> str:
    with pytest.raises(ImageError) as caught:
        masks.of(Path(photo), PHOTO)
    assert caught.value.path == Path(photo)
    return caught.value.reason


def test_photos_of_one_name_take_the_mask_of_their_own_folder(tmp_path: Path) -> None:
    masks = numbered(tmp_path, "nut/000.png", "bolt/000.png", "bolt/001.png")
    assert number_of(masks, "incoming/nut/000.jpg") == 0
    assert number_of(masks, "/elsewhere/bolt/000.jpg") == 1
    assert number_of(masks, "incoming/bolt/001.bmp") == 2
    assert "no mask named 001" in refusal(masks, "incoming/nut/001.jpg")  # that of the bolt is not for a nut


def test_a_relative_photo_has_the_folders_that_it_is_opened_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = numbered(tmp_path / "masks", "nut/000.png", "bolt/000.png")
    (tmp_path / "bolt").mkdir()
    monkeypatch.chdir(tmp_path / "bolt")
    assert number_of(masks, "000.jpg") == 1
    assert number_of(masks, "../nut/000.jpg") == 0


def test_the_mask_with_most_folders_in_common_wins(tmp_path: Path) -> None:
    masks = numbered(tmp_path, "000.png", "nut/000.png", "left/nut/000.png", "right/nut/000.png")
    assert number_of(masks, "photos/left/nut/000.jpg") == 2
    assert number_of(masks, "photos/nut/000.jpg") == 1
    assert number_of(masks, "photos/000.jpg") == 0


def test_folders_between_a_product_and_its_photos_do_not_matter(tmp_path: Path) -> None:
    masks = numbered(tmp_path, "nut/000.png", "bolt/000.png", "bolt/001.png")
    assert number_of(masks, "photos/nut/today/000.jpg") == 0
    assert "no mask named 001" in refusal(masks, "photos/nut/today/001.jpg")


def test_a_stem_that_is_unique_needs_no_folder(tmp_path: Path) -> None:
    masks = numbered(tmp_path, "2024/a.png", "2025/b.png")
    assert number_of(masks, "photos/b.jpg") == 1


def test_two_masks_that_fit_a_photo_equally_are_refused_and_both_named(tmp_path: Path) -> None:
    masks = numbered(tmp_path, "nut/000.png", "bolt/000.png")
    message = refusal(masks, "photos/000.jpg")
    assert str(tmp_path / "nut/000.png") in message
    assert str(tmp_path / "bolt/000.png") in message
    again = numbered(tmp_path / "again", "a/000.png", "a/000.bmp", "000.png", "000.bmp")
    assert "two masks fit" in refusal(again, "a/000.jpg")
    assert number_of(again, "a/000.bmp") == 1


def test_masks_in_hidden_folders_are_no_masks_and_unicode_forms_are_one(tmp_path: Path) -> None:
    composed, decomposed = "gr\u00f6\u00dfe", "gro\u0308\u00dfe"
    masks = numbered(tmp_path, f"{composed}/{decomposed}.png", "@eaDir/000.png", "#recycle/000.png")
    assert number_of(masks, f"photos/{decomposed}/{composed}.jpg") == 0
    assert "no mask named 000" in refusal(masks, "photos/000.jpg")


def test_the_digest_of_a_folder_of_masks_changes_with_any_of_them(tmp_path: Path) -> None:
    masks = numbered(tmp_path / "a", "nut/000.png", "bolt/000.png")
    assert masks.digest() == numbered(tmp_path / "b", "nut/000.png", "bolt/000.png").digest()
    others = [
        numbered(tmp_path / "c", "bolt/000.png", "nut/000.png"),
        numbered(tmp_path / "d", "nut/000.png"),
        numbered(tmp_path / "e", "nut/000.png", "bolt/001.png"),
    ]
    assert len({masks.digest(), *(other.digest() for other in others)}) == 4


def test_two_masks_of_one_product_are_refused(tmp_path: Path) -> None:
    for name in ("nut.png", "nut.bmp"):
        mask_file(tmp_path / name, np.ones(PHOTO, bool))
    with pytest.raises(MambaADError, match=r"two masks of nut: .*nut\.bmp and .*nut\.png"):
        region(str(tmp_path))


@pytest.mark.parametrize("data", [b"", b"text", png(60000, 60000, 8, 0, b"")])
def test_a_stored_mask_that_is_damaged_or_claims_too_much_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="a region that cannot be decoded"):
        decoded(np.frombuffer(data, np.uint8))
