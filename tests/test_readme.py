"""The README's commands exist as they are written, and its first one does what it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mambaad_cli.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text()
NAMES = "fit|learn|score|map|report|msa|calibrate|import|eval|export|bench|doctor|watch|monitor"
COMMANDS = sorted(set(re.findall(rf"mambaad (?:{NAMES})\b[^`&|\n]*", README)))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme_are_understood(line: str) -> None:
    """Parsed as the command would, without running it."""
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]
    takes = [p for p in command.params if p.param_type_name == "argument" and p.required]
    given = arguments if arguments else ["x"] * len(takes)  # named alone, in running text
    if not any(not a.startswith("-") for a in given) and takes:
        given = [*given, "x"]
    if name in ("map", "report", "watch") and "-o" not in given:
        given = [*given, "-o", "x"]
    command.make_context(name, given)


def test_first_screen_shows_a_picture_that_is_there() -> None:
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert picture is not None
    assert README[: picture.start()].count("\n") < 25
    assert (Path(__file__).parent.parent / picture.group(1)).is_file()


@pytest.mark.slow
def test_first_command_of_the_readme_separates_good_from_broken(tmp_path: Path, cookies: Path) -> None:
    """Minutes: the real thing, fitted and scored as a user would."""
    import csv
    import io

    from sklearn.metrics import roc_auc_score

    run = [sys.executable, "-m", "mambaad_cli"]
    subprocess.run([*run, "fit", str(cookies / "good")], cwd=tmp_path, check=True)
    scored = subprocess.run(
        [*run, "score", str(cookies / "incoming"), "--csv"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    rows = list(csv.DictReader(io.StringIO(scored.stdout)))
    assert len(rows) == 44
    assert roc_auc_score(["broken" in row["path"] for row in rows], [float(row["score"]) for row in rows]) >= 0.97
