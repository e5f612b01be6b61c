"""Every layout is read as its publishers describe it; labels never depend on masks or their size."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from mambaad_cli.data.datasets import load, recognise
from tests.data.trees import error, meta_entry, meta_root, mvtec_class, rows, write, write_all, write_json, write_text


@pytest.fixture
def realiad_root(tmp_path: Path) -> Path:
    """Two image sizes, the lists as they unpack, and one defective part whose defect one view does not show."""
    root = tmp_path / "Real-IAD"
    for size in ("realiad_256", "realiad_1024"):
        write_all(
            root / size / "usb",
            "OK/S1/a_C1.jpg",
            "NG/HS/S1/b_C1.jpg",
            "NG/HS/S1/b_C1.png",
            "NG/HS/S1/b_C2.jpg",
        )

    def entry(kind: str, path: str, mask: str | None = None) -> dict:
        return {"category": "usb", "anomaly_class": kind, "image_path": path, "mask_path": mask}

    lists = {
        "meta": {"normal_class": "OK", "prefix": "usb/"},
        "train": [entry("OK", "OK/S1/a_C1.jpg")],
        "test": [entry("HS", "NG/HS/S1/b_C1.jpg", "NG/HS/S1/b_C1.png"), entry("OK", "NG/HS/S1/b_C2.jpg")],
    }
    write_json(root / "realiad_jsons/realiad_jsons/usb.json", lists)
    write_json(root / "realiad_jsons/realiad_jsons_sv/usb.json", {**lists, "test": lists["test"][:1]})
    return root


@pytest.fixture
def visa_root(tmp_path: Path) -> Path:
    write_text(
        tmp_path / "split_csv/1cls.csv",
        "object,split,label,image,mask\n"
        "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
        "candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n",
    )
    data = "candle/Data"
    return write_all(
        tmp_path,
        f"{data}/Images/Normal/0000.JPG",
        f"{data}/Images/Normal/0001.JPG",
        f"{data}/Images/Anomaly/000.JPG",
        f"{data}/Masks/Anomaly/000.png",
    )


# Folder trees


def test_five_classes_in_the_mvtec_tree_of_which_one_has_no_masks(tmp_path):
    for name in ("bottle", "cable", "grid", "tile"):
        mvtec_class(tmp_path, name)
    mvtec_class(tmp_path, "toy", masks=False)
    write_text(tmp_path / "license.txt", "CC BY")
    mvtec_class(tmp_path, ".cache")
    assert recognise(tmp_path) == "mvtec"
    samples = load(tmp_path)
    assert Counter(s.class_name for s in samples) == dict.fromkeys(("bottle", "cable", "grid", "tile", "toy"), 5)
    assert Counter((s.split, s.defect) for s in samples) == {
        ("train", "good"): 10,
        ("test", "good"): 5,
        ("test", "cut"): 10,
    }
    assert Counter(s.class_name for s in samples if s.mask) == dict.fromkeys(("bottle", "cable", "grid", "tile"), 2)
    assert len([s for s in samples if s.class_name == "toy" and s.anomalous and s.mask is None]) == 2


def test_a_single_class_folder_takes_its_class_name_from_the_folder(tmp_path, monkeypatch):
    mvtec_class(tmp_path, "bottle")
    expected = [
        ("train/good/0.png", "bottle", "train", "good", None),
        ("train/good/1.png", "bottle", "train", "good", None),
        ("test/cut/0.png", "bottle", "test", "cut", "ground_truth/cut/0_mask.png"),
        ("test/cut/1.png", "bottle", "test", "cut", "ground_truth/cut/1_mask.png"),
        ("test/good/0.png", "bottle", "test", "good", None),
    ]
    assert rows(load(tmp_path / "bottle"), tmp_path / "bottle") == expected
    monkeypatch.chdir(tmp_path / "bottle")
    assert rows(load(Path()), Path()) == expected


def test_btad_says_ok_and_ko_and_names_masks_by_the_stem_alone(tmp_path):
    write_all(tmp_path / "01", "train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png")
    write_all(tmp_path / "03", "train/OK/0.bmp", "test/ko/2.bmp", "ground_truth/ko/2.bmp")
    assert recognise(tmp_path) == "mvtec"
    assert rows(load(tmp_path), tmp_path) == [
        ("01/train/ok/0.bmp", "01", "train", "good", None),
        ("01/test/ko/2.bmp", "01", "test", "ko", "01/ground_truth/ko/2.png"),
        ("01/test/ok/1.bmp", "01", "test", "good", None),
        ("03/train/OK/0.bmp", "03", "train", "good", None),
        ("03/test/ko/2.bmp", "03", "test", "ko", "03/ground_truth/ko/2.bmp"),
    ]


def test_rearranged_visa_and_mpdd_are_the_mvtec_tree(tmp_path):
    write_all(tmp_path / "pcb1", "train/good/0.JPG", "test/bad/0.JPG", "ground_truth/bad/0.png")
    write_all(tmp_path / "tubes", "train/good/0.png", "test/holes/0.png", "ground_truth/holes/0_mask.png")
    masks = [s.mask for s in load(tmp_path) if s.anomalous]
    assert masks == [tmp_path / "pcb1/ground_truth/bad/0.png", tmp_path / "tubes/ground_truth/holes/0_mask.png"]


def test_an_image_never_takes_the_mask_of_another(tmp_path):
    write_all(tmp_path, "train/good/0.png", "test/cut/1.png", "test/cut/11.png", "ground_truth/cut/1_mask.png")
    write_all(tmp_path, "test/cut/1_mask.png", "ground_truth/cut/1_mask_mask.png", "ground_truth/dent/11_mask.png")
    assert {s.path.name: s.mask and s.mask.name for s in load(tmp_path) if s.anomalous} == {
        "1.png": "1_mask.png",
        "1_mask.png": "1_mask_mask.png",
        "11.png": None,
    }


def test_mvtec_3d_gives_its_colour_images_and_no_validation(tmp_path):
    for kind in ("train/good", "validation/good", "test/good", "test/hole"):
        write_all(tmp_path / "bagel" / kind, "rgb/000.png", "xyz/000.tiff")
    write_all(tmp_path / "bagel/test", "good/gt/000.png", "hole/gt/000.png")
    assert recognise(tmp_path) == recognise(tmp_path / "bagel") == "mvtec3d"
    assert rows(load(tmp_path), tmp_path / "bagel") == [
        ("train/good/rgb/000.png", "bagel", "train", "good", None),
        ("test/good/rgb/000.png", "bagel", "test", "good", None),
        ("test/hole/rgb/000.png", "bagel", "test", "hole", "test/hole/gt/000.png"),
    ]


def test_medical_reads_masks_beside_the_images_and_in_ground_truth(tmp_path):
    write_all(tmp_path / "brain", "train/good/0.png", "test/good/img/1.png", "test/good/label/1.png")
    write_all(tmp_path / "brain", "test/Ungood/img/2.png", "test/Ungood/label/2.png")
    write_all(tmp_path / "liver", "train/good/0.png", "test/Ungood/2.png", "ground_truth/Ungood/2.png")
    assert recognise(tmp_path) == "medical"
    assert rows(load(tmp_path), tmp_path) == [
        ("brain/train/good/0.png", "brain", "train", "good", None),
        ("brain/test/good/img/1.png", "brain", "test", "good", None),
        ("brain/test/Ungood/img/2.png", "brain", "test", "Ungood", "brain/test/Ungood/label/2.png"),
        ("liver/train/good/0.png", "liver", "train", "good", None),
        ("liver/test/Ungood/2.png", "liver", "test", "Ungood", "liver/ground_truth/Ungood/2.png"),
    ]


def test_a_pair_of_folders_is_all_test(tmp_path):
    root = write_all(tmp_path / "gear", "good/1.png", "bad/2.png", "bad/3.png", "masks/2.png", "other/9.png")
    assert recognise(root) == recognise(tmp_path) == "pair"
    expected = [
        ("bad/2.png", "gear", "test", "bad", "masks/2.png"),
        ("bad/3.png", "gear", "test", "bad", None),
        ("good/1.png", "gear", "test", "good", None),
    ]
    assert rows(load(root), root) == rows(load(tmp_path), root) == expected


def test_numbers_in_names_sort_by_value_and_the_order_is_stable(tmp_path):
    names = ["10.png", "b2.png", "9.png", "B10.png", "1.png", "001.png", "01.png"]
    write_all(tmp_path, *(f"train/good/{name}" for name in names), "train/good/.9.png", "train/good/notes.txt.gz.png")
    write_text(tmp_path / "train/good/notes.txt", "")
    found = [s.path.name for s in load(tmp_path)]
    assert found == ["001.png", "01.png", "1.png", "9.png", "10.png", "b2.png", "B10.png", "notes.txt.gz.png"]


# Names of products


@pytest.mark.parametrize("layout", ["mvtec", "pair"])
def test_a_linked_class_folder_is_called_as_the_link_is(tmp_path, monkeypatch, layout):
    stored = tmp_path / "store" / "2024-07-01"
    write_all(stored, *(["train/good/0.png"] if layout == "mvtec" else ["good/0.png", "bad/0.png"]))
    (tmp_path / "parts").mkdir()
    link = tmp_path / "parts" / "nut"
    link.symlink_to(stored)
    monkeypatch.chdir(tmp_path / "parts")
    for root in (link, tmp_path / "parts", Path("nut"), Path("nut/."), Path("../parts/nut"), Path()):
        assert {(one.class_name, recognise(root)) for one in load(root)} == {("nut", layout)}


def test_the_current_folder_and_the_one_above_have_names(tmp_path, monkeypatch):
    write_all(tmp_path / "gear", "train/good/0.png")
    write_all(tmp_path / "pair", "good/0.png", "bad/0.png")
    write_text(write_all(tmp_path / "list", "0.png") / "list.csv", "path,label\n0.png,good\n")
    for name in ("gear", "pair", "list"):
        (tmp_path / name / "below").mkdir()
        monkeypatch.chdir(tmp_path / name / "below")
        assert {one.class_name for one in load(Path(".."))} == {name}
        monkeypatch.chdir(tmp_path / name)
        assert {one.class_name for one in load(Path())} == {name}


def test_a_csv_file_in_a_linked_folder_or_linked_itself_names_the_class_by_where_it_is_seen(tmp_path, monkeypatch):
    stored = write_all(tmp_path / "store", "0.png")
    table = write_text(stored / "list.csv", "path,label\n0.png,good\n")
    (tmp_path / "gear").symlink_to(stored)
    write_all(tmp_path / "nut", "0.png")
    (tmp_path / "nut" / "list.csv").symlink_to(table)
    for name in ("gear", "nut"):
        for root in (tmp_path / name, tmp_path / name / "list.csv"):
            assert [(one.class_name, one.path) for one in load(root)] == [(name, tmp_path / name / "0.png")]
    monkeypatch.chdir(tmp_path / "nut")
    assert [one.class_name for one in load(Path("list.csv"))] == ["nut"]


# Lists


def test_visa_as_downloaded_follows_its_one_class_split(visa_root):
    assert recognise(visa_root) == "visa"
    assert rows(load(visa_root), visa_root / "candle/Data") == [
        ("Images/Normal/0000.JPG", "candle", "train", "good", None),
        ("Images/Normal/0001.JPG", "candle", "test", "good", None),
        ("Images/Anomaly/000.JPG", "candle", "test", "anomaly", "Masks/Anomaly/000.png"),
    ]


def test_real_iad_takes_the_largest_images_and_labels_each_view_by_itself(realiad_root):
    assert recognise(realiad_root) == "realiad"
    assert rows(load(realiad_root), realiad_root / "realiad_1024/usb") == [
        ("OK/S1/a_C1.jpg", "usb", "train", "good", None),
        ("NG/HS/S1/b_C1.jpg", "usb", "test", "HS", "NG/HS/S1/b_C1.png"),
        ("NG/HS/S1/b_C2.jpg", "usb", "test", "good", None),
    ]


def test_another_list_of_real_iad_is_chosen_by_its_folder(realiad_root):
    assert len(load(realiad_root / "realiad_jsons/realiad_jsons_sv")) == 2


def test_real_iad_lists_may_lie_flat_and_images_beside_them(realiad_root, tmp_path):
    root = tmp_path / "flat"
    (realiad_root / "realiad_256").rename(root)
    (realiad_root / "realiad_jsons/realiad_jsons").rename(root / "realiad_jsons")
    assert [s.path.is_relative_to(root / "usb") for s in load(root)] == [True] * 3


def test_meta_json_labels_by_its_flag(tmp_path):
    root = meta_root(tmp_path)
    assert recognise(root) == recognise(root / "meta.json") == "meta"
    expected = [
        ("a/0.png", "liver", "train", "good", None),
        ("a/1.png", "liver", "test", "good", None),
        ("a/2.png", "liver", "test", "Ungood", "m/2.png"),
    ]
    assert rows(load(root), root) == rows(load(root / "meta.json"), root) == expected
    write_json(root / "meta.json", {"train": {}, "test": {"liver": [meta_entry("a/2.png", 1, "good")]}})
    assert rows(load(root), root) == [("a/2.png", "liver", "test", "anomaly", None)]


def test_coco_ad_is_loaded_one_split_at_a_time(tmp_path):
    for split in range(4):
        meta_root(tmp_path, f"meta_20_{split}.json")
    assert recognise(tmp_path) == "coco"
    assert "meta_20_0.json, meta_20_1.json, meta_20_2.json, meta_20_3.json: give one" in error(tmp_path)
    assert len(load(tmp_path / "meta_20_2.json")) == 3


def test_the_cookies_are_a_dataset() -> None:
    samples = load(Path(__file__).parent / "cookie")
    assert Counter((one.split, one.defect) for one in samples) == {
        ("train", "good"): 33,
        ("test", "good"): 12,
        ("test", "broken"): 32,
    }
    assert all((one.mask is not None) == (one.defect == "broken") for one in samples)


def test_csv_defaults_are_the_folders_name_and_test(tmp_path):
    write_all(tmp_path / "gear", "a/1.png", "a/2.png", "a/3.png", "m/2.png")
    text = "path,label,mask,class,split\na/1.png,Good,,nut,train\na/2.png, scratch ,m/2.png,,\n\na/3.png,0\n"
    table = write_text(tmp_path / "gear/list.csv", "\ufeff" + text)
    expected = [
        ("a/1.png", "nut", "train", "good", None),
        ("a/2.png", "gear", "test", "scratch", "m/2.png"),
        ("a/3.png", "gear", "test", "good", None),
    ]
    assert recognise(table) == recognise(table.parent) == "csv"
    assert rows(load(table), table.parent) == rows(load(table.parent), table.parent) == expected


@pytest.mark.parametrize("label", ["good", "GOOD", "ok", "normal", "0", "0.0", "False"])
def test_csv_words_for_good(tmp_path, label):
    write(tmp_path / "1.png")
    assert not load(write_text(tmp_path / "l.csv", f"label,path\n{label},1.png\n"))[0].anomalous


@pytest.mark.parametrize("label", ["1", "bad", "no good", "00", "anomaly"])
def test_csv_any_other_word_is_a_defect(tmp_path, label):
    write(tmp_path / "1.png")
    assert load(write_text(tmp_path / "l.csv", f"path,label\n1.png,{label}\n"))[0].defect == label


def test_a_link_to_itself_is_passed_over(tmp_path):
    mvtec_class(tmp_path, "bottle")
    before = load(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert load(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path;label\n1.png;good\n", "no column label, path: its header is path;label"),
        ("image,label\n1.png,good\n", "no column path: its header is image,label"),
        ("", "no column label, path"),
        ("path,label\n1.png,\n", "line 2: path or label is empty"),
        ("path,label,split\n1.png,good,val\n", "line 2: split is 'val', expected train or test"),
        ("path,label\n1.png,good\n7.png,bad\n8.png,bad\n", "names 2 missing file(s), the first"),
        ("path,label,mask\n1.png,bad,7.png\n", "names 1 missing file(s), the first"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path, text, expected):
    write(tmp_path / "1.png")
    table = write_text(tmp_path / "list.csv", text)
    message = error(table)
    assert expected in message
    assert str(table) in message
    assert "7.png" in message or "missing" not in message


def test_several_csv_files_want_one_named(tmp_path):
    for name in ("a.csv", "b.csv"):
        write_text(tmp_path / name, "path,label\n")
    assert "a.csv, b.csv: give one of these files" in error(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no *.csv in" in error(tmp_path / "empty", "csv")


def test_a_csv_in_another_encoding_is_named(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\nü.png,good\n".encode("latin-1"))
    assert "list.csv" in error(tmp_path / "list.csv")


def test_lists_name_the_first_missing_file_and_the_count(realiad_root, visa_root, tmp_path):
    for image in realiad_root.glob("realiad_1024/usb/NG/HS/S1/*.jpg"):
        image.unlink()
    assert "names 2 missing file(s), the first" in error(realiad_root)
    assert "b_C1.jpg" in error(realiad_root)
    (visa_root / "candle/Data/Masks/Anomaly/000.png").unlink()
    assert "names 1 missing file(s), the first" in error(visa_root)
    root = meta_root(tmp_path / "meta")
    (root / "a/2.png").unlink()
    assert "names 1 missing file(s), the first" in error(root)


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"train": {}},
        {"train": {}, "test": []},
        {"train": {}, "test": {"a": {}}},
        {"train": {}, "test": {"a": ["b"]}},
        {"train": {}, "test": {"a": [{"img_path": "0.png"}]}},
        {"train": {}, "test": {"a": [{"img_path": None, "anomaly": 0}]}},
    ],
)
def test_a_json_list_of_another_form_is_one_line_not_a_traceback(tmp_path, data):
    assert "meta.json" in error(write_json(tmp_path / "meta.json", data), "meta")
    folder = write_json(tmp_path / "realiad_jsons/a.json", data).parent.parent
    assert "a.json" in error(folder, "realiad")


def test_a_json_list_that_is_cut_off_is_named(tmp_path):
    assert "meta.json" in error(write_text(tmp_path / "meta.json", '{"train": {'), "meta")


def test_lists_that_are_not_there(tmp_path):
    assert "1cls.csv" in error(tmp_path, "visa")
    assert "realiad_jsons" in error(tmp_path, "realiad")
    assert "no meta_*.json" in error(tmp_path, "coco")


# Made on another system


WINDOWS_ROWS = [
    "path,label,mask,class,split",
    r"photos\1.jpg,good,,nut,train",
    r"photos\bad\2.jpg,bent,drawn\2.png,nut,test",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_csv_list_made_on_windows_is_its_twin(tmp_path, encoding, line_end):
    write_all(tmp_path, "photos/1.jpg", "photos/bad/2.jpg", "drawn/2.png")
    table = tmp_path / "list.csv"
    table.write_bytes(line_end.join(WINDOWS_ROWS).replace("\\", "/").encode())
    expected = load(tmp_path)
    assert rows(expected, tmp_path)[1] == ("photos/bad/2.jpg", "nut", "test", "bent", "drawn/2.png")
    table.write_bytes(line_end.join(WINDOWS_ROWS).encode(encoding))
    assert recognise(tmp_path) == "csv"
    assert load(tmp_path) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_meta_json_made_on_windows_is_its_twin(tmp_path, encoding):
    root = meta_root(tmp_path)
    expected = load(root)
    text = (root / "meta.json").read_text().replace("a/", r"a\\").replace("m/", r"m\\")
    assert r"a\\2.png" in text
    (root / "meta.json").write_text(text, encoding=encoding)
    assert recognise(root) == "meta"
    assert load(root) == expected


def test_a_list_finds_names_of_another_case_as_windows_does(tmp_path):
    write_all(tmp_path, "Photos/1.JPG", "photos2/a.jpg", "photos2/A.jpg")
    table = write_text(tmp_path / "list.csv", "path,label\nphotos\\1.jpg,good\n")
    assert rows(load(table), tmp_path)[0][0] == "Photos/1.JPG"
    write_text(table, "path,label\nphotos2/A.JPG,good\n")  # which of the two, nobody knows
    assert "names 1 missing file(s)" in error(table)


def test_a_file_that_is_named_with_a_backslash_is_that_file(tmp_path):
    write(tmp_path / "a\\1.png")
    write(tmp_path / "a/1.png")
    table = write_text(tmp_path / "list.csv", "path,label\na\\1.png,good\n")
    assert load(table)[0].path == tmp_path / "a\\1.png"


def test_a_path_on_a_windows_drive_says_so(tmp_path):
    table = write_text(tmp_path / "list.csv", "path,label\nC:\\photos\\1.png,good\n")
    assert "not to a Windows drive" in error(table)


def test_a_csv_in_another_encoding_says_what_to_do(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\ngröße.png,good\n".encode("cp1252"))
    assert "save it as UTF-8" in error(tmp_path / "list.csv")


@pytest.mark.parametrize(("stored", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_are_the_same_names(tmp_path, stored, named):
    photo, mask = (unicodedata.normalize(form, "prüfung/größe") for form in (stored, named))
    defect, drawn = (unicodedata.normalize(form, "kratzer-ä") for form in (stored, named))
    write_all(tmp_path / "list", f"{photo}.png")
    table = write_text(tmp_path / "list/list.csv", f"path,label,mask\n{mask}.png,good,\n")
    assert load(table)[0].path == tmp_path / "list" / f"{photo}.png"
    tree = tmp_path / "tree"
    write_all(tree, "train/good/0.png", f"test/{defect}/{photo[8:]}.png", f"ground_truth/{drawn}/{mask[8:]}_mask.png")
    assert load(tree)[-1].mask == tree / f"ground_truth/{drawn}/{mask[8:]}_mask.png"


# What systems add


def test_system_folders_and_their_files_are_no_classes_kinds_or_images(tmp_path):
    mvtec_class(tmp_path, "bottle")
    before = load(tmp_path)
    for folder in ("@eaDir", "#recycle", "__MACOSX", "bottle/test/@eaDir", "bottle/test/cut/#recycle"):
        mvtec_class(tmp_path / folder, "bottle")
        write(tmp_path / folder / "SYNOFILE_THUMB_M.jpg")
    assert load(tmp_path) == before


def test_a_list_is_the_only_one_beside_a_shadow_of_macos(tmp_path):
    write(tmp_path / "1.png")
    write_text(tmp_path / "list.csv", "path,label\n1.png,good\n")
    write_text(tmp_path / "._list.csv", "\0\5\26\7")
    assert recognise(tmp_path) == "csv"
    assert len(load(tmp_path)) == 1


def test_pictures_of_other_kinds_in_a_tree_are_counted(tmp_path):
    mvtec_class(tmp_path, "bottle")
    write_text(tmp_path / "bottle/test/cut/7.heif.GIF", "")
    write_text(tmp_path / "bottle/train/good/7.dng", "")
    write_text(tmp_path / "bottle/ground_truth/cut/7.gif", "")
    unread = Counter()
    assert len(load(tmp_path, unread=unread)) == 5
    assert unread == {".gif": 1, ".dng": 1}
    write_text(tmp_path / "raw/train/good/7.dng", "")
    assert "it holds 1 picture of a kind that is not read: 1 .dng" in error(tmp_path / "raw")


# MVTec LOCO


def test_loco_has_a_folder_of_masks_for_each_image_and_its_validation_is_no_test(tmp_path):
    root = tmp_path / "loco/breakfast_box"
    write_all(root, "train/good/0.png", "validation/good/0.png", "test/good/0.png")
    write_all(
        root, "test/logical_anomalies/000.png", "test/logical_anomalies/001.png", "test/logical_anomalies/002.png"
    )
    write_all(root / "ground_truth/logical_anomalies", "000/000.png", "000/001.png", "002.png")
    (root / "ground_truth/logical_anomalies/001").mkdir()
    write_json(root / "defects_config.json", [{"defect_name": "missing", "pixel_value": 255}])
    assert recognise(tmp_path / "loco") == "mvtec"
    masks = "ground_truth/logical_anomalies"
    assert rows(load(tmp_path / "loco"), root) == [
        ("train/good/0.png", "breakfast_box", "train", "good", None),
        ("test/good/0.png", "breakfast_box", "test", "good", None),
        ("test/logical_anomalies/000.png", "breakfast_box", "test", "logical_anomalies", f"{masks}/000"),
        ("test/logical_anomalies/001.png", "breakfast_box", "test", "logical_anomalies", None),
        ("test/logical_anomalies/002.png", "breakfast_box", "test", "logical_anomalies", f"{masks}/002.png"),
    ]
