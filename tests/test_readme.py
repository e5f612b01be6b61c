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
NAMES = "fit|learn|score|merge|config|map|report|msa|calibrate|import|eval|export|bench|doctor|watch|monitor"
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


@pytest.fixture(scope="module")
def first_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minutes: what the first command of the README writes."""
    folder = tmp_path_factory.mktemp("first")
    good = Path(__file__).parent / "data" / "cookie" / "good"
    subprocess.run([sys.executable, "-m", "mambaad_cli", "fit", str(good)], cwd=folder, check=True)
    return folder / "mambaad.safetensors"


@pytest.mark.slow
def test_first_command_of_the_readme_separates_good_from_broken(first_model: Path, cookies: Path) -> None:
    """The real thing, fitted and scored as a user would."""
    import csv
    import io

    from sklearn.metrics import roc_auc_score

    scored = subprocess.run(
        [sys.executable, "-m", "mambaad_cli", "score", str(cookies / "incoming"), "--csv"],
        cwd=first_model.parent, check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(scored.stdout)))
    assert len(rows) == 44
    assert roc_auc_score(["broken" in row["path"] for row in rows], [float(row["score"]) for row in rows]) >= 0.99
    found = [row["verdict"] == "anomalous" for row in rows if "broken" in row["path"]]
    rejected = [row["verdict"] == "anomalous" for row in rows if "good" in row["path"]]
    assert (sum(found) >= 31, sum(rejected)) == (True, 0)


@pytest.mark.slow
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_stain_in_a_corner_is_found_where_it_is(first_model: Path, cookies: Path, corner: tuple[int, int]) -> None:
    """The outermost places of a map take the values of their neighbours: what lies there is seen by these as well."""
    import cv2

    import mambaad_cli
    from mambaad_cli.data import images

    photo = images.read(cookies / "incoming" / "good_02.jpg").copy()
    height, width = photo.shape[:2]
    cv2.circle(photo, (corner[1] * (width - 1), corner[0] * (height - 1)), round(0.05 * height), (40, 20, 10), -1)
    prediction = mambaad_cli.load(first_model).predict(photo)
    assert prediction.verdict == "anomalous"
    assert prediction.regions
    x, y = prediction.regions[0].peak_at
    assert abs(x - corner[1] * (width - 1)) < 0.08 * width
    assert abs(y - corner[0] * (height - 1)) < 0.08 * height
