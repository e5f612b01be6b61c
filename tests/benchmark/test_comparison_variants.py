"""What is compared: the variants by name, the steps of the ablation, the choices of a recipe."""

from dataclasses import replace

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import comparison_variants as variants
from mambaad_cli.model import DETECTORS
from mambaad_cli.model.settings import PRESETS
from mambaad_cli.training.recipe import as_dict


def test_all_variants_share_one_encoder_unless_each_has_its_own() -> None:
    assert {one.encoder for one in variants.choose(["mambaad", "rd4ad"], "resnet34")} == {"resnet34"}
    assert [one.encoder for one in variants.choose(encoder="own")] == [
        *("efficientnet_lite0", "efficientnet_lite0", "wide_resnet50_2", "efficientnet_b4")
    ]


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        MambaADError,
        match="no detector 'patchcore'.*mambaad, mambaad-small, mambaad-fast, mambaad-paper, memory, rd4ad",
    ):
        variants.choose(["rd4ad", "patchcore"])


def test_the_ablation_is_the_papers_and_the_grid_of_orders_and_directions() -> None:
    plain, local, hybrid, *grid, attention = variants.ablation()
    own = PRESETS["small"].options
    assert plain.options == own | {"order": "sweep", "directions": 2, "local_branches": False}
    assert local.options == own | {"order": "sweep", "directions": 2, "local_branches": True}
    assert hybrid.options == own | {"order": "hilbert", "directions": 8, "local_branches": True}
    assert attention.options == hybrid.options | {"ssm": "gla"}
    walked = {(one.options["order"], one.options["directions"]) for one in grid}
    orders = ("sweep", "scan", "zorder", "zigzag", "hilbert")
    assert len(grid) == 17
    assert walked == {(order, k) for order in orders for k in (2, 4, 8)} | {("scan", 6), ("hilbert", 6)}


def test_every_variant_of_the_ablation_can_be_built() -> None:
    for variant in variants.ablation():
        DETECTORS[variant.detector]([8, 8, 8], **variant.options)


@pytest.mark.parametrize("names", [["rd4ad"], ["mambaad"]])
def test_the_ablation_is_of_one_mambaad(names: list[str]) -> None:
    with pytest.raises(MambaADError, match="of one MambaAD"):
        variants.ablation(names)


@pytest.mark.parametrize("name", ["small", "paper"])
def test_each_recipe_differs_from_the_first_in_one_choice(name: str) -> None:
    base, *others = variants.recipes([f"mambaad-{name}"])
    assert base.name == f"MambaAD {name}"
    assert len(others) >= 5
    for one in others:
        options = {name for name in {**one.options, **base.options} if one.options.get(name) != base.options.get(name)}
        alone = replace(base.recipe.showing("decoder"), evidence="both" if one.name.endswith("alone") else "decoder")
        choices = dict(as_dict(one.recipe).items() ^ as_dict(alone).items())
        assert len(options) + len(choices) == 1, one.name
