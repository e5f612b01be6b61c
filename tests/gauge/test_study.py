from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.gauge.study import Reading, analyse, load, to_score

HEAD = "part,trial,reference,path\n"


def study(folder: Path, text: str) -> Path:
    path = folder / "study.csv"
    path.write_text(text)
    return path


def test_a_folder_names_parts_and_references(tmp_path: Path) -> None:
    for name in ("ok/p1/1.jpg", "ok/p1/2.jpg", "scratch/p1/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    readings = load(tmp_path)
    assert [(reading.part, reading.reference, reading.trial) for reading in readings] == [
        ("ok/p1", "good", "1.jpg"),
        ("ok/p1", "good", "2.jpg"),
        ("scratch/p1", "scratch", "1.jpg"),
    ]
    assert to_score(readings) == [tmp_path / "ok/p1/1.jpg", tmp_path / "ok/p1/2.jpg", tmp_path / "scratch/p1/1.jpg"]


def test_paths_count_from_the_csv_and_trials_are_counted(tmp_path: Path) -> None:
    readings = load(study(tmp_path, "part,reference,path\n1,OK,a.jpg\n2,crack,b.jpg\n1,ok,c.jpg\n"))
    assert [(reading.part, reading.trial, reading.reference) for reading in readings] == [
        ("1", "1", "good"),
        ("2", "1", "crack"),
        ("1", "2", "good"),
    ]
    assert to_score(readings)[2] == tmp_path / "c.jpg"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("part,trial\n", "holds no readings"),
        ("trial,path\n1,a.jpg\n", "has no column part"),
        (f"{HEAD}1,1,good,a.jpg\n1,1,good,b.jpg\n", "line 3: trial 1 of part 1 is there already"),
        (f"{HEAD}1,1,good,a.jpg\n1,2,bad,b.jpg\n", "line 3: part 1 is 'bad' here and 'good' before"),
        (f"{HEAD},1,good,a.jpg\n", "line 2: no part is named"),
        ("part,score\n1,nan\n", "line 2: the score is 'nan', expected a number"),
        ("part,verdict\n1,fine\n", "line 2: the verdict is 'fine', expected good"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(MambaADError, match=said):
        load(study(tmp_path, text))


def test_a_reading_without_photo_score_and_verdict_is_refused(tmp_path: Path) -> None:
    readings = load(study(tmp_path, "part,trial,score\n1,1,2.5\n1,2,\n"))
    with pytest.raises(MambaADError, match="part 1, trial 2: no photo, score or verdict"):
        to_score(readings)


def test_scores_of_different_products_are_not_compared() -> None:
    """Two products on scales of their own; a photo that is recognised as the other product is left out."""
    readings = [
        Reading(
            f"{name}{part}", str(trial), "good", class_name=name, score=factor * (part + trial / 10), verdict="good"
        )
        for name, factor in (("nut", 1.0), ("bolt", 100.0))
        for part in range(3)
        for trial in range(3)
    ]
    odd = Reading("nut0", "9", "good", class_name="bolt", score=1e6, verdict="anomalous")
    gauges = analyse([*readings, odd]).gauges
    assert gauges.keys() == {"nut", "bolt"}
    assert gauges["nut"].repeatability == pytest.approx(0.01)
    assert gauges["bolt"].repeatability == pytest.approx(100.0)


def test_an_unreadable_photo_is_no_decision_and_a_photo_twice_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"the same")
    readings = [
        Reading("1", "1", "bad", path=tmp_path / "a.jpg", score=2.0, verdict="anomalous"),
        Reading("1", "2", "bad", path=tmp_path / "b.jpg", score=2.0, verdict="unknown"),
        Reading("2", "1", "good", path=tmp_path / "c.jpg", verdict="error", error="no such file"),
    ]
    results = analyse(readings)
    assert (results.photos, results.unreadable) == (3, 1)
    assert results.agreements[0].misses.count == 0
    assert results.agreements[0].misses.total == 2
    assert f"{tmp_path / 'c.jpg'}: no such file" in results.notes
    assert any("part 1: the same photo counts twice" in note for note in results.notes)
