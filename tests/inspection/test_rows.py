import csv
import errno
import io
import json
import re
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.rows import (
    COLUMNS,
    WORST,
    csv_line,
    json_line,
    json_row,
    print_table,
    row,
    worst_first,
    write_rows,
)

EVIL_NAMES = ["two words.png", "two\nlines.png", 'quote".png', "a,b.png", "größe 検査.png", "\udcff.png", "[red]x.png"]


def one(
    name: str = "a.png",
    score: float | None = 1.25,
    threshold: float | None = 2.0,
    verdict: str = "good",
    error: str = "",
    class_name: str = "nut",
) -> Prediction:
    file = ImageFile(Path(name), Path(name), "")
    return Prediction(file, class_name, score, threshold, verdict, error, p_value=None if error else 0.25)


def broken(name: str = "b.png", reason: str = "no such file") -> Prediction:
    return one(name, None, None, "error", reason)


# ---- rows ----


def test_a_row_holds_exactly_the_promised_columns() -> None:
    assert COLUMNS[:6] == ("path", "class", "score", "threshold", "verdict", "error")  # users have scripts
    assert row(one()) == {
        "path": "a.png",
        "class": "nut",
        "score": 1.25,
        "threshold": 2.0,
        "verdict": "good",
        "error": "",
        "p_value": 0.25,
        "certainty": None,
        "warning": "",
    }


def test_regions_are_in_a_row_where_asked_for_and_null_where_not_known(tmp_path: Path) -> None:
    region = Region((1, 2, 3, 4), 9, 1 / 3, (2, 3), (2, 4))
    predictions = [one(verdict="anomalous")._replace(regions=(region,)), one()._replace(regions=()), broken()]
    write_rows(predictions, tmp_path / "a.json", True, regions=True)
    found = [json.loads(line)["regions"] for line in (tmp_path / "a.json").read_text().splitlines()]
    told = {"box": [1, 2, 3, 4], "area_px": 9, "peak": {"value": 0.333333, "x": 2, "y": 3}, "centre": {"x": 2, "y": 4}}
    assert found == [[told], [], None]
    write_rows(predictions, tmp_path / "b.json", True)
    assert all("regions" not in json.loads(line) for line in (tmp_path / "b.json").read_text().splitlines())


def test_a_json_row_says_by_what_and_when_it_was_scored_and_how_the_photo_was_taken() -> None:
    photo = PhotoStatistics(0.5, 0.25, 1 / 3)
    before = datetime.now(timezone.utc)
    found = json_row(one()._replace(photo=photo), "0123456789ab")
    assert {name: found[name] for name in COLUMNS} == row(one())
    assert list(found)[len(COLUMNS) :] == ["schema", "time", "model", *PhotoStatistics._fields]
    assert (found["schema"], found["model"], found["sharpness"]) == (1, "0123456789ab", 1 / 3)
    assert timedelta(seconds=-1) < datetime.fromisoformat(found["time"].replace("Z", "+00:00")) - before
    assert found["time"].endswith("Z")
    assert (json_row(broken(), "")["brightness"], json_row(broken(), "")["model"]) == (None, None)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=2, max_size=6))
def test_any_text_survives_csv_but_for_the_apostrophe_of_formulas(values: list[str]) -> None:
    (found,) = csv.reader(io.StringIO(csv_line(values), newline=""))
    assert [text.removeprefix("'") for text in found] == [text.removeprefix("'") for text in values]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_can_be_a_formula(start: str) -> None:
    text = f"{start}cmd|'/c calc'!A1"
    (found,) = csv.reader(io.StringIO(csv_line([text, text]), newline=""))
    assert found == [f"'{text}"] * 2


def test_numbers_have_six_digits_and_negative_ones_stay_numbers() -> None:
    assert csv_line([1 / 3, -2.5, 1e-9, 123456789.0, None]) == "0.333333,-2.5,1e-09,1.23457e+08,\n"


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True), st.text())
def test_every_json_line_is_one_line_of_strict_json(score: float, text: str) -> None:
    line = json_line({"path": text, "score": score, "threshold": None})
    assert line.endswith("\n")
    assert line.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(line, parse_constant=refuse)
    assert found["path"] == text
    assert found["threshold"] is None


# ---- streams ----


@pytest.mark.parametrize("as_json", [False, True])
def test_rows_are_in_the_file_before_the_next_image_is_scored(tmp_path: Path, as_json: bool) -> None:
    path = tmp_path / "new" / "rows"

    def watched() -> Iterator[Prediction]:
        for i in range(5):
            assert len(path.read_text().splitlines()) == i + (not as_json)
            yield one(f"{i}.png")

    assert write_rows(watched(), path, as_json) == Counter(good=5)
    assert len(path.read_text().splitlines()) == 5 + (not as_json)


def test_every_name_comes_back_from_csv_and_json(tmp_path: Path) -> None:
    predictions = [one(name) for name in EVIL_NAMES]
    write_rows(predictions, tmp_path / "a.csv", False)
    write_rows(predictions, tmp_path / "a.json", True)
    with (tmp_path / "a.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [found["path"] for found in csv.DictReader(file)] == EVIL_NAMES
    assert [json.loads(line)["path"] for line in (tmp_path / "a.json").read_text().splitlines()] == EVIL_NAMES
    assert b"\xff.png" in (tmp_path / "a.csv").read_bytes()  # the very bytes of the name


def test_unknown_numbers_are_empty_in_csv_and_null_in_json(tmp_path: Path) -> None:
    write_rows([broken()], tmp_path / "a.csv", False)
    write_rows([broken()], tmp_path / "a.json", True)
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "b.png,nut,,,error,no such file,,,"
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["score"], found["threshold"], found["p_value"], found["verdict"]) == (None, None, None, "error")


