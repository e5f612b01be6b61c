"""`mambaad msa` as it is typed."""

import json
from pathlib import Path

from mambaad_cli.data import images
from mambaad_cli.inspection import model_file
from mambaad_cli.inspection.fitted_model import FittedModel
from tests.cli.test_commands import complaint, model, run  # noqa: F401 (model is a fixture)
from tests.conftest import DATA, picture


def test_scores_of_a_csv_need_no_model() -> None:
    result = run("msa", DATA / "gauge" / "aiag.csv", "--json")
    assert result.exit_code == 0, result.output
    (scores,) = json.loads(result.stdout)["scores"]
    assert round(scores["grr"]["value"], 3) == 0.279
    assert (scores["grr"]["judgement"], scores["ndc"]["value"]) == ("marginal", 4)


def test_photos_are_scored_with_the_model(tiny_model: FittedModel, model: Path, tmp_path: Path) -> None:  # noqa: F811
    tiny_model.scores = {"nut": [-1e9], "bolt": [-1e9]}  # all is anomalous
    model_file.save(tiny_model, model)
    for part in range(2):
        for trial in range(2):
            images.write(tmp_path / f"study/good/p{part}/{trial}.png", picture(10 * part + trial))
            images.write(tmp_path / f"study/bent/p{part}/{trial}.png", picture(50 + 10 * part + trial))
    (tmp_path / "study/bent/p1/9.png").write_text("no image")
    result = run("msa", "study", "--class", "nut", "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    (one,) = found["agreement"]
    assert (found["photos"], found["unreadable"], found["parts"], found["bad_parts"]) == (9, 1, 4, 2)
    assert (one["misses"]["count"], one["false_alarms"]["count"], one["effectiveness"]["count"]) == (0, 4, 2)
    assert found["scores"][0]["anova"][0]["df"] == 3
    assert "9.png: " in result.stderr


def test_the_table_names_the_parts_that_flip(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_text("part,reference,verdict\na,good,good\na,good,anomalous\nb,bad,anomalous\nb,bad,anomalous\n")
    result = run("msa", path)
    assert result.exit_code == 0, result.output
    assert "false alarms" in result.stdout
    assert "unacceptable" in result.stdout
    flipping = result.stdout[result.stdout.index("parts that flip") :].splitlines()[1].split()
    assert flipping == ["a", "good", "1/2"]


def test_a_study_that_is_none_is_one_line(tmp_path: Path) -> None:
    images.write(tmp_path / "study/1.png", picture())
    assert "expected FOLDER/good/PART" in complaint(run("msa", tmp_path / "study"))
