import os
import pickle
import resource
import struct
import subprocess
import sys
import types
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, features

from mambaad_cli import MambaADError
from mambaad_cli.data.images import (
    SUFFIXES,
    ImageError,
    ImageFile,
    decoded_bytes,
    describe_unread,
    find,
    letterbox,
    opened,
    read,
    resize,
    write,
)
from tests.data.image_files import FORMATS, bmp32, chunk, difference, encoded, photo, png, reason, saved, tiff, upright

# ---- find ----


def touch(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()


def names(files: list[ImageFile], top: Path) -> list[str]:
    return [file.path.relative_to(top).as_posix() for file in files]


def test_a_folder_is_searched_in_natural_order_whatever_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "img_10.png", "img_2.png", "IMG_1.PNG", "b/2.png", "b/10.png", "a.jpg", "img_02.png", "img_2b.png")
    expected = ["a.jpg", "b/2.png", "b/10.png", "IMG_1.PNG", "img_02.png", "img_2.png", "img_2b.png", "img_10.png"]
    assert names(find([tmp_path]), tmp_path) == expected


def test_accents_and_digits_of_any_script_sort_as_a_reader_expects(tmp_path: Path) -> None:
    touch(tmp_path, "é2.png", "e1.png", "f1.png", "STRASSE2.png", "straße10.png", "٣.png", "2.png", "10.png")
    expected = ["2.png", "٣.png", "10.png", "e1.png", "é2.png", "f1.png", "STRASSE2.png", "straße10.png"]
    assert names(find([tmp_path]), tmp_path) == expected


def test_every_suffix_counts_in_any_case_and_nothing_else_does(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a{suffix}" for suffix in SUFFIXES), "b.PNG", "b.TiFf", "c.txt", "d.gif", "e.png.part", "png")
    assert names(find([tmp_path]), tmp_path) == [*sorted(f"a{suffix}" for suffix in SUFFIXES), "b.PNG", "b.TiFf"]


def test_hidden_files_and_folders_are_left_out_unless_named(tmp_path: Path) -> None:
    touch(tmp_path, ".a.png", ".hidden/b.png", "sub/.c.png", "sub/._d.png", "Thumbs.db", "e.png")
    assert names(find([tmp_path]), tmp_path) == ["e.png"]
    assert names(find([tmp_path / ".hidden", tmp_path / ".a.png"]), tmp_path) == [".hidden/b.png", ".a.png"]


@pytest.mark.parametrize(
    "folder",
    [
        *("@eaDir/1.jpg", "#recycle", "#Snapshot", "@Recycle", ".@__thumb", ".AppleDouble", "__MACOSX/parts"),
        *("$RECYCLE.BIN", "$Recycle.Bin/S-1-5", "System Volume Information", "lost+found", ".Trash-1000"),
    ],
)
def test_what_a_system_adds_to_a_folder_is_left_out_unless_named(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/a.png", "nut/a.png", f"nut/{folder}/a.png", "#12/a.png", "@home/a.png")
    assert sorted(names(find([tmp_path]), tmp_path)) == ["#12/a.png", "@home/a.png", "nut/a.png"]
    assert names(find([tmp_path / folder]), tmp_path) == [f"{folder}/a.png"]


def test_pictures_of_other_kinds_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.GIF", "sub/c.jp2", "sub/d.JP2", "notes.txt", "Thumbs.db", ".e.gif", "@eaDir/f.gif")
    unread: Counter[str] = Counter()
    assert names(find([tmp_path, tmp_path / "b.GIF"], unread), tmp_path) == ["a.png", "b.GIF"]
    assert unread == {".gif": 1, ".jp2": 2}
    assert describe_unread(unread) == "3 pictures of kinds that are not read: 2 .jp2, 1 .gif"


def test_a_folder_of_other_pictures_alone_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "a.dng", "b.DNG", "notes.txt")
    with pytest.raises(MambaADError, match=r"files; it holds 2 pictures of kinds that are not read: 2 \.dng$"):
        find([tmp_path])


def test_phone_pictures_name_the_extra_that_reads_them() -> None:
    assert "pip install 'mambaad[heif]'" in describe_unread(Counter({".heic": 1}))
    assert describe_unread(Counter()) == ""


def test_every_name_of_a_jpeg_is_found_and_written(tmp_path: Path) -> None:
    for suffix in (".jpg", ".jpeg", ".jpe", ".jfif", ".JFIF"):
        write(tmp_path / f"a{suffix}", photo())
        assert Image.open(tmp_path / f"a{suffix}").format == "JPEG"
    assert len(find([tmp_path])) == 5


def test_a_file_knows_its_relative_path_and_its_group(tmp_path: Path) -> None:
    touch(tmp_path, "parts/good/left/x.png", "parts/y.png")
    assert find([tmp_path / "parts", tmp_path / "parts/y.png", tmp_path / "gone.png"]) == [
        ImageFile(tmp_path / "parts/good/left/x.png", Path("good/left/x.png"), "good"),
        ImageFile(tmp_path / "parts/y.png", Path("y.png"), ""),
        ImageFile(tmp_path / "gone.png", Path("gone.png"), ""),
    ]


def test_paths_are_printed_as_the_user_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "parts/x.png")
    monkeypatch.chdir(tmp_path)
    assert find([Path()]) == [ImageFile(Path("parts/x.png"), Path("parts/x.png"), "parts")]
    assert find([Path("parts/../parts")])[0] == ImageFile(Path("parts/../parts/x.png"), Path("x.png"), "")