def test_a_full_disk_is_one_line_and_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*a\.csv: File too large; the rows before are kept$"):
            write_rows((one(f"{i}.png") for i in range(100)), path, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 3
    assert all(line.endswith("\n") and line.count(",") == 8 for line in lines)


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.csv"):
        with pytest.raises(MambaADError, match=r"^cannot write "):
            write_rows([one()], path, False)


# ---- the table ----


def table(predictions: list[Prediction], width: int = 80) -> list[str]:
    file = io.StringIO()
    counts = print_table(predictions, Console(file=file, width=width))
    assert sum(counts.values()) == len(predictions)
    text = file.getvalue()
    assert text.encode().decode() == text
    return text.splitlines()


def order(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines[1:] if ".png" in line]


def test_the_worst_comes_first_by_its_share_of_the_threshold() -> None:
    predictions = [one("a.png", 1.0), one("b.png", 3.0), broken("e.png"), one("c.png", 2.0), one("d.png", 3.5, 9.0)]
    assert order(table(predictions))[:5] == ["e.png", "b.png", "c.png", "a.png", "d.png"]


def test_at_most_fifty_rows_are_shown_and_all_are_counted() -> None:
    lines = table([one(f"{i}.png", i / 100) for i in range(200)])
    assert order(lines) == [f"{i}.png" for i in range(199, 199 - WORST, -1)]
    assert any("200 images: 200 good" in line for line in lines)
    assert any("--csv lists all" in line for line in lines)


def test_the_worst_of_endless_images_need_little_memory() -> None:
    counts: Counter[str] = Counter()
    found = list(worst_first((one(f"{i}.png", float(i % 1000)) for i in range(20_000)), counts))
    assert [prediction.score for prediction in found] == [999.0] * 20 + [998.0] * 20 + [997.0] * 10
    assert counts == {"good": 20_000}


def test_the_bar_is_half_full_at_the_threshold_and_never_overflows() -> None:
    lines = table([one("a.png", 2.0), one("b.png", 99.0), one("c.png", 0.0), one("d.png", -9.0)])
    assert [line.count("━") for line in lines if ".png" in line] == [24, 12, 6, 0]


def test_the_worst_comes_first_and_fills_most_of_its_bar_where_scores_are_negative() -> None:
    """Dividing a score by its threshold would turn the order round."""
    scores = {"a.png": -3.0, "b.png": -1.0, "c.png": -2.0}
    found = [one(name, score)._replace(threshold=-2.0, cold=-3.0) for name, score in scores.items()]
    lines = [line for line in table(found) if ".png" in line]
    assert [line.split()[0] for line in lines] == ["b.png", "c.png", "a.png"]
    assert [line.count("━") for line in lines] == [15, 12, 9]


@pytest.mark.parametrize("score", [0.0, -1.0, 1.0, float("nan"), float("inf")])
def test_no_score_breaks_the_table_with_or_without_a_threshold(score: float) -> None:
    for threshold in (None, 0.0, 2.0, float("nan")):
        assert "a.png" in "\n".join(table([one("a.png", score, threshold, "uncalibrated")]))


def test_each_verdict_has_a_colour_of_its_own_and_is_counted() -> None:
    verdicts = ["anomalous", "review", "review", "good", "uncalibrated"]
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    counts = print_table([one(f"{i}.png", verdict=verdict) for i, verdict in enumerate(verdicts)], console)
    assert counts == {"anomalous": 1, "review": 2, "good": 1, "uncalibrated": 1}
    colours = {verdict: re.findall(rf"(\x1b\[\d+m){verdict}", file.getvalue()) for verdict in verdicts}
    assert len({found[0] for found in colours.values()}) == 4
    assert colours["review"] == ["\x1b[33m"] * 2
    assert "5 images: 2 review, 1 anomalous, 1 good, 1 uncalibrated" in file.getvalue()


def test_a_table_of_no_images_is_no_error() -> None:
    assert "0 images" in "\n".join(table([]))


def test_every_image_and_every_score_stays_visible_in_80_columns_beside_a_long_error() -> None:
    bomb = "claims 30000×30000 pixels, more than 268435456: to read it all the same, set MAMBAAD_MAX_PIXELS=900000000"
    lines = table([broken("bomb.png", bomb), one("incoming/part_0001.png")])
    assert all(len(line) <= 80 for line in lines)
    assert order(lines)[:2] == ["bomb.png", "incoming/part_0001.png"]
    assert any("1.25" in line and "━" in line for line in lines)
    words = "".join("".join(lines).split())
    assert "MAMBAAD_MAX_PIXELS=900000000" in words  # what to do is not cut off


def test_any_name_and_any_class_can_be_printed() -> None:
    predictions = [one(name, class_name=name) for name in EVIL_NAMES] + [one("\x1b[31mansi.png")]
    lines = table(predictions, 200)
    assert not any("\x1b" in line for line in lines)
    assert len([line for line in lines if ".png" in line]) == len(predictions)


def test_classes_are_shown_where_there_are_several() -> None:
    assert "class" not in table([one("a.png"), one("b.png")])[0]
    assert "class" in table([one("a.png"), one("b.png", class_name="bolt")])[0]


def test_stdout_that_is_full_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    with pytest.raises(MambaADError, match=r"^cannot write stdout: No space left on device"):
        write_rows([one()], None, False)


def test_a_closed_pipe_is_left_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        write_rows([one()], None, False)
