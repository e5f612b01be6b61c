"""Shards of a scoring run: each file is in one, whatever the order and the machine; merged, they are a single run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.image_files import ImageFile
from mambaad_cli.inspection import shards
from mambaad_cli.inspection.row_files import read_file
from mambaad_cli.inspection.shards import Shard, share
from tests.cli.test_commands import complaint, model, run  # noqa: F401 - model is a fixture
from tests.conftest import picture


def files(count: int) -> list[ImageFile]:
    return [ImageFile(Path(f"in/{i % 7}/{i}.png"), Path(f"{i % 7}/{i}.png"), str(i % 7)) for i in range(count)]


def test_each_file_is_in_one_shard_and_the_shards_are_of_about_the_same_size() -> None:
    listed = files(4000)
    shares = [share(listed, Shard(number, 10)) for number in range(1, 11)]
    assert sorted(file.path for one in shares for file in one.files) == sorted(file.path for file in listed)
    sizes = [len(one.files) for one in shares]
    assert max(abs(size - 400) for size in sizes) < 4 * np.sqrt(400)  # four deviations of a binomial
    for one in shares:
        assert [listed[place - 1] for place in one.places] == one.files
        assert one.total == 4000


def test_a_shard_depends_on_no_order_no_other_file_and_no_folder_above() -> None:
    listed = files(100)
    shard = Shard(2, 3)
    whole = {file.relative for file in share(listed, shard).files}
    assert {file.relative for file in share(listed[::-1], shard).files} == whole
    assert {file.relative for file in share(listed[:50], shard).files} == whole & {one.relative for one in listed[:50]}
    moved = [file._replace(path=Path("/mnt") / file.path) for file in listed]
    assert {file.relative for file in share(moved, shard).files} == whole


def test_the_rule_is_the_same_for_ever() -> None:
    """By hand: the first 8 bytes of sha256(b"nut/001.png"), a number with the most significant byte first, modulo N."""
    assert shards.shard_of("nut/001.png", 2**62) == int("cbe8f82f43bf3ca7", 16) % 2**62 + 1
    assert shards.shard_of("a\\b.png", 97) == shards.shard_of("a/b.png", 97) == shards.shard_of(Path("a/b.png"), 97)
    assert shards.shard_of("e\u0301.png", 97) == shards.shard_of("\u00e9.png", 97)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos in folders, of which one is damaged and one has a name that CSV must quote."""
    for number in range(9):
        images.write(tmp_path / "photos" / "nut" / f"{number}.png", picture(number))
    for name in ("=1+1.png", 'a,"b".png', "é.png"):
        images.write(tmp_path / "photos" / "bolt" / name, picture(50))
    (tmp_path / "photos" / "nut" / "10.png").write_bytes(b"no picture")
    images.write(tmp_path / "photos" / "last.png", picture(60))
    return tmp_path / "photos"


def scored(photos: Path, count: int, *options: str) -> list[str]:
    """The files of rows of all shards."""
    names = [f"shard{number}.rows" for number in range(1, count + 1)]
    for number, name in enumerate(names, 1):
        assert run("score", photos, *options, "--shard", f"{number}/{count}", "-o", name).exit_code in (0, 1)
    return names


