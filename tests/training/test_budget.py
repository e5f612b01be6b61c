"""Minutes are those of the whole fit."""

from dataclasses import replace

import pytest

from mambaad_cli.training.budget import limited
from mambaad_cli.training.recipe import RECIPES


def test_without_minutes_nothing_changes() -> None:
    assert limited(RECIPES["small"], 500, 1, 1000.0) == RECIPES["small"]


def test_many_products_and_folds_leave_less_time_for_training() -> None:
    recipe = replace(RECIPES["small"], max_minutes=10.0)
    one, eight = (limited(recipe, 1000, classes, 30.0).max_minutes for classes in (1, 8))
    folds = limited(replace(recipe, folds=4), 1000, 1, 30.0).max_minutes
    assert one == pytest.approx(10 - (30 + 12) / 60, abs=1e-3)
    assert eight == pytest.approx(10 - (30 + 96) / 60, abs=1e-3)
    assert folds is not None
    assert one is not None
    assert folds < one


def test_a_decoder_that_has_no_memory_beside_it_is_trained_all_the_same() -> None:
    recipe = replace(RECIPES["small"], evidence="decoder", max_minutes=0.1)
    assert limited(recipe, 1000, 1, 30.0) == replace(recipe, max_minutes=0.0)
    assert limited(replace(recipe, evidence="both"), 1000, 1, 30.0).evidence == "memory"
    assert limited(replace(recipe, evidence="both", folds=4), 1000, 1, 30.0).evidence == "both"
