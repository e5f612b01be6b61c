"""A product that lies any way round is told from one that does not, by good images alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mambaad_cli.api import FittedModel
from mambaad_cli.data.augmentation import moved
from mambaad_cli.data.loading import Input
from mambaad_cli.training.turns import PAYS, turning_pays
from tests.conftest import record_of


def bar(angle: float) -> Tensor:
    """A bright bar through the middle, at an angle in degrees: (3, 64, 64)."""
    y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    turn = torch.deg2rad(torch.tensor(angle))
    across = x * torch.sin(turn) + y * torch.cos(turn)
    along = x * torch.cos(turn) - y * torch.sin(turn)
    return ((across.abs() < 5) & (along.abs() < 26)).float().expand(3, -1, -1)


@pytest.mark.parametrize(("angle_of", "pays"), [(lambda i: 47.0 * i, True), (lambda i: float(i % 3), False)])
def test_turned_views_pay_where_parts_lie_any_way_round(
    tiny_model: FittedModel, angle_of: Callable[[int], float], pays: bool
) -> None:
    ratio = turning_pays(
        record_of(tiny_model).network, [Input(bar(angle_of(i)), None, None, (64, 64)) for i in range(8)]
    )
    assert (ratio < PAYS) == pays


def test_views_are_turned_by_any_angle_only_where_asked() -> None:
    steady, turned = (moved(bar(0), 20, seed=0, turned=t) for t in (False, True))
    upright = [float(views[:, 0, :, 28:36].mean()) - float(views[:, 0, 28:36].mean()) for views in (steady, turned)]
    assert upright[0] < upright[1] - 0.1