@pytest.mark.parametrize("count", [1, 3, 20])
def test_csv_rows_of_all_shards_merged_are_those_of_one_run(model: Path, photos: Path, count: int) -> None:  # noqa: F811
    assert run("score", photos, "--csv", "-o", "whole.csv").exit_code == 1  # one photo is damaged
    names = scored(photos, count, "--csv")
    result = run("merge", *names[::-1], "-o", "merged.csv")
    assert (result.exit_code, result.stderr) == (1, "14 rows in merged.csv\n")
    assert Path("merged.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert run("merge", *names, "--against", photos).stdout == Path("whole.csv").read_text(encoding="utf-8")


def test_cells_come_out_of_a_merge_as_they_were(tmp_path: Path) -> None:
    """Numbers below zero, and text that was kept from being a formula already."""
    header = "path,score,threshold,verdict,shard,shards,place,files\n"
    (tmp_path / "one.csv").write_text(header + "'=a.png,-12.5,-0.25,good,1,2,1,2\n")
    (tmp_path / "two.csv").write_text(header + '"a,b.png",+1,,review,2,2,2,2\n')
    lines = list(shards.merge([tmp_path / "one.csv", tmp_path / "two.csv"]).lines())
    assert lines == ["path,score,threshold,verdict\n", "'=a.png,-12.5,-0.25,good\n", '"a,b.png",+1,,review\n']


def test_json_rows_merged_are_those_of_one_run_but_for_the_time(model: Path, photos: Path) -> None:  # noqa: F811
    run("score", photos, "--json", "--regions", "-o", "whole.jsonl")
    run("merge", *scored(photos, 4, "--json", "--regions"), "-o", "merged.jsonl")
    time = re.compile(rb'"time": "[^"]*"')
    merged, whole = (time.sub(b"", Path(name).read_bytes()) for name in ("merged.jsonl", "whole.jsonl"))
    assert merged == whole


def test_rows_of_a_shard_are_rows_for_all_that_reads_rows(model: Path, photos: Path) -> None:  # noqa: F811
    names = scored(photos, 2, "--json")
    assert sum(len(read_file(Path(name)).rows) for name in names) == 14
    first = json.loads(Path(names[0]).read_text().splitlines()[0])
    assert (first["shard"], first["shards"], first["files"]) == (1, 2, 14)


def test_what_is_missing_or_double_is_named_and_nothing_is_written(model: Path, photos: Path) -> None:  # noqa: F811
    names = scored(photos, 3, "--csv")
    rows = {name: Path(name).read_text().splitlines(keepends=True) for name in names}
    lost = len(rows[names[1]]) - 1
    assert lost >= 1
    assert f"{lost} of 14 rows are missing; no rows of shard 2 of 3" in complaint(run("merge", names[0], names[2]))
    line = complaint(run("merge", names[0], names[2], "--against", photos, "-o", "merged.csv"))
    assert "of shard 2 of 3" in line
    assert str(share(images.find([photos]), Shard(2, 3)).files[0].path) in line
    assert not Path("merged.csv").exists()
    Path("copy.rows").write_text("".join(rows[names[0]]))
    assert f"is there twice, in {names[0]} and copy.rows" in complaint(run("merge", *names, "copy.rows"))
    Path("cut.rows").write_text("".join(rows[names[0]])[:-1])  # the last line has no end
    assert "1 of 14 rows are missing" in complaint(run("merge", "cut.rows", *names[1:]))


def test_rows_of_other_runs_and_of_no_shard_are_refused(model: Path, photos: Path) -> None:  # noqa: F811
    names = scored(photos, 2, "--csv")
    run("score", photos, "--csv", "-o", "plain.csv")
    assert "plain.csv holds no rows of a shard" in complaint(run("merge", names[0], "plain.csv"))
    run("score", photos, "--json", "--shard", "2/2", "-o", "other.jsonl")
    assert "rows of several kinds" in complaint(run("merge", names[0], "other.jsonl"))
    images.write(photos / "new.png", picture(70))
    run("score", photos, "--csv", "--shard", "2/2", "-o", names[1])
    assert "is of 2 shards of 14 files, but shard2.rows is of 2 shards of 15 files" in complaint(run("merge", *names))
    run("score", photos, "--csv", "--shard", "1/2", "-o", names[0])
    (photos / "new.png").unlink()
    assert "there are 14 files now, and were 15" in complaint(run("merge", *names, "--against", photos))
    assert "cannot read gone" in complaint(run("merge", "gone"))
    Path("empty").touch()
    assert "no rows in empty" in complaint(run("merge", "empty"))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5"])
def test_a_shard_that_cannot_be_is_wrong_usage(model: Path, photos: Path, shard: str) -> None:  # noqa: F811
    assert run("score", photos, "--csv", "--shard", shard).exit_code == 2


def test_files_that_changed_places_are_seen(tmp_path: Path) -> None:
    listed = [ImageFile(Path(f"in/{name}"), Path(name), "") for name in ("b.png", "a.png")]
    lines = "path,verdict,shard,shards,place,files\nin/a.png,good,1,1,1,2\nin/b.png,good,1,1,2,2\n"
    (tmp_path / "rows.csv").write_text(lines)
    assert [row.path for row in shards.merge([tmp_path / "rows.csv"]).rows] == ["in/a.png", "in/b.png"]
    with pytest.raises(MambaADError, match="files came or went"):
        shards.merge([tmp_path / "rows.csv"], listed)
