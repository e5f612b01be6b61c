"""Layouts are recognised, or named; what is no dataset is one line."""

from mambaad_cli.data.datasets import is_dataset, load, recognise, training_images
from mambaad_cli.data.layouts import LAYOUTS, MARKS
from tests.data.trees import error, meta_root, mvtec_class, rows, write, write_all, write_json, write_text

# Recognition


def test_a_folder_tree_wins_over_a_meta_json_beside_it(tmp_path):
    mvtec_class(tmp_path, "bottle")
    meta_root(tmp_path)
    assert recognise(tmp_path) == "mvtec"
    assert [s.class_name for s in load(tmp_path, "meta")] == ["liver"] * 3


def test_a_named_layout_is_not_second_guessed(tmp_path):
    mvtec_class(tmp_path, "bottle")
    message = error(tmp_path, "pair")
    assert "as layout pair" in message
    assert "good/ beside bad/" in message


def test_train_good_makes_a_dataset_directly_or_one_level_below_but_no_deeper(tmp_path):
    write_all(tmp_path / "set/bottle/train/good", "0.png")
    assert is_dataset(tmp_path / "set/bottle")
    assert is_dataset(tmp_path / "set")
    assert not is_dataset(tmp_path)


def test_plain_folders_of_good_images_are_no_dataset(tmp_path):
    write_all(tmp_path, "0.png", "bottle/0.png", "train/0.png", "train/red/0.png", "test/0.png", "good/0.png")
    write_text(tmp_path / "scores.csv", "path,class,score,threshold,verdict\n0.png,bottle,1,2,good\n")
    write_json(tmp_path / "meta.json", {"author": "me"})
    write_text(tmp_path / "meta_old.json", "{")
    assert not is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "0.png")
    assert not is_dataset(tmp_path / "nowhere")


def test_an_unknown_tree_says_what_was_looked_for_and_names_every_layout(tmp_path):
    write(tmp_path / "images/0.png")
    message = error(tmp_path)
    assert str(tmp_path) in message
    assert set(MARKS) == set(LAYOUTS)
    assert all(f"{mark} ({name})" in message for name, mark in MARKS.items())


def test_every_layout_shows_its_tree():
    assert all("<root>/" in (layout.__doc__ or "") for layout in LAYOUTS.values())


# Errors


def test_a_folder_that_is_not_there_and_a_layout_that_does_not_exist(tmp_path):
    assert "nowhere does not exist" in error(tmp_path / "nowhere")
    assert "'mvtek'" in error(tmp_path, "mvtek")
    assert "mvtec, visa, realiad" in error(tmp_path, "mvtek")


def test_a_tree_without_images_says_so(tmp_path):
    (tmp_path / "train/good").mkdir(parents=True)
    assert "no images" in error(tmp_path)


def test_training_images_are_good_and_of_the_training_split(tmp_path):
    mvtec_class(tmp_path, "bottle")
    write(tmp_path / "bottle/train/cut/7.png")
    assert rows(training_images(load(tmp_path)), tmp_path / "bottle") == [
        ("train/good/0.png", "bottle", "train", "good", None),
        ("train/good/1.png", "bottle", "train", "good", None),
    ]


def test_a_name_of_two_lines_is_shown_on_one(tmp_path):
    """`error` checks that each message is one line."""
    odd = tmp_path / "two\nlines"
    assert "two\\nlines does not exist" in error(odd)
    (odd / "train/good").mkdir(parents=True)
    assert "two\\nlines as layout mvtec" in error(odd)
    (odd / "train/good").rmdir()
    assert "two\\nlines: looked for" in error(odd)
    write_text(odd / "list.csv", "path,label\n7.png,good\n")
    assert "two\\nlines/list.csv names 1 missing file(s)" in error(odd)
