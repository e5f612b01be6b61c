"""The program that puts a server under load."""

import re
import socket
import sys
import time
from pathlib import Path

import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.benchmark import load_serve
from tests.conftest import with_products
from tests.serving.conftest import ROOT, needs_the_extra


@pytest.mark.slow
def test_each_photo_of_a_load_gets_the_row_that_score_gives_also_a_damaged_one(
    tiny_model: FittedModel,
    goods: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_the_extra()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with_products(tiny_model, tiny_model.products["nut"]).save(tmp_path / "m.safetensors")
    (goods / "nut" / "torn.png").write_bytes((goods / "nut" / "0.png").read_bytes()[:500])
    load_serve.main([str(tmp_path / "m.safetensors"), str(goods), "--photos", "20", "--clients", "3"])
    printed = capfd.readouterr().out
    assert "serve: 20 rows of 20 photos, 0 lost, 0 sent again\n" in printed
    assert re.search(
        r"^3 clients: [\d.]+ images/s; seconds from request to row: p50 [\d.]+, p95", printed, re.MULTILINE
    )
    assert "20 of 20 rows have the same verdict, and scores within 0.1 %\n" in printed


def test_a_server_that_says_much_is_not_stopped_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its messages go into a pipe, which holds 64 KiB."""
    program, done = tmp_path / "server", tmp_path / "done"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys, time\nprint('at http://127.0.0.1:7', file=sys.stderr, flush=True)\n"
        f"print(10**6 * 'x', file=sys.stderr, flush=True)\npathlib.Path({str(done)!r}).touch()\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    until = time.monotonic() + 20
    with load_serve.serving(tmp_path / "m.safetensors") as port:
        assert port == 7
        while not done.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert capsys.readouterr().out == 10**6 * "x" + "\n"


def test_a_load_without_photos_or_without_answers_ends_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^load_serve: no images in .*\Z"):
        load_serve.main(["m.safetensors", str(tmp_path)])
    (tmp_path / "a.png").touch()
    with socket.socket() as bound:  # nobody listens
        bound.bind(("127.0.0.1", 0))
        load = load_serve.Load([tmp_path / "a.png"], bound.getsockname()[1])
        with pytest.raises(SystemExit, match="^load_serve: no answer: ConnectionRefusedError: "):
            load.run(1)
    with pytest.raises(SystemExit, match="^load_serve: no photo has a row$"):
        load.report(1)
