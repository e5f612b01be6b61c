"""mambaad: learn what good product images look like, then score, map and explain new ones.

    import mambaad_cli as mambaad

    model = mambaad.load("mambaad.safetensors")
    one = model.predict("part.png")
    print(one.verdict, one.score)

Importing this package is fast: the names below are imported when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0.dev0"
__all__ = ["FittedModel", "MambaADError", "Prediction", "Recipe", "Region", "count_flops", "fit", "load"]

if TYPE_CHECKING:
    from mambaad_cli.api import FittedModel, fit, load
    from mambaad_cli.benchmark.module_flops import count_flops
    from mambaad_cli.inspection.prediction import Prediction
    from mambaad_cli.inspection.regions import Region
    from mambaad_cli.training.recipe import Recipe

_WHERE = {
    "fit": "mambaad_cli.api",
    "load": "mambaad_cli.api",
    "count_flops": "mambaad_cli.benchmark.module_flops",
    "FittedModel": "mambaad_cli.api",
    "Prediction": "mambaad_cli.inspection.prediction",
    "Region": "mambaad_cli.inspection.regions",
    "Recipe": "mambaad_cli.training.recipe",
}

# OpenMP's threads wait for each other by spinning for a long time. One other busy process then makes all of them
# several times slower. A short spin costs little on a quiet machine. It must be set before torch loads its OpenMP.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2500")


class MambaADError(Exception):
    """An error that a user can fix. The command prints it as one line, `mambaad: …`, and ends with exit status 1."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
