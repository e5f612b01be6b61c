import hashlib
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.inspection.regions import Region, json_object
from mambaad_cli.inspection.row_files import read_rows
from mambaad_cli.inspection.rows import csv_line, json_line

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
    "brightness": 0.5,
}


def file(folder: Path, text: str) -> Path:
    path = folder / "rows"
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return path


def test_a_json_row_tells_all_of_it(tmp_path: Path) -> None:
    path = file(tmp_path, json_line(WHOLE))
    found = read_rows(path)
    (row,) = found.rows
    assert (row.path, row.class_name, row.score, row.threshold, row.verdict) == (
        "in/a.png",
        "nut",
        3.5,
        2.0,
        "anomalous",
    )
    assert row.time is not None
    assert (row.time.isoformat(), row.model) == ("2026-03-01T23:30:00.250000+00:00", "0123456789ab")
    assert row.regions == (REGION,)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_of_version_0_2_and_of_csv_do_as_well(tmp_path: Path) -> None:
    """Without schema, time and model; in CSV text that a spreadsheet would run has an apostrophe."""
    plain = [
        WHOLE[name] for name in ("path", "class", "score", "threshold", "verdict", "error", "p_value", "certainty")
    ]
    names = csv_line(["path", "class", "score", "threshold", "verdict", "error", "p_value", "certainty"])
    odd = ['=1+1\r\n, "\udcff.png', "", None, None, "error", "-", None, None]
    found = read_rows(file(tmp_path, names + csv_line(plain) + csv_line(odd)))
    first, second = found.rows
    assert (first.path, first.score, first.time, first.regions, first.model) == ("in/a.png", 3.5, None, None, "")
    assert (second.path, second.error, second.score) == (odd[0], "-", None)


@pytest.mark.parametrize(
    "cut",
    [
        '{"path": "b.png", "verd',
        '{"path": "b.png"}',
        "[1]",
        '{"path": "b", "verdict": "good", "regions": [{"box": 1}]}',
        '{"path": 1, "verdict": "good", "score": "x"}',
    ],
)
def test_a_line_that_is_cut_is_left_out_and_counted(tmp_path: Path, cut: str) -> None:
    found = read_rows(file(tmp_path, json_line(WHOLE) + "\n" + cut + "\n" + json_line(WHOLE)))
    assert (len(found.rows), found.damaged) == (2, [3])


def test_a_csv_row_that_is_cut_is_left_out_and_counted(tmp_path: Path) -> None:
    found = read_rows(file(tmp_path, "path,verdict,score\na.png,good,1\nb.pn"))
    assert (len(found.rows), found.damaged) == (1, [3])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("a,b\n1,2\n", "holds no rows"),
        ("path,verdict\n", "holds no rows"),
        ('{"path": "a.png", "verdict": "good", "schema": 2}\n', "line 1 is of a newer mambaad"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(MambaADError, match=said):
        read_rows(file(tmp_path, text))
