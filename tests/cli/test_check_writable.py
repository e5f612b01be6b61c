"""Before minutes of work a command tries whether its result can be written."""

from pathlib import Path

import pytest

from mambaad_cli import MambaADError, files
from mambaad_cli.cli.output import check_writable
from tests.cli.test_commands import complaint, run


def test_nothing_is_left_behind_and_an_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    check_writable(tmp_path / "report.html")
    check_writable(tmp_path / "other.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_two_commands_that_try_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two terminals, or cron: the second one tries and cleans up while the first one is in the middle of it."""
    written_whole, tried = files.written_whole, []

    def meanwhile(probe: Path):  # type: ignore[no-untyped-def]
        tried.append(probe)
        if len(tried) == 1:
            check_writable(tmp_path / "report.html")
        return written_whole(probe)

    monkeypatch.setattr(files, "written_whole", meanwhile)
    check_writable(tmp_path / "report.html")
    assert len(set(tried)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_trial_file_that_somebody_removed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a job that tidies a folder of results."""
    unlink = Path.unlink

    def twice(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", twice)
    check_writable(tmp_path / "report.html")


def test_only_the_first_process_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file" / "report.html")  # the first process reports it, once
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(MambaADError, match="cannot write"):
        check_writable(tmp_path / "file" / "report.html")


def test_what_a_link_points_to_is_tried(shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o555)
    (shared / "report.html").symlink_to(shared / "closed" / "report.html")
    with pytest.raises(MambaADError, match=r"cannot write .*/report.html: .*Permission denied"):
        check_writable(shared / "report.html")
    (shared / "report.html").unlink()


def test_a_folder_is_refused_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    with pytest.raises(MambaADError, match=r"cannot write .*/a\\nb: it is a folder"):
        check_writable(tmp_path / "a\nb")


def test_fit_says_that_its_model_would_be_a_folder(
    goods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", str(tmp_path)):
        assert f"cannot write {folder}: it is a folder" in complaint(run("fit", goods, "-m", folder))
