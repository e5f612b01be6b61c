"""How accuracy depends on the good images: the sets, and the command from end to end."""

from dataclasses import replace
from pathlib import Path

import pytest

from mambaad_cli.benchmark import training_sets
from mambaad_cli.data.datasets import Sample
from mambaad_cli.training.recipe import preset
from tests.benchmark.test_comparison import write_tree


def samples(count: int, defect: str) -> list[Sample]:
    return [Sample(Path(f"{defect}{i}.png"), "nut", "test", defect, None) for i in range(count)]


def test_few_images_are_some_of_the_good_ones_and_then_all() -> None:
    good, test = samples(12, "good"), samples(3, "crack")
    sets = list(training_sets.few(good, test, [5, 10, 20], seed=1))
    assert [len(one.train) for one in sets] == [5, 10, 12]
    assert set(sets[0].train) < set(good)
    assert all(one.test == test for one in sets)


def test_hidden_defects_are_not_tested_on_and_all_rows_have_the_same_test() -> None:
    good, test = samples(40, "good"), [*samples(5, "good"), *samples(10, "crack")]
    sets = list(training_sets.mixed(good, test, [2, 10], seed=1))
    assert [(len(one.train), one.drop) for one in sets] == [
        (40, False), (40, True), (41, False), (41, True), (44, False), (44, True),
    ]  # fmt: skip
    assert all(one.test == sets[0].test for one in sets)
    assert not set(sets[0].test) & {sample for one in sets for sample in one.train if sample.anomalous}
    assert len(sets[0].test) == 15 - 4


def test_the_command_prints_a_row_for_each_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, recipe = preset("memory")
    small = replace(settings, size=(64, 64)), replace(recipe, memory_size=60)
    monkeypatch.setattr(training_sets, "preset", lambda name: small)
    labelled = str(write_tree(tmp_path) / "nut")
    training_sets.main([labelled, "--few", "3"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| product | learnt from | images |")
    assert [row.split(" | ")[1:3] for row in rows[2:]] == [["3 images", "3"], ["all images", "6"]]
    training_sets.main([labelled, "--mixed", "10"])
    assert "10 % defects, suspects dropped" in capsys.readouterr().out
