import math
import sys
import time
from pathlib import Path

import pytest

from mambaad_cli.line.changes import POLL, POLL_REPORTED, changes


def test_a_new_file_ends_the_pause_where_the_system_tells(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    with changes(tmp_path) as pauses:
        assert pauses.longest == POLL_REPORTED
        until = time.monotonic() + 20
        while not pauses.changed.wait(0.2):  # following may begin after the first file
            assert time.monotonic() < until
            (tmp_path / f"{time.monotonic()}.png").touch()


def test_without_watchfiles_and_without_a_folder_pauses_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with changes(tmp_path / "none") as pauses:
        pauses.wait(0.0, 0.3)
        assert not pauses.changed.is_set()
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with changes(tmp_path) as pauses:
        assert pauses.longest == POLL
        pauses.wait(0.01, math.inf)
