"""Read before decoding: completeness, size and orientation of every format, each checked through `read`."""

import resource
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaad_cli.data import images
from mambaad_cli.data.image_headers import read_header
from mambaad_cli.data.images import ImageError, opened, read, shape_of
from tests.data.image_files import FORMATS, bmp32, chunk, difference, encoded, photo, png, reason, saved, tiff, upright

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


# ---- the size is the one that the decoder takes ----


def ihdr(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


@pytest.mark.parametrize("place", ["a chunk before it", "the same again", "another after it"])
def test_a_png_whose_header_is_not_first_and_only_is_damaged(place: str) -> None:
    """libpng would take the large one."""
    large = ihdr(20_000, 20_000)
    front = {
        "a chunk before it": chunk(b"teXt", ihdr(1, 1)[8:]) + large,
        "the same again": ihdr(1, 1) + ihdr(1, 1),
        "another after it": ihdr(1, 1) + large,
    }[place]
    content = b"\x89PNG\r\n\x1a\n" + front + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="damaged: IHDR is not its first chunk, or not its only one"):
        read_header(content)


def test_the_first_of_two_frame_headers_gives_the_size_of_a_jpeg() -> None:
    content = encoded(photo(), "JPEG")
    at = content.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", content, at + 2)
    small = bytearray(content[at : at + 2 + length])
    small[5:9] = struct.pack(">HH", 1, 1)
    end = at + 2 + length
    for place in (end, len(content) - 2):
        assert read_header(content[:place] + bytes(small) + content[place:])[:2] == (60, 40)


@pytest.mark.parametrize("lossless", [True, False])
def test_the_first_chunk_that_tells_a_size_gives_that_of_a_webp(lossless: bool) -> None:
    plain = encoded(photo(), "WEBP", lossless=lossless)[12:]
    small = b"VP8X" + struct.pack("<IIHBHB", 10, 0, 0, 0, 0, 0)
    large = b"VP8X" + struct.pack("<IIHBHB", 10, 0, 29_999, 0, 29_999, 0)
    for chunks, size in ((large + small + plain, (30_000, 30_000)), (plain + small, (60, 40))):
        assert read_header(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks)[:2] == size


