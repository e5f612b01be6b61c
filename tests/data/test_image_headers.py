"""Read before decoding: completeness, size and orientation of every format, each checked through `read`."""

import resource
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaad_cli.data.images import ImageError, read
from tests.data.image_files import FORMATS, bmp32, difference, encoded, photo, png, reason, saved, tiff, upright

# ---- orientation ----


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_turned_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(photo(), kind, exif=exif, quality=95, lossless=True)
    image = read(saved(tmp_path / "a", content))
    assert image.shape[:2] == ((40, 60) if orientation < 5 else (60, 40))
    assert difference(image, upright(content)) <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_holds_for_16_bit_tiff_of_either_byte_order(tmp_path: Path, orientation: int) -> None:
    pixels = np.array([[0, 1000, 65535], [257, 514, 771]], np.uint16)
    by_hand = {
        1: [[0, 1000, 65535], [257, 514, 771]],
        2: [[65535, 1000, 0], [771, 514, 257]],
        3: [[771, 514, 257], [65535, 1000, 0]],
        4: [[257, 514, 771], [0, 1000, 65535]],
        5: [[0, 257], [1000, 514], [65535, 771]],
        6: [[257, 0], [514, 1000], [771, 65535]],
        7: [[771, 65535], [514, 1000], [257, 0]],
        8: [[65535, 771], [1000, 514], [0, 257]],
    }[orientation]
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        image = read(saved(tmp_path / "a", tiff(pixels, order, t274=orientation)))
        assert np.allclose(image[..., 0], np.array(by_hand) / 257, rtol=1e-6)


