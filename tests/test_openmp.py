"""The spin of OpenMP's threads is set before torch is loaded, and only where the user set nothing."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "2500 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_the_spin_is_short_unless_the_user_says_otherwise(given: dict[str, str], found: str) -> None:
    program = (
        "import os, sys, mambaad_cli; assert 'torch' not in sys.modules; "
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found