def with_entries(length: int, entries: list[tuple[int, int, int, int]]) -> bytes:
    """A TIFF of so many bytes with this directory: tag, kind, how many numbers, and the number or where they lie."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)).ljust(length, b"\0")


def test_the_first_entry_of_a_tag_counts_as_in_libtiff() -> None:
    content = with_entries(100, [(256, 4, 1, 30_000), (257, 4, 1, 20_000), (256, 4, 1, 1), (257, 4, 1, 1)])
    assert read_header(content)[:2] == (30_000, 20_000)


def test_entries_that_claim_the_same_numbers_again_and_again_take_no_time() -> None:
    """Each would hold the interpreter for so long that a server answers nobody."""
    sizes = [(256, 4, 1, 3), (257, 4, 1, 2)]
    lists = [(tag, 4, 2_000_000, 100_000) for tag in (258, 259, 262, 273, 277, 279, 284, 300, 324, 325, 338)]
    content = with_entries(8_100_000, sizes + 200 * lists)
    began = time.process_time()
    assert read_header(content)[:2] == (3, 2)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + 60_000) + b"Exif\0\0"
    exif = with_entries(60_000, 200 * [(274, 3, 20_000, 4000)])
    plain = encoded(photo(), "JPEG")
    assert read_header(plain[:2] + 20 * (segment + exif) + plain[2:])[:2] == (60, 40)
    assert time.process_time() - began < 0.5  # seconds; 2,200 lists of two million numbers take minutes


# ---- whatever a file holds, it is an error of that file ----

HUGE_OFFSET = b"II+\0" + struct.pack("<HHQ", 8, 0, 2**63 + 5) + bytes(64)  # a BigTIFF whose directory lies beyond all


def test_an_offset_beyond_all_memory_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", HUGE_OFFSET)
    assert reason(path).startswith("cannot be read: OverflowError")
    with pytest.raises(ImageError):
        shape_of(path)


def test_an_exif_block_with_such_an_offset_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    exif = chunk(b"eXIf", HUGE_OFFSET)
    assert read(saved(tmp_path / "a.png", png(1, 1, 8, 0, b"\0\7", exif))).tolist() == [[[7, 7, 7]]]
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(HUGE_OFFSET)) + b"Exif\0\0" + HUGE_OFFSET
    image = read(saved(tmp_path / "a.jpg", plain[:2] + segment + plain[2:]))
    assert np.array_equal(image, read(saved(tmp_path / "b.jpg", plain)))


@pytest.mark.parametrize("error", [OverflowError("too\nlarge"), KeyError("x"), MemoryError(), RecursionError()])
def test_any_exception_of_one_file_is_its_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    path = saved(tmp_path / "a.png", encoded(photo(), "PNG"))
    for name in ("read_header", "_scaled"):
        with monkeypatch.context() as patched:
            patched.setattr(images, name, fails)
            assert reason(path).startswith("cannot be read: ")


def test_a_file_that_decodes_to_another_size_than_it_claims_is_damaged(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 1
    content = bytearray(encoded(photo(), "WEBP", exif=exif))
    at = content.index(b"VP8X") + 8 + 4
    content[at : at + 3] = (99).to_bytes(3, "little")  # a canvas of 100 pixels around a picture of 60
    assert "damaged" in reason(saved(tmp_path / "a.webp", bytes(content)))


# ---- the upright size, known before decoding ----


def encoded_tiff(image: Any, **options: Any) -> Callable[[int], bytes]:
    """By its orientation."""
    return lambda turn: encoded(image, "TIFF", tiffinfo={274: turn}, **options)


TIFF_KINDS = {
    "rgb": encoded_tiff(photo()),
    "rgb-lzw": encoded_tiff(photo(), compression="tiff_lzw"),
    "rgb-jpeg": encoded_tiff(photo(), compression="jpeg", quality=95),
    "grey": encoded_tiff(photo()[..., 0]),
    "bits": encoded_tiff(Image.fromarray(photo()).convert("1")),
    "palette": encoded_tiff(Image.fromarray(photo()).convert("P")),
    "rgba": encoded_tiff(np.dstack([photo(), np.full((40, 60), 255, np.uint8)])),
    "cmyk": encoded_tiff(Image.fromarray(photo()).convert("CMYK")),
    "grey16": lambda turn: tiff(photo()[..., 1] * np.uint16(257), t274=turn),
    "rgb16": lambda turn: tiff(photo() * np.uint16(257), ">", t274=turn),
    "float": lambda turn: tiff(photo()[..., 2].astype(np.float32) / 255, t274=turn),
}


@pytest.mark.parametrize("kind", TIFF_KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_kind_of_tiff_is_turned_and_tells_its_upright_size(tmp_path: Path, kind: str, orientation: int) -> None:
    upright_photo = read(saved(tmp_path / "1.tif", TIFF_KINDS[kind](1)))
    stored = TIFF_KINDS[kind](orientation)
    file = opened(saved(tmp_path / "a.tif", stored))
    assert file.shape == ((40, 60) if orientation < 5 else (60, 40))
    turned = {
        1: upright_photo,
        2: upright_photo[:, ::-1],
        3: upright_photo[::-1, ::-1],
        4: upright_photo[::-1],
        5: upright_photo.swapaxes(0, 1),
        6: np.rot90(upright_photo, -1),
        7: np.rot90(upright_photo, 2).swapaxes(0, 1),
        8: np.rot90(upright_photo, 1),
    }[orientation]
    assert difference(file.decoded(), turned) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_from_the_header_is_that_of_the_pixels(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "a", encoded(photo(), kind, exif=exif))
    assert shape_of(path) == read(path).shape[:2]


# ---- bitmaps: bytes that mean nothing ----

STANDARD = (0xFF0000, 0xFF00, 0xFF)


def bitmap(
    pixels: np.ndarray, header: int = 40, compression: int = 0, masks: tuple[int, ...] = (), top_down: bool = True
) -> bytes:
    """A bitmap of 16 or 32 bits from pixels (h, w) of unsigned integers; masks of red, green, blue and opacity."""
    height, width = pixels.shape
    bits = 8 * pixels.itemsize
    padding = np.zeros((height, width * pixels.itemsize // 2 % 2), pixels.dtype)
    rows = np.hstack([pixels, padding]) if bits == 16 else pixels
    body = (rows if top_down else rows[::-1]).tobytes()
    packed = struct.pack(f"<{len(masks)}I", *masks)
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, len(body), 0, 0, 0, 0
    )
    info += packed if header == 40 else packed.ljust(header - 40, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


def in_32_bits(rgb: np.ndarray, fourth: int, masks: tuple[int, ...] = STANDARD) -> np.ndarray:
    pixels = np.full(rgb.shape[:2], fourth << 24 if masks == STANDARD else 0, np.uint32)
    for channel, mask in zip(np.moveaxis(rgb, 2, 0), masks, strict=False):
        lowest = mask & -mask
        pixels |= ((channel.astype(np.float64) * (mask // lowest) / 255).round().astype(np.uint32)) * np.uint32(lowest)
    return pixels


@pytest.mark.parametrize("fourth", [0, 7, 255])
@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize(
    ("header", "compression", "masks"),
    [
        (40, 0, ()),
        (108, 0, (*STANDARD, 0xFF000000)),  # masks count only with a compression that says so
        (40, 3, STANDARD),
        (52, 3, STANDARD),
        (56, 3, (*STANDARD, 0)),
        (108, 3, (*STANDARD, 0)),
        (124, 3, (*STANDARD, 0)),
        (40, 6, (*STANDARD, 0)),
    ],
)
def test_the_unused_byte_of_a_32_bit_bitmap_changes_nothing(
    tmp_path: Path, header: int, compression: int, masks: tuple[int, ...], top_down: bool, fourth: int
) -> None:
    content = bitmap(in_32_bits(photo(), fourth), header, compression, masks, top_down)
    assert np.array_equal(read(saved(tmp_path / "a.bmp", content)), photo())


@pytest.mark.parametrize(("header", "compression"), [(56, 3), (108, 3), (124, 3), (40, 6)])
def test_a_bitmap_with_a_mask_of_opacity_is_transparent_unless_it_is_0_all_over(
    tmp_path: Path, header: int, compression: int
) -> None:
    half = in_32_bits(np.full((1, 2, 3), 100, np.uint8), 255)
    half[0, 0] &= 0x00FFFFFF
    content = bitmap(half, header, compression, (*STANDARD, 0xFF000000))
    assert read(saved(tmp_path / "a.bmp", content)).tolist() == [[[255] * 3, [100] * 3]]
    unused = bitmap(in_32_bits(photo(), 0), header, compression, (*STANDARD, 0xFF000000))
    assert np.array_equal(read(saved(tmp_path / "b.bmp", unused)), photo())


@pytest.mark.parametrize(
    ("masks", "within"),
    [
        ((0xFF, 0xFF00, 0xFF0000), 0),  # red and blue the other way round
        ((0xFF000000, 0xFF0000, 0xFF00), 0),
        ((0x3FF00000, 0xFFC00, 0x3FF), 0.5),  # 10 bits a colour
    ],
)
@pytest.mark.parametrize("header", [40, 124])
def test_a_bitmap_of_other_colour_masks_has_its_colours(
    tmp_path: Path, header: int, masks: tuple[int, ...], within: float
) -> None:
    content = bitmap(in_32_bits(photo(), 0, masks), header, 3, (*masks, 0)[: 3 if header == 40 else 4])
    assert difference(read(saved(tmp_path / "a.bmp", content)), photo()) <= within


def test_bitmaps_of_16_bits_have_their_colours(tmp_path: Path) -> None:
    pixels = np.array([[0x8F00, 0x00F0, 0x000F]], np.uint16)  # opacity 8 of 15; the others fully transparent
    opaque = bitmap(pixels, 40, 3, (0xF00, 0xF0, 0xF))
    assert read(saved(tmp_path / "a.bmp", opaque)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    transparent = bitmap(pixels, 108, 3, (0xF00, 0xF0, 0xF, 0xF000))
    assert read(saved(tmp_path / "b.bmp", transparent)).tolist() == [[[255, 119, 119], [255] * 3, [255] * 3]]
    green = bitmap(np.array([[0x07E0]], np.uint16), 40, 3, (0xF800, 0x7E0, 0x1F))
    assert read(saved(tmp_path / "c.bmp", green))[0, 0].tolist() == [0, 252, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opacity_that_is_0_all_over_is_an_unused_channel(tmp_path: Path, kind: str) -> None:
    content = encoded(np.dstack([photo(), np.zeros((40, 60), np.uint8)]), kind, lossless=True, exact=True)
    assert np.array_equal(read(saved(tmp_path / "a", content)), photo())
    assert np.array_equal(images.as_rgb(np.dstack([photo(), np.zeros((40, 60), np.uint8)])), photo())


def test_a_picture_whose_colours_are_lost_under_full_transparency_is_refused(tmp_path: Path) -> None:
    content = tiff(np.zeros((4, 4, 4), np.uint8), t338=1)
    assert reason(saved(tmp_path / "a", content)) == "is transparent all over, and its colours are lost"
