"""Two maps fused to one, by hand."""

import pytest
import torch

from mambaad_cli.model.fusion import Fusion, Witness, fuse_witnesses, witness_of


def test_maps_are_weighed_from_their_centres_in_units_of_their_spreads() -> None:
    fusion = Fusion(Witness(1.0, 2.0, 0.25), Witness(10.0, 5.0, 0.75))
    found = fuse_witnesses(fusion, torch.full((1, 2, 2), 5.0), torch.full((1, 2, 2), 20.0))
    assert found.tolist() == [[[0.25 * 2 + 0.75 * 2] * 2] * 2]
    assert fuse_witnesses(fusion, None, torch.full((1, 1, 1), 20.0)).item() == 1.5


def test_a_witness_is_measured_by_its_good_values_and_not_by_a_few_odd_ones() -> None:
    good = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    odd = torch.cat([good, torch.full((5,), 1e6)])
    assert witness_of(good).centre == pytest.approx(witness_of(odd).centre, abs=0.05)
    assert witness_of(good).spread == pytest.approx(witness_of(odd).spread, rel=0.5)
    assert witness_of(torch.zeros(10)).spread > 0
