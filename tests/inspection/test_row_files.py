import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.regions import Region, json_object
from mambaad_cli.inspection.row_files import Damaged, Row, read_file, read_rows
from mambaad_cli.inspection.rows import COLUMNS, csv_line, json_line, write_rows

EVIL = '=two\r\nlines,"<b>" \udcff\r.png'
PHOTO = PhotoStatistics(0.5, 0.25, 0.125)
REGION = Region((1, 2, 3, 4), 12, 3.5, (2, 3), (2, 4))
WHOLE = {
    "path": "in/a.png",
    "class": "nut",
    "score": 3.5,
    "threshold": 2.0,
    "verdict": "anomalous",
    "error": "",
    "p_value": 0.1,
    "certainty": None,
    "regions": [json_object(REGION)],
    "schema": 1,
    "time": "2026-03-01T23:30:00.250Z",
    "model": "0123456789ab",
    **PHOTO._asdict(),
    "moved_to": "done/anomalous/a.png",
}


def prediction(name: str, photo: PhotoStatistics | None = None) -> Prediction:
    return Prediction(ImageFile(Path(name), Path(name), ""), "nut", 1.5, 2.0, "good", "", photo=photo)


def file(folder: Path, text: str) -> Path:
    path = folder / "rows"
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return path


def test_a_json_row_tells_all_of_it(tmp_path: Path) -> None:
    path = file(tmp_path, json_line(WHOLE))
    time = datetime(2026, 3, 1, 23, 30, 0, 250_000, timezone.utc)
    found, judged = read_file(path), ("in/a.png", "nut", 3.5, 2.0, "anomalous", "", 0.1, (REGION,))
    assert found.rows == [Row(*judged, time, "0123456789ab", PHOTO, "done/anomalous/a.png")]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("as_json", [True, False])
def test_rows_come_back_whatever_the_name(tmp_path: Path, as_json: bool) -> None:
    """In CSV, text that a spreadsheet would run has an apostrophe, which goes."""
    write_rows([prediction(EVIL, PHOTO), prediction("b.png")], tmp_path / "r", as_json, model="m")
    first, second = read_file(tmp_path / "r").rows
    assert (first.path, first.class_name, first.score, first.verdict) == (EVIL, "nut", 1.5, "good")
    assert second.path == "b.png"
    if as_json:
        assert first.time is not None
        assert first.time.utcoffset() is not None
        assert (first.model, first.photo, second.photo) == ("m", PHOTO, None)
    else:
        assert (first.regions, first.time, first.model, first.photo) == (None, None, "", None)


def test_rows_of_version_0_2_do_as_well(tmp_path: Path) -> None:
    """Without schema, time, model and what else came later; with a byte order mark or empty lines."""
    old = json_line({name: WHOLE[name] for name in COLUMNS if name in WHOLE})
    (first, second) = read_file(file(tmp_path, f"\ufeff{old}\r\n\n{old}")).rows
    assert first == second
    assert (first.score, first.time, first.regions, first.photo) == (3.5, None, None, None)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_last_line_without_its_end_is_still_being_written(tmp_path: Path, as_json: bool) -> None:
    write_rows([prediction("a.png"), prediction("b.png")], tmp_path / "r", as_json)
    whole = (tmp_path / "r").read_bytes()
    for cut in (1, 3):
        (tmp_path / "r").write_bytes(whole[:-cut])
        row, last = read_rows(tmp_path / "r")
        assert isinstance(row, Row)
        assert row.path == "a.png"
        assert last == Damaged(2 if as_json else 3, growing=True)
        assert read_file(tmp_path / "r").damaged == [last.number]
    (tmp_path / "r").write_bytes(b"")
    assert list(read_rows(tmp_path / "r")) == []


@pytest.mark.parametrize(
    "damage",
    [
        '{"path": "a", "class": "n", "sco',
        "[]",
        "3",
        '{"path": "a"}',
        *(
            json.dumps(WHOLE | {name: value})
            for name, value in {
                "path": 1,
                "score": "x",
                "verdict": 3,
                "time": "soon",
                "schema": "x",
                "regions": [{"box": 1}],
                "contrast": "x",
            }.items()
        ),
    ],
)
def test_a_damaged_line_between_others_is_left_out_and_named(tmp_path: Path, damage: str) -> None:
    path = file(tmp_path, f"{json_line(WHOLE)}\n{damage}\n{json_line(WHOLE)}")
    first, damaged, last = read_rows(path)
    assert isinstance(first, Row)
    assert (damaged, last) == (Damaged(3), first)
    assert read_file(path).damaged == [3]


def test_a_damaged_line_of_csv_is_left_out_and_named(tmp_path: Path) -> None:
    write_rows([prediction("a.png")], tmp_path / "r", False)
    with (tmp_path / "r").open("a") as more:
        more.write("b.png,nut\nc.png,nut,x,2,good,,,\nd.png,nut,1,2,good,,,,,\n")
    assert list(read_rows(tmp_path / "r"))[1:] == [Damaged(3), Damaged(4), Damaged(5)]


def test_other_files_and_newer_rows_are_refused_in_one_line(tmp_path: Path) -> None:
    for other in (b"\x89PNG\r\n\x1a\n\xff", b"a,b\n1,2\n", b"path,verdict\na.png,good\n"):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(MambaADError, match="was not written by mambaad watch"):
            list(read_rows(tmp_path / "other"))
    with pytest.raises(MambaADError, match="^cannot read .*none: No such file"):
        list(read_rows(tmp_path / "none"))
    with pytest.raises(MambaADError, match="^cannot read .*: Is a directory"):
        list(read_rows(tmp_path))
    with pytest.raises(MambaADError, match=r"has rows of a newer mambaad \(schema 2\): upgrade this one$"):
        list(read_rows(file(tmp_path, json.dumps({"path": "a", "schema": 2}) + "\n")))


@pytest.mark.parametrize("text", ["", csv_line(COLUMNS), '{"path": "cut', "{}\n"])
def test_a_whole_file_without_a_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MambaADError, match="holds no rows"):
        read_file(file(tmp_path, text))
