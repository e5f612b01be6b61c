import json
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.predict import Prediction
from mambaad_cli.inspection.rows import write_rows
from mambaad_cli.line.row_files import Damaged, Row, read_rows

EVIL = 'two\nlines,"<b>" \udcff.png'


def prediction(name: str, photo: PhotoStatistics | None = None) -> Prediction:
    file = ImageFile(Path(name), Path(name), "")
    return Prediction(file, "nut", 1.5, 2.0, "good", "", photo=photo)


def rows(path: Path) -> list[Row]:
    found = list(read_rows(path))
    assert all(isinstance(one, Row) for one in found)
    return [one for one in found if isinstance(one, Row)]


@pytest.mark.parametrize("as_json", [True, False])
def test_rows_come_back_whatever_the_name(tmp_path: Path, as_json: bool) -> None:
    photo = PhotoStatistics(0.5, 0.25, 0.125)
    write_rows([prediction(EVIL, photo), prediction("b.png")], tmp_path / "r", as_json, model="m")
    first, second = rows(tmp_path / "r")
    assert first[:4] == (EVIL, "nut", 1.5, "good")
    assert second.path == "b.png"
    if as_json:
        assert first.time is not None
        assert first.time.utcoffset() is not None
        assert (first.model, first.photo, second.photo) == ("m", photo, None)
    else:
        assert first[4:] == (None, None, None)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_row_that_is_still_being_written_is_left_for_later(tmp_path: Path, as_json: bool) -> None:
    write_rows([prediction("a.png"), prediction("b.png")], tmp_path / "r", as_json)
    whole = (tmp_path / "r").read_bytes()
    (tmp_path / "r").write_bytes(whole[:-3])
    assert [one.path for one in rows(tmp_path / "r")] == ["a.png"]
    (tmp_path / "r").write_bytes(b"")
    assert rows(tmp_path / "r") == []


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "a", "class": "n", "sco',
        "[]",
        "3",
        '{"path": "a"}',
        '{"path": "a", "class": "n", "score": "x", "threshold": 1, "verdict": "good"}',
        '{"path": "a", "class": "n", "score": 1, "threshold": 1, "verdict": 3}',
        '{"path": "a", "class": "n", "score": 1, "threshold": 1, "verdict": "good", "time": "soon"}',
        '{"path": "a", "class": "n", "score": 1, "threshold": 1, "verdict": "good", "schema": "x"}',
    ],
)
def test_a_damaged_line_between_others_is_counted_and_no_more(tmp_path: Path, line: str) -> None:
    write_rows([prediction("a.png")], tmp_path / "r", True)
    good = (tmp_path / "r").read_text()
    (tmp_path / "r").write_text(f"{good}{line}\n{good}")
    found = list(read_rows(tmp_path / "r"))
    assert found[1] == Damaged()
    assert [one.path for one in (found[0], found[2]) if isinstance(one, Row)] == ["a.png", "a.png"]


def test_a_damaged_line_of_csv_is_counted(tmp_path: Path) -> None:
    write_rows([prediction("a.png")], tmp_path / "r", False)
    with (tmp_path / "r").open("a") as file:
        file.write("b.png,nut\nc.png,nut,x,2,good,,,\n")
    assert list(read_rows(tmp_path / "r"))[1:] == [Damaged(), Damaged()]


def test_other_files_and_newer_rows_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(MambaADError, match="was not written by mambaad watch"):
        list(read_rows(tmp_path / "photo"))
    with pytest.raises(MambaADError, match="^cannot read .*none: No such file"):
        list(read_rows(tmp_path / "none"))
    with pytest.raises(MambaADError, match="^cannot read .*: Is a directory"):
        list(read_rows(tmp_path))
    (tmp_path / "new").write_text(json.dumps({"path": "a", "schema": 2}) + "\n")
    with pytest.raises(MambaADError, match=r"has rows of a newer mambaad \(schema 2\): upgrade this one$"):
        list(read_rows(tmp_path / "new"))
