"""The program that puts a server under load."""

import re
from pathlib import Path

import pytest

from mambaad_cli.api import FittedModel
from mambaad_cli.benchmark import load_serve
from tests.conftest import with_products
from tests.serving.conftest import ROOT, needs_the_extra


def test_each_photo_of_a_load_gets_the_row_that_score_gives(
    tiny_model: FittedModel,
    goods: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_the_extra()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with_products(tiny_model, tiny_model.products["nut"]).save(tmp_path / "m.safetensors")
    load_serve.main([str(tmp_path / "m.safetensors"), str(goods), "--photos", "20", "--clients", "3"])
    printed = capfd.readouterr().out
    assert "serve: 20 rows of 20 photos, 0 lost, 0 sent again\n" in printed
    assert re.search(
        r"^3 clients: [\d.]+ images/s; seconds from request to row: p50 [\d.]+, p95", printed, re.MULTILINE
    )
    assert "20 of 20 rows have the same verdict, and scores within 0.1 %\n" in printed
