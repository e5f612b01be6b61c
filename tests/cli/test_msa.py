"""`mambaad msa` as it is typed."""

import json
from pathlib import Path

import numpy as np

from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from tests.cli.test_commands import complaint, model, run  # noqa: F401 (model is a fixture)
from tests.conftest import DATA, calibrated, picture, with_products, with_scores


def test_scores_of_a_csv_need_no_model() -> None:
    result = run("msa", DATA / "gauge" / "aiag.csv", "--json")
    assert result.exit_code == 0, result.output
    (scores,) = json.loads(result.stdout)["scores"]
    assert round(scores["grr"]["value"], 3) == 0.279
    assert (scores["grr"]["judgement"], scores["ndc"]["value"]) == ("marginal", 4)


def test_photos_are_scored_with_the_model(tiny_model: FittedModel, model: Path, tmp_path: Path) -> None:  # noqa: F811
    with_scores(tiny_model, {"nut": [-1e9], "bolt": [-1e9]}).save(model)  # all is anomalous
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


def with_own_masks(tiny_model: FittedModel, path: Path, photos: list[Path]) -> Path:
    """Saves the model as one that has a mask for each photo; returns the folder of the masks: the left half counts."""
    products = [calibrated(product.under(own_masks=True), product.scores) for product in tiny_model.products.values()]
    with_products(tiny_model, *products).save(path)
    for photo in photos:
        mask = np.zeros((80, 96), np.uint8)
        mask[:, :48] = 255
        images.write(Path("masks") / f"{photo.stem}.png", mask)
    return Path("masks")


def test_photos_with_a_mask_each_are_scored_inside_it(tiny_model: FittedModel, model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The right half, outside the masks, differs between the trials: the scores of a part do not."""
    photos = []
    for part in range(2):
        for trial in range(2):
            photo = picture(part)
            photo[:, 48:] = 60 * trial
            photos.append(Path(f"study/good/p{part}/{2 * part + trial}.png"))
            images.write(photos[-1], photo)
    masks = with_own_masks(tiny_model, model, photos)
    assert "--roi-dir" in complaint(run("msa", "study", "--class", "nut"))
    result = run("msa", "study", "--class", "nut", "--json", "--roi-dir", masks)
    assert result.exit_code == 0, result.output
    variance = json.loads(result.stdout)["scores"][0]["variance"]
    assert variance["repeatability"] < 1e-9 * variance["total"]


def test_masks_for_a_study_without_photos_are_refused() -> None:
    result = run("msa", DATA / "gauge" / "aiag.csv", "--roi-dir", DATA)
    assert (result.exit_code, "no photos" in result.stderr) == (2, True)


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