@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0\x08\0\0\0",  # ends before its directory
        b"II*\0\xff\xff\xff\xff",  # a directory far away
        b"XX*\0\x08\0\0\0\0\0",  # no byte order
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0",  # four billion values
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\0\0\0\0\x06\0\0\0",  # no value
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # orientation 9
        b"",
    ],
)
def test_a_damaged_exif_block_leaves_the_image_as_it_is(tmp_path: Path, exif: bytes) -> None:
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    image = read(saved(tmp_path / "a.jpg", plain[:2] + segment + plain[2:]))
    assert np.array_equal(image, read(saved(tmp_path / "b.jpg", plain)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_written_by_hand_turns_a_jpeg(tmp_path: Path, order: str) -> None:
    plain = encoded(photo(), "JPEG")
    mark = b"II" if order == "<" else b"MM"
    exif = mark + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 274, 3, 1, 6, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    image = read(saved(tmp_path / "a.jpg", plain[:2] + segment + plain[2:]))
    assert np.array_equal(image, np.rot90(read(saved(tmp_path / "b.jpg", plain)), -1))


def test_a_webp_may_repeat_the_word_exif_in_front_of_its_exif_block(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    plain = encoded(photo(), "WEBP", lossless=True, exif=block)
    plain = plain[: plain.index(b"EXIF")]  # Pillow writes this chunk last
    for content in (block, b"Exif\0\0" + block):
        chunks = plain[8:] + b"EXIF" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        image = read(saved(tmp_path / "a", b"RIFF" + struct.pack("<I", len(chunks)) + chunks))
        assert np.array_equal(image, np.rot90(photo(), -1))


# ---- completeness and damage ----


def test_a_tiff_of_64_bit_offsets_is_read_and_found_truncated(tmp_path: Path) -> None:
    content = encoded(photo(), "TIFF", big_tiff=True)
    assert content[2] == 43
    assert np.array_equal(read(saved(tmp_path / "a", content)), photo())
    strips = struct.pack("<HHQQ", 273, 16, 1, 2**40)  # the one strip's start, as a 64-bit number far beyond the end
    at = next(i for i in range(len(content)) if content[i : i + 2] == struct.pack("<H", 273) and content[i + 4] == 1)
    assert reason(saved(tmp_path / "b", content[:at] + strips + content[at + 20 :])).startswith("truncated")


def test_an_old_bitmap_of_16_bit_sizes_is_read(tmp_path: Path) -> None:
    rows = bytes([30, 20, 10, 60, 50, 40, 0, 0])  # blue, green, red; each row filled up to 4 bytes
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, 2, 1, 1, 24) + rows
    assert read(saved(tmp_path / "a", content)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert reason(saved(tmp_path / "b", content[:-1])).startswith("truncated")


def test_a_truncated_bitmap_with_colour_masks_is_never_shown(tmp_path: Path) -> None:
    whole = bmp32(np.dstack([photo(), np.full((40, 60), 255, np.uint8)]))
    assert np.array_equal(read(saved(tmp_path / "a", whole)), photo())
    assert reason(saved(tmp_path / "b", whole[:-1])).startswith("truncated")


@pytest.mark.parametrize(("kind", "options", "within"), FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, -100, -2, -1])
def test_a_truncated_file_is_never_shown(tmp_path: Path, kind: str, options: dict, within: int, kept: float) -> None:
    content = encoded(photo(200, 300), kind, **options)
    cut = content[: int(len(content) * kept) if kept > 0 else int(kept)]
    assert reason(saved(tmp_path / "a", cut)) == "truncated: the file ends before the image does"


@pytest.mark.parametrize("pixels", [photo(), photo()[..., 0].astype(np.uint16)], ids=["8", "16"])
def test_a_tiff_cut_after_its_directory_is_truncated(tmp_path: Path, pixels: np.ndarray) -> None:
    assert reason(saved(tmp_path / "a", tiff(pixels)[:-1])).startswith("truncated")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_raises_anything_but_an_image_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(DAMAGEABLE)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
        with suppress(ImageError):
            assert read(Path(file.name)).shape[2] == 3


DAMAGEABLE = [
    *(encoded(photo(9, 11), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")),
    tiff(photo(9, 11) * np.uint16(257), ">"),
]


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    content = bytearray(encoded(photo(), "PNG"))
    content[content.index(b"IDAT") + 50] ^= 1
    assert reason(saved(tmp_path / "a", bytes(content))) == "damaged: the checksum of its IDAT chunk is wrong"


def test_a_png_with_too_few_rows_is_damaged(tmp_path: Path) -> None:
    assert reason(saved(tmp_path / "a", png(4, 4, 8, 0, b"\0abcd"))).startswith("damaged")


def test_an_image_of_no_pixels_is_damaged(tmp_path: Path) -> None:
    assert reason(saved(tmp_path / "a", png(0, 4, 8, 0, b""))) == "damaged: claims 0×4 pixels"
    backwards = encoded(photo(), "BMP")[:18] + struct.pack("<i", -60) + encoded(photo(), "BMP")[22:]
    assert reason(saved(tmp_path / "b", backwards)) == "damaged: claims -60×40 pixels"


@pytest.mark.parametrize("tail", [b"\0" * 100, b"camera notes \xff\xd9", b"\xff\xd8\xff\xe0 a second picture"])
@pytest.mark.parametrize("progressive", [False, True])
def test_what_a_camera_appends_to_a_jpeg_is_left_out(tmp_path: Path, tail: bytes, progressive: bool) -> None:
    content = encoded(photo(), "JPEG", progressive=progressive)
    plain = read(saved(tmp_path / "a.jpg", content))
    assert np.array_equal(read(saved(tmp_path / "b.jpg", content + tail)), plain)


def test_a_thumbnail_does_not_end_its_jpeg(tmp_path: Path) -> None:
    thumbnail = encoded(photo(8, 8), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    content = encoded(photo(), "JPEG")
    with_thumbnail = content[:2] + segment + content[2:]
    assert read(saved(tmp_path / "a.jpg", with_thumbnail)).shape == (40, 60, 3)
    assert reason(saved(tmp_path / "b.jpg", with_thumbnail[:-300])).startswith("truncated")


def test_a_jpeg_with_restart_markers_is_complete(tmp_path: Path) -> None:
    content = encoded(photo(), "JPEG", restart_marker_blocks=1)
    assert b"\xff\xd0" in content
    assert difference(read(saved(tmp_path / "a.jpg", content)), upright(content)) <= 1


BOMBS = {
    "png": png(30000, 30000, 8, 2, bytes(3000)),
    "jpeg": (lambda j, at: j[: at + 5] + struct.pack(">HH", 30000, 30000) + j[at + 9 :])(
        encoded(photo(), "JPEG"), encoded(photo(), "JPEG").index(b"\xff\xc0")
    ),
    "tiff": tiff(np.zeros((2, 2), np.uint8), t256=30000, t257=30000),
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<IIHBHB", 10, 0, 29999, 0, 29999, 0),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pixel_bomb_is_refused_before_memory_is_taken(tmp_path: Path, kind: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(saved(tmp_path / "bomb", BOMBS[kind])) == (
        "claims 30000×30000 pixels, more than 268435456: to read it all the same, set MAMBAAD_MAX_PIXELS=900000000"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 * 1024  # KiB; the image would take 2.7 GB