def test_arguments_keep_their_order_and_a_file_reached_twice_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "b/2.png", "a/1.png")
    (tmp_path / "a/link.png").symlink_to(tmp_path / "b/1.png")
    (tmp_path / "a/copy.png").hardlink_to(tmp_path / "a/1.png")
    given = [tmp_path / "b/2.png", tmp_path / "b", tmp_path / "a", tmp_path / "b"]
    assert names(find(given), tmp_path) == ["b/2.png", "b/1.png", "a/1.png", "a/copy.png"]


def test_symbolic_links_are_followed_but_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "top/a.png", "top/sub/b.png", "elsewhere/c.png")
    (tmp_path / "top/sub/again").symlink_to(tmp_path / "top")
    (tmp_path / "top/sub/here").symlink_to(".")
    (tmp_path / "top/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top/twice").symlink_to(tmp_path / "elsewhere")
    assert names(find([tmp_path / "top"]), tmp_path / "top") == ["a.png", "linked/c.png", "sub/b.png"]


def test_a_dangling_or_looping_link_is_listed_so_that_reading_reports_it(tmp_path: Path) -> None:
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    dangling, loop = find([tmp_path])
    assert reason(dangling.path) == "no such file"
    assert "symbolic links" in reason(loop.path)


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "parts/good/notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MambaADError) as caught:
        find([Path("parts/good")])
    expected = "no images in parts/good: expected .png, .jpg, .jpeg, .bmp, .tif, .tiff or .webp files"
    assert str(caught.value) == expected


@pytest.mark.parametrize("closed", ["top", "top/sub"])
def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(shared: Path, closed: str) -> None:
    touch(shared, "top/a.png", "top/sub/b.png")
    (shared / closed).chmod(0)
    with pytest.raises(MambaADError, match=f"^cannot list {shared / closed}: Permission denied$"):
        find([shared / "top"])


def test_a_file_below_a_closed_folder_is_still_listed(shared: Path) -> None:
    touch(shared, "closed/a.png")
    (shared / "closed").chmod(0)
    assert [file.path for file in find([shared / "closed/a.png"])] == [shared / "closed/a.png"]
    assert reason(shared / "closed/a.png") == "permission denied"


def test_thousands_of_files_come_in_the_same_order_every_time(tmp_path: Path) -> None:
    for n in range(3000):
        (tmp_path / f"{n}.png").touch()
    assert names(find([tmp_path]), tmp_path) == [f"{n}.png" for n in range(3000)]


# ---- read: pixels ----


@pytest.mark.parametrize(("kind", "options", "within"), FORMATS)
@pytest.mark.parametrize("shape", [(40, 60), (1, 1), (1, 7), (7, 1)])
def test_every_format_comes_out_as_rgb(tmp_path: Path, kind: str, options: dict, within: int, shape: tuple) -> None:
    content = encoded(photo(*shape), kind, **options)
    image = read(saved(tmp_path / "a.png", content))
    assert (image.dtype, image.shape) == (np.uint8, (*shape, 3))
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert difference(image, upright(content)) <= within


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, kind) for mode in ("1", "L", "P") for kind in ("PNG", "BMP", "TIFF")),
        *(("L", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF")),
    ],
)
def test_bits_greys_palettes_and_cmyk_come_out_as_pillow_sees_them(tmp_path: Path, mode: str, kind: str) -> None:
    content = encoded(Image.fromarray(photo()).convert(mode), kind)
    within = 3 if kind == "JPEG" else 1
    assert difference(read(saved(tmp_path / "a", content)), upright(content)) <= within


