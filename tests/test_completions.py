"""completions/ holds what Typer generates for the command as it is."""

from pathlib import Path

import pytest
from typer.completion import get_completion_script

FOLDER = Path(__file__).parent.parent / "completions"
FILES = {"bash": "mambaad.bash", "zsh": "_mambaad", "fish": "mambaad.fish"}


@pytest.mark.parametrize("shell", FILES)
def test_completion_scripts_are_current(shell: str) -> None:
    script = get_completion_script(prog_name="mambaad", complete_var="_MAMBAAD_COMPLETE", shell=shell)
    assert (FOLDER / FILES[shell]).read_text() == script.rstrip() + "\n"
