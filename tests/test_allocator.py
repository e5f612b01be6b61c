"""Freed memory is used again by the command, and only where the user set nothing."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from mambaad_cli.allocator import keep_freed_memory
print(keep_freed_memory())
def fill():
    buffers = [np.empty(3 * 2**20, np.uint8) for _ in range(16)]
    for buffer in buffers:
        buffer.fill(1)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_cleared(**given: str) -> tuple[str, int]:
    """Whether the allocator took it, and the page faults of filling 48 MB in buffers of 3 MB four times more."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=clean | given, capture_output=True, text=True, check=True)
    taken, faults = done.stdout.split()
    return taken, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_a_large_buffer_is_used_again() -> None:
    assert pages_cleared()[0] == "True"
    assert pages_cleared()[1] < 20 < pages_cleared(MALLOC_TRIM_THRESHOLD_="131072")[1]


def test_what_the_user_has_set_is_left_alone() -> None:
    assert pages_cleared(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] == "False"