def test_the_black_of_a_cmyk_jpeg_is_black_and_its_inks_are_their_colours(tmp_path: Path) -> None:
    inks = np.zeros((16, 64, 4), np.uint8)
    for i, ink in enumerate([(0, 0, 0, 255), (255, 0, 0, 0), (0, 0, 255, 0), (0, 0, 0, 0)]):
        inks[:, 16 * i : 16 * (i + 1)] = ink
    path = saved(tmp_path / "a.jpg", encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    expected = np.array([(0, 0, 0), (0, 255, 255), (255, 255, 0), (255, 255, 255)])
    assert difference(read(path)[8, 8::16], expected) <= 4


# ---- read: more than 8 bits ----

RAMP = np.arange(0, 65536, 13, dtype=np.uint16).reshape(1, -1)


@pytest.mark.parametrize(
    "content", [encoded(RAMP, "PNG"), encoded(RAMP, "TIFF"), tiff(RAMP, ">")], ids=["png", "tiff", "MM"]
)
def test_a_16_bit_ramp_keeps_its_order_and_its_range(tmp_path: Path, content: bytes) -> None:
    image = read(saved(tmp_path / "a", content))
    assert image.dtype == np.float32
    assert np.allclose(image, RAMP[..., None] / 65535 * 255, rtol=1e-6)
    assert (np.diff(image[0, :, 0]) > 0).all()


def test_16_bit_colours_keep_their_channels(tmp_path: Path) -> None:
    pixels = np.array([[[65535, 257, 0], [1, 2, 3]]], np.uint16)
    rows = b"\0" + pixels.astype(">u2").tobytes()
    for content in (png(2, 1, 16, 2, rows), tiff(pixels), tiff(pixels, ">")):
        assert np.allclose(read(saved(tmp_path / "a", content)), pixels / 257, rtol=1e-6)


def test_white_is_white_in_a_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    pixels = np.array([[0, 255, 25]])
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1)):
        stored = (pixels / 255 * top).astype(dtype)
        image = read(saved(tmp_path / "a", tiff(stored, t262=0)))
        assert np.allclose(image[..., 0], 255 - pixels, atol=1e-3)


def test_float_tiff_counts_as_0_to_1(tmp_path: Path) -> None:
    pixels = np.array([[0, 0.25, 1]])
    for dtype in (np.float32, np.float64):
        image = read(saved(tmp_path / "a", tiff(pixels.astype(dtype))))
        assert image.dtype == np.float32
        assert image[0].tolist() == [[0] * 3, [63.75] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.array([[0, np.nan]], np.float32), "holds pixels that are NaN or infinite"),
        (np.array([[0, np.inf]], np.float32), "holds pixels that are NaN or infinite"),
        (np.array([[0.5, 200]], np.float32), "holds floats from 0.5 to 200: expected 0…1"),
        (np.array([[-0.5, 1]], np.float32), "holds floats from -0.5 to 1: expected 0…1"),
        (np.array([[5, 6]], np.int16), "holds int16 pixels: expected 8 or 16 bits without sign, or floats in 0…1"),
        (np.zeros((2, 2, 2), np.uint8), "a grey TIFF with transparency, which OpenCV does not decode: save it as PNG"),
    ],
)
def test_pixels_of_unknown_meaning_are_refused(tmp_path: Path, pixels: np.ndarray, says: str) -> None:
    assert reason(saved(tmp_path / "a.tif", tiff(pixels))) == says


@pytest.mark.parametrize("tags", [{"t262": 2}, {"t262": 3}, {"t262": 8}])
def test_16_bits_that_are_neither_grey_nor_rgb_are_refused_rather_than_misread(tmp_path: Path, tags: dict) -> None:
    pixels = np.zeros((2, 2), np.uint16)
    assert reason(saved(tmp_path / "a.tif", tiff(pixels, **tags))) == "a TIFF of 16 bits that is neither grey nor RGB"


