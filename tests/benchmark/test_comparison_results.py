"""The digest of the code that a kept result comes from."""

from pathlib import Path

import pytest

from mambaad_cli.benchmark.comparison_results import SOURCES, digest_of, source_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Two files of code in a folder, one of something else, and code that is not asked for."""
    for name in ("model/scan.py", "model/kernels/scan.c", "model/notes.txt", "cli/options.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["model/scan.py", "model/kernels/scan.c"])
def test_the_digest_changes_with_each_file_of_code(package: Path, name: str) -> None:
    before = digest_of(package, [package / "model"])
    (package / name).write_text("changed")
    assert digest_of(package, [package / "model"]) != before


def test_the_digest_changes_with_a_files_name_and_with_a_new_file(package: Path) -> None:
    digests = {digest_of(package, [package / "model"])}
    (package / "model/scan.py").rename(package / "model/walk.py")
    digests.add(digest_of(package, [package / "model"]))
    (package / "model/kernels/scan.h").touch()
    digests.add(digest_of(package, [package / "model"]))
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["model/notes.txt", "cli/options.py"])
def test_the_digest_does_not_depend_on_other_files(package: Path, name: str) -> None:
    before = digest_of(package, [package / "model"])
    (package / name).write_text("changed")
    assert digest_of(package, [package / "model"]) == before


def test_the_digest_of_the_package_reads_every_room_that_a_result_depends_on() -> None:
    package = Path(__file__).parents[2] / "mambaad_cli"
    assert all((package / name).exists() for name in SOURCES)
    assert source_digest() == digest_of(package, [package / name for name in SOURCES])
    assert source_digest() != digest_of(package, [package / name for name in SOURCES if name != "training"])
