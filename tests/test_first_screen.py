"""What the README shows on its first screen: its first command, fitted for real, separates good from broken."""

import subprocess
import sys
from pathlib import Path

import pytest


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
    assert sum(found) >= 31
    assert sum(rejected) <= 1


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