def test_separate_planes_of_16_bits_are_refused_rather_than_misread(tmp_path: Path) -> None:
    assert "separate colour planes" in reason(saved(tmp_path / "a.tif", tiff(np.zeros((2, 2, 3), np.uint16), t284=2)))


def test_the_first_page_of_a_tiff_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(photo()), Image.fromarray(255 - photo(9, 9))]
    path = saved(tmp_path / "a.tif", encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert np.array_equal(read(path), photo())


# ---- read: transparency ----


@pytest.mark.parametrize(
    "store",
    [
        lambda rgba: encoded(rgba, "PNG"),
        lambda rgba: encoded(rgba, "WEBP", lossless=True, exact=True),
        lambda rgba: encoded(rgba, "TIFF"),
        lambda rgba: encoded(rgba, "TIFF", compression="tiff_lzw"),
        lambda rgba: tiff(rgba * np.uint16(257), t338=2),
        lambda rgba: tiff((rgba / 255).astype(np.float32), t338=2),
        bmp32,
    ],
    ids=["png", "webp", "tiff", "tiff-lzw", "tiff-16", "tiff-float", "bmp"],
)
def test_transparent_pixels_lie_on_white_and_hide_their_colours(tmp_path: Path, store: Any) -> None:
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    image = read(saved(tmp_path / "a", store(rgba)))
    assert image[0, 0].tolist() == [255, 255, 255]  # no trace of the hidden colour
    assert difference(image[0, 1:], np.array([[200, 100, 0], [244, 224, 204]])) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_already_multiplied_by_their_transparency_are_not_multiplied_again(tmp_path: Path, dtype: type) -> None:
    rgba = np.array([[[40, 20, 0, 51], [0, 0, 0, 0]]], dtype) * dtype(np.iinfo(dtype).max // 255)
    image = read(saved(tmp_path / "a", tiff(rgba, t338=1)))
    assert difference(image, np.array([[[244, 224, 204], [255, 255, 255]]])) <= 0.5


def test_half_transparent_colours_are_rounded_not_cut(tmp_path: Path) -> None:
    rgba = np.array([[[1, 2, 255, 128]]], np.uint8)  # 1 · 128/255 + 255 · 127/255 = 127.502
    assert read(saved(tmp_path / "a", encoded(rgba, "PNG"))).tolist() == [[[128, 128, 255]]]


def test_a_fourth_channel_that_is_not_transparency_is_left_out(tmp_path: Path) -> None:
    rgbx = np.array([[[200, 100, 0, 0]]], np.uint8)
    assert read(saved(tmp_path / "a", tiff(rgbx, t338=0))).tolist() == [[[200, 100, 0]]]


def test_an_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([photo(), np.full((40, 60), 255, np.uint8)])
    assert np.array_equal(read(saved(tmp_path / "a", encoded(opaque, "PNG"))), photo())


def test_grey_with_alpha_and_transparent_palette_entries_lie_on_white(tmp_path: Path) -> None:
    grey = np.array([[[70, 0], [70, 255]]], np.uint8)
    assert read(saved(tmp_path / "a", encoded(Image.fromarray(grey, "LA"), "PNG")))[0].tolist() == [[255] * 3, [70] * 3]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    path = saved(tmp_path / "b", encoded(palette, "PNG", transparency=b"\0\xff"))
    assert read(path)[0].tolist() == [[255] * 3, [40, 50, 60]]


@pytest.mark.parametrize(
    ("depth", "colours", "row", "clear", "expected"),
    [
        (8, 0, b"\x07\x09", b"\0\x07", [[255] * 3, [9] * 3]),
        (16, 0, b"\x04\x00\x04\x01", b"\x04\x00", [[255] * 3, [1025 / 257] * 3]),
        (2, 0, b"\x60", b"\0\x01", [[255] * 3, [170] * 3]),
        (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", [[255] * 3, [4, 5, 6]]),
    ],
)
def test_the_one_transparent_colour_of_a_png_lies_on_white(
    tmp_path: Path, depth: int, colours: int, row: bytes, clear: bytes, expected: list
) -> None:
    image = read(saved(tmp_path / "a", png(2, 1, depth, colours, b"\0" + row, chunk(b"tRNS", clear))))
    assert np.allclose(image[0], expected, rtol=1e-6)


# ---- read: names ----


@pytest.mark.parametrize(
    "name", ["größe 検査.png", "two words.png", "two\nlines.png", "\udcff.png", "no-suffix", "a.JPG"]
)
def test_any_name_can_be_read(tmp_path: Path, name: str) -> None:
    assert np.array_equal(read(saved(tmp_path / name, encoded(photo(), "PNG"))), photo())


def test_a_message_is_one_line_that_can_be_printed_whatever_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "ä\nb\x1b[31m\udcff.png", b"")
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert message == f"{tmp_path}/ä\\nb\\x1b[31m\\udcff.png: empty: the file has zero bytes"
    assert message.encode().decode() == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    touch(tmp_path, "empty\nfolder/x.txt")
    with pytest.raises(MambaADError, match=r"^no images in .*/empty\\nfolder: expected"):
        find([tmp_path / "empty\nfolder"])


# ---- read: errors ----


def test_what_is_no_readable_file_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert reason(tmp_path / "gone.png") == "no such file"
    assert reason(tmp_path / "folder.png") == "is a folder"
    assert reason(tmp_path / "pipe.png") == "not a regular file"
    assert reason(saved(tmp_path / "empty.png", b"")) == "empty: the file has zero bytes"
    assert reason(saved(tmp_path / "a.png", b"x") / "b.png") == "not a directory"


def test_a_file_larger_than_opencv_counts_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    assert reason(tmp_path / "a.tif") == "larger than 2 GiB"


def test_a_file_that_may_not_be_read_says_so(shared: Path) -> None:
    saved(shared / "a.png", encoded(photo(), "PNG")).chmod(0)
    assert reason(shared / "a.png") == "permission denied"


@pytest.mark.parametrize(
    "content", [b"hello, this is text", b"BMW is a car, this is a text about it", b"GIF89a" + bytes(40)]
)
def test_what_is_not_an_image_says_so(tmp_path: Path, content: bytes) -> None:
    assert reason(saved(tmp_path / "a.png", content)) == "not an image: expected PNG, JPEG, BMP, TIFF or WebP"


def test_the_limit_of_pixels_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", encoded(photo(), "PNG"))
    monkeypatch.setenv("MAMBAAD_MAX_PIXELS", "2399")
    assert reason(path).startswith("claims 60×40 pixels, more than 2399")
    monkeypatch.setenv("MAMBAAD_MAX_PIXELS", "2400")
    assert np.array_equal(read(path), photo())
    monkeypatch.setenv("MAMBAAD_MAX_PIXELS", "many")
    with pytest.raises(MambaADError, match="MAMBAAD_MAX_PIXELS is 'many': expected a number of pixels"):
        read(path)
    monkeypatch.setenv("MAMBAAD_MAX_PIXELS", "9" * 20)
    assert "more than OpenCV decodes" in reason(saved(tmp_path / "b.png", png(60000, 60000, 8, 0, b"")))


def test_a_side_longer_than_opencv_takes_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 2**20 + 1
    path = saved(tmp_path / "a.png", png(width, 1, 8, 0, bytes(1 + width)))
    assert reason(path) == "damaged, or of a kind that OpenCV does not decode"

    def raises(*_: object) -> None:  # as some versions do
        raise cv2.error("OpenCV(4.9.0): (-215:Assertion failed) size.width <= CV_IO_MAX_IMAGE_WIDTH")

    monkeypatch.setattr(cv2, "imdecode", raises)
    assert reason(path) == "damaged, or of a kind that OpenCV does not decode"


def test_nothing_is_printed_for_broken_files(tmp_path: Path) -> None:
    whole = {kind: encoded(photo(200, 300), kind) for kind in ("PNG", "BMP", "TIFF", "WEBP", "JPEG")}
    for kind, content in whole.items():
        saved(tmp_path / f"{kind}.png", content[: len(content) // 2])
    saved(tmp_path / "tail.jpg", whole["JPEG"] + b"tail")
    profile = chunk(b"iCCP", b"odd\0\0" + zlib.compress(b"no profile"))
    saved(tmp_path / "profile.png", png(1, 1, 8, 0, b"\0\7", profile))
    saved(tmp_path / "strips.tif", tiff(photo(), t258=7))
    saved(tmp_path / "rle.bmp", BMP_WITH_DAMAGED_RUNS)
    program = (
        "import sys, pathlib; from mambaad_cli.data.images import ImageError, find, read\n"
        "for file in find([pathlib.Path(sys.argv[1])]):\n"
        "    try: read(file.path)\n"
        "    except ImageError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


BMP_WITH_DAMAGED_RUNS = (
    b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + struct.pack("<IiiHHIIiiII", 40, 9, 9, 1, 8, 1, 0, 0, 0, 0, 0)
) + bytes(1024)


# ---- read: threads ----


def test_threads_read_the_same_as_one_after_the_other(tmp_path: Path) -> None:
    paths = []
    for i, kind in enumerate(["PNG", "BMP", "TIFF", "JPEG", "WEBP"] * 2):
        paths.append(saved(tmp_path / f"{i}", encoded(np.roll(photo(120, 160), i, 0), kind)))
        paths.append(saved(tmp_path / f"{i}-16.png", encoded(np.roll(RAMP, i), "PNG")))
        paths.append(saved(tmp_path / f"{i}-broken", encoded(photo(), kind)[:-1]))

    def outcome(path: Path) -> bytes | str:
        try:
            return read(path).tobytes()
        except ImageError as error:
            return error.reason

    expected = [outcome(path) for path in paths] * 5
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(outcome, paths * 5)) == expected


# ---- resize, letterbox ----


@pytest.mark.parametrize("shape", [(97, 130), (40, 30), (64, 48), (1, 1), (1, 200), (300, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_equals_pillows_bilinear(shape: tuple[int, int], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((48, 64), Image.Resampling.BILINEAR))
    scaled = resize(image.astype(dtype), (64, 48))
    assert (scaled.dtype, scaled.shape, scaled.is_contiguous()) == (torch.float32, (3, 64, 48), True)
    assert difference(scaled.permute(1, 2, 0).numpy() * 255, expected) <= 1.001


def test_resize_of_uint8_and_of_float_agree_within_one_step() -> None:
    image = np.random.default_rng(1).integers(0, 256, (123, 77, 3), dtype=np.uint8)
    assert (resize(image, (32, 32)) - resize(image.astype(np.float32), (32, 32))).abs().max() <= 1 / 255


def test_resize_stays_within_0_and_1_and_keeps_extremes() -> None:
    for white in (np.full((31, 17, 3), 255, np.uint8), np.full((31, 17, 3), 255, np.float32)):
        assert torch.allclose(resize(white, (9, 9)), torch.ones(3, 9, 9))
        assert resize(white, (9, 9)).max() <= 1


def test_resize_averages_by_hand_and_leaves_the_image_alone() -> None:
    image = np.array([[[0, 40, 0], [0, 40, 0], [250, 0, 0], [250, 0, 0]]], np.float32)
    before = image.copy()
    # half the width: a triangle of 4 pixels around each new centre weighs them 1:3:3:1, without the one off the edge
    expected = torch.tensor([[250 / 7, 250 * 6 / 7], [40 * 6 / 7, 40 / 7], [0, 0]]) / 255
    assert torch.allclose(resize(image, (1, 2))[:, 0], expected, atol=1e-6)
    assert np.array_equal(image, before)


def test_resize_takes_read_only_and_reversed_arrays() -> None:
    image = photo()
    image.setflags(write=False)
    assert torch.equal(resize(image[:, ::-1], (40, 60)), resize(image, (40, 60)).flip(2))


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((100, 200), (64, 64), (16, 0, 32, 64)),
        ((200, 100), (64, 64), (0, 16, 64, 32)),
        ((50, 50), (64, 64), (0, 0, 64, 64)),
        ((10, 1000), (64, 64), (31, 0, 1, 64)),
        ((3, 1000), (64, 64), (31, 0, 1, 64)),
        ((1, 1), (32, 48), (0, 8, 32, 32)),
        ((30, 40), (33, 64), (0, 10, 33, 44)),
    ],
)
def test_letterbox_centres_the_image_and_repeats_its_edges(shape: tuple, size: tuple, box: tuple) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    padded, (top, left, height, width) = letterbox(image, size)
    assert (top, left, height, width) == box
    assert padded.shape == (3, *size)
    inside = resize(image, (height, width))
    rows = np.arange(size[0]).clip(top, top + height - 1) - top
    columns = np.arange(size[1]).clip(left, left + width - 1) - left
    assert torch.equal(padded, inside[:, rows][:, :, columns])


# ---- write ----


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"größe\n検査{suffix}"
    write(path, photo())
    assert np.array_equal(read(path), photo())
    assert np.array_equal(np.asarray(Image.open(path)), photo())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_jpeg_and_webp_are_written_by_their_suffix(tmp_path: Path) -> None:
    for suffix, kind in ((".jpg", "JPEG"), (".webp", "WEBP")):
        write(tmp_path / f"a{suffix}", photo())
        assert Image.open(tmp_path / f"a{suffix}").format == kind
        assert difference(read(tmp_path / f"a{suffix}"), photo()) <= 5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_written_in_full(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", RAMP)
    assert np.array_equal(np.asarray(Image.open(tmp_path / f"a{suffix}")), RAMP)
    with pytest.raises(MambaADError, match=r"a\.jpg: 16 bits need \.png, \.tif or \.tiff$"):
        write(tmp_path / "a.jpg", RAMP)


def test_an_unknown_suffix_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    for name in ("a.gif", "a"):
        with pytest.raises(MambaADError, match=rf"^cannot write .*/{name}: expected \.png, "):
            write(tmp_path / name, photo())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", encoded(photo(), "PNG"))
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*a\.png: File too large$"):
            write(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.array_equal(read(path), photo())
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_read_only_folder_is_an_error_of_one_line(shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o555)
    with pytest.raises(MambaADError, match=r"^cannot write .*/closed/a\.png: Permission denied$"):
        write(shared / "closed" / "a.png", photo())


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_jpeg_much_larger_than_needed_is_decoded_smaller_and_looks_the_same(tmp_path: Path, orientation: int) -> None:
    y, x = np.mgrid[0:400, 0:601]
    picture = np.stack([127 + 100 * np.sin(x / 30), 127 + 100 * np.cos(y / 40), (x + y) / 4], -1).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    file, whole = opened(path), read(path)
    assert file.shape == whole.shape[:2] == ((400, 601) if orientation == 1 else (601, 400))
    least = (100, 75) if orientation == 1 else (75, 100)
    assert [file.reduction(size) for size in (least, (200, 150), (201, 301), (601, 601))] == [4, 2, 1, 1]
    small = file.decoded(least)
    assert small.shape[0] == -(-file.shape[0] // 4)
    assert (resize(small, (64, 64)) - resize(whole, (64, 64))).abs().max() < 0.06


def test_other_formats_and_small_jpegs_are_decoded_whole(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a.png", "a.bmp", "a.jpg"):
        write(tmp_path / name, picture)
        least = (16, 16) if name != "a.jpg" else (33, 33)
        assert np.array_equal(opened(tmp_path / name).decoded(least), read(tmp_path / name))


# ---- stored bytes ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_stored_bytes_are_decoded_as_a_file_is(tmp_path: Path, kind: str) -> None:
    content = encoded(photo(), kind)
    whole = read(saved(tmp_path / "a", content))
    assert np.array_equal(decoded_bytes(content), whole)
    assert np.array_equal(decoded_bytes(np.frombuffer(content, np.uint8)), whole)


@pytest.mark.parametrize("content", [b"", b"text", encoded(photo(), "PNG")[:-20], png(60000, 60000, 8, 0, b"")])
def test_stored_bytes_that_are_damaged_or_too_large_are_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="empty|not an image|truncated|claims 60000×60000"):
        decoded_bytes(content)


# ---- HEIC and AVIF ----

HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100)


def test_a_heic_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'mambaad[heif]'" in reason(saved(tmp_path / "a.heic", HEIC))


def test_a_damaged_heic_is_an_image_error(tmp_path: Path, with_heif: None) -> None:
    assert reason(saved(tmp_path / "a.heic", HEIC)).startswith("damaged")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_avif_is_read_with_its_extra(tmp_path: Path, with_heif: None, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(photo(), "AVIF", quality=95, exif=exif)
    path = saved(tmp_path / "a.avif", content)
    assert opened(path).shape == read(path).shape[:2] == ((40, 60) if orientation == 1 else (60, 40))
    assert difference(read(path), upright(content)) <= 1


def test_a_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.fromarray(photo())).save(path, quality=95)
    assert difference(read(path), photo()) <= 12


@pytest.fixture
def with_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pillow-heif were installed, which only registers itself with Pillow."""
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        module = types.ModuleType("pillow_heif")
        module.register_heif_opener = lambda: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pillow_heif", module)
