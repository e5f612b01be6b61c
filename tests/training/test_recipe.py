"""A model knows how it was trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Learnt
from mambaad_cli.training.adding import add
from mambaad_cli.training.recipe import RECIPES, recipe_of
from tests.training.conftest import (
    nuts_again,
)


def test_a_model_knows_its_recipe_and_a_product_is_added_by_it(run: Callable[..., ModelRecord], goods: Path) -> None:
    model = run(flips=True, distance="published", cut_paste=False, lr=0.001)
    own = recipe_of(model)
    assert (own.flips, own.distance, own.cut_paste, own.lr, own.batch) == (True, "published", False, 0.001, 8)
    grown = add(model, nuts_again(goods), replace(own.for_adding(), epochs=1))
    assert not any(product.learnt.statistics for product in grown.products.values())
    assert recipe_of(grown) == own


def test_the_recipe_of_a_file_that_does_not_hold_it_is_that_of_its_preset(run: Callable[..., ModelRecord]) -> None:
    model = replace(run(), recipe={})
    expected = replace(RECIPES["small"], expected_distance=True, evidence="decoder")
    assert recipe_of(model) == expected
    plain = [replace(product, learnt=Learnt()) for product in model.products.values()]
    assert recipe_of(model.with_products(*plain)) == replace(expected, distance="published", expected_distance=False)


def test_a_recipe_of_another_version_is_one_line(run: Callable[..., ModelRecord]) -> None:
    model = run()
    with pytest.raises(
        MambaADError, match="^the model was trained by another version of mambaad, which knew annealing$"
    ):
        recipe_of(replace(model, recipe={**model.recipe, "annealing": 1}))
