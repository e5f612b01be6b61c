import errno
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaad_cli import MambaADError, files
from mambaad_cli.files import shown, written_whole


def test_nobody_sees_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as half:
        half.write_text("ne")
        assert path.read_text() == "old"
        half.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MambaADError])
def test_whatever_goes_wrong_the_old_file_stays_and_nothing_is_left_behind(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails() -> None:
        with written_whole(path) as half:
            half.write_text("new")
            raise error

    with pytest.raises(error):
        fails()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "a") as half:
            half.write_text("x")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_umask_is_never_changed_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that other threads create at that moment would get its permissions."""
    changes: list[int] = []
    monkeypatch.setattr(os, "umask", lambda mask: changes.append(mask) or 0o022)
    with written_whole(tmp_path / "a") as half:
        half.write_text("x")
    assert changes == []


def test_where_the_system_does_not_tell_the_umask_that_of_the_start_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_umask_now", lambda: None)
    monkeypatch.setattr(files, "_UMASK_AT_START", 0o077)
    with written_whole(tmp_path / "a") as half:
        half.write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    before = os.umask(0o027)
    try:
        assert files._umask_by_setting() == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the file would otherwise be empty on some file systems."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synchronised(descriptor: int) -> None:
        where = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("folder" if where == tmp_path else f"content {where.read_text()}")
        fsync(descriptor)

    def replaced(half: Path, target: Path) -> Path:
        steps.append("name")
        return replace(half, target)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(Path, "replace", replaced)
    with written_whole(tmp_path / "a.txt") as half:
        half.write_text("new")
    assert steps == ["content new", "name", "folder"]


def test_a_folder_that_cannot_be_synchronised_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuses_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    with written_whole(tmp_path / "a.txt") as half:
        half.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_content_that_does_not_reach_the_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert failure(path, lambda half: half.write_text("new")) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_written_through_and_stays(tmp_path: Path, there: bool) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "links").mkdir()
    target, link = tmp_path / "shelf" / "model-7.txt", tmp_path / "links" / "current.txt"
    if there:
        target.write_text("old")
    link.symlink_to(Path("..") / "shelf" / "model-7.txt")
    with written_whole(link) as half:
        half.write_text("new")
        assert half.parent == target.parent  # the same disk, so that it can be renamed
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [file.name for file in (tmp_path / "links").iterdir()] == ["current.txt"]
    assert [file.name for file in (tmp_path / "shelf").iterdir()] == ["model-7.txt"]


def test_missing_folders_are_made_and_the_ending_stays(tmp_path: Path) -> None:
    with written_whole(tmp_path / "new" / "deep" / "a.png") as half:
        assert (half.suffix, half.parent) == (".png", tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep" / "a.png").exists()


def test_what_the_folder_refuses_is_one_line_that_names_the_file(tmp_path: Path, shared: Path) -> None:
    (shared / "file").write_text("x")
    (shared / "folder").mkdir()
    (shared / "closed").mkdir(mode=0o555)
    for path in (shared / "closed" / "a\nb", shared / "folder", shared / "file" / "a"):
        with pytest.raises(MambaADError) as caught, written_whole(path) as half:
            half.write_text("x")
        assert str(caught.value).startswith(f"cannot write {shown(path)}: ")
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in shared.iterdir()) == ["closed", "file", "folder"]


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*/a: File too large$"), written_whole(path) as half:
            half.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def failure(path: Path, fails: Callable[[Path], object]) -> str:
    """The message of an error while `path` is written."""
    with pytest.raises(MambaADError) as caught, written_whole(path) as half:
        fails(half)
    return str(caught.value)


def test_where_the_disk_is_full_the_file_meant_to_be_there_is_named(tmp_path: Path) -> None:
    """/dev/full refuses every write as a full disk does, without the name of a file."""

    def fails(half: Path) -> None:
        half.unlink()
        half.symlink_to("/dev/full")
        half.write_text("x")

    path = tmp_path / "new" / "a.txt"
    assert failure(path, fails) == f"cannot write {path}: No space left on device"
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "named",
    [lambda half: None, lambda half: str(half), lambda half: f"{half}.part", lambda half: os.path.abspath("a.txt")],  # noqa: PTH100
    ids=["nothing", "the temporary file", "one beside it", "the target"],
)
def test_our_own_files_are_named_as_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: Callable[[Path], str | None]
) -> None:
    def fails(half: Path) -> None:
        raise OSError(number, os.strerror(number), named(half))

    monkeypatch.chdir(tmp_path)
    assert failure(Path("a.txt"), fails) == f"cannot write a.txt: {os.strerror(number)}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("full", ["/tmp/cache\n1/features.bin", b"/tmp/cache\n1/features.bin"])
def test_where_another_disk_is_full_the_file_on_that_disk_is_named(
    tmp_path: Path, number: int, full: str | bytes
) -> None:
    def fails(half: Path) -> None:
        raise OSError(number, os.strerror(number), full)

    path = tmp_path / "a.txt"
    path.write_text("old")
    assert failure(path, fails) == f"cannot write /tmp/cache\\n1/features.bin: {os.strerror(number)}"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_another_file_that_cannot_be_read_is_named_beside_the_target(tmp_path: Path) -> None:
    message = failure(tmp_path / "a.txt", lambda half: half.write_text((tmp_path / "gone.txt").read_text()))
    assert message == f"cannot write {tmp_path}/a.txt: {tmp_path}/gone.txt: No such file or directory"


@given(st.text(alphabet=st.characters(), max_size=20))
def test_any_name_is_shown_on_one_line_that_every_terminal_takes(name: str) -> None:
    line = shown(name)
    assert line.isprintable()
    assert line.encode().decode() == line


def test_names_are_shown_as_they_are_where_they_can_be_printed() -> None:
    assert shown(Path("größe 検査/a b[1].png")) == "größe 検査/a b[1].png"
    assert shown(os.fsdecode(b"\xff\x1b[31m\t.png")) == "\\udcff\\x1b[31m\\t.png"
