"""python -m mambaad_cli.benchmark.profile_fit GOOD: where the time of a fit goes, part by part.

Fits a model by the default recipe, writes no file, and prints the seconds of each part and the peak of its memory. A
part that belongs to another one is indented below it; what a part itself does beyond those is in its own seconds.
"""

import argparse
import cProfile
import pstats
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mambaad_cli.benchmark.machine import say_backend
from mambaad_cli.inspection.network import Network
from mambaad_cli.model import memory
from mambaad_cli.training import describe_product, features, fit, memories, near_copies, trial, turns
from mambaad_cli.training.loop import TrainingLoop
from mambaad_cli.training.request import FitRequest


class Part(NamedTuple):
    """A part of the fit: what it is called here, and the function that does it."""

    label: str
    function: Callable[..., Any]


PARTS = (
    Part("fit", fit.fit_request),
    Part("  do parts lie any way round?", turns.turned_classes),
    Part("  photos read and encoded", features.features_of_files),
    Part("    the first look, and the decoder's features", Network.far_features),
    Part("    the close look", Network.close_view),
    Part("  near copies", near_copies.near_copies),
    Part("  memories", memories.remember),
    Part("    their coresets", memory.k_centre),
    Part("  the decoder's training", fit.train),
    Part("    its steps", TrainingLoop.advance),
    Part("  products described", describe_product.describe_product),
    Part("    statistics of residuals", describe_product.statistics_of),
    Part("    good photos compared with the others", describe_product.compared_with_others),
    Part("    their maps", trial.Trial.good_maps),
    Part("    simulated defects", trial.Trial.defects),
    Part("    their hardest patches", describe_product._hardest),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("good", type=Path, help="the folder that `mambaad fit` takes")
    parser.add_argument("--preset", default="small")
    args = parser.parse_args()
    say_backend()
    profile, start = cProfile.Profile(), time.perf_counter()
    profile.runcall(fit.fit_request, FitRequest(args.good, preset=args.preset))
    seconds = time.perf_counter() - start
    print(f"{'part':48}{'calls':>8}{'seconds':>10}{'share':>8}")
    for label, calls, spent in measured(profile):
        print(f"{label:48}{calls:8}{spent:10.1f}{spent / seconds:8.0%}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def measured(profile: cProfile.Profile) -> list[tuple[str, int, float]]:
    """Label, calls and seconds (with what it calls) of each part that ran."""
    stats: dict[Any, Any] = pstats.Stats(profile, stream=sys.stderr).stats  # type: ignore[attr-defined]
    found = []
    for part in PARTS:
        code = getattr(part.function, "__wrapped__", part.function).__code__
        row = stats.get((code.co_filename, code.co_firstlineno, code.co_name))
        if row is not None:
            found.append((part.label, row[1], row[3]))
    return found


if __name__ == "__main__":
    main()
