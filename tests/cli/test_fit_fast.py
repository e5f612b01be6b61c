"""`fit --fast`: a preset for fast lines."""

from pathlib import Path

from typer.testing import CliRunner

import mambaad_cli
from mambaad_cli.cli import app


def test_fast_writes_a_model_without_a_decoder_that_scores(goods: Path, tmp_path: Path) -> None:
    model = tmp_path / "fast.safetensors"
    arguments = ["fit", str(goods), "-m", str(model), "--fast", "--pixels", "64"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    loaded = mambaad_cli.load(model)
    settings = loaded.scorer.preparation.settings
    assert (settings.detector, settings.encoder, settings.two_looks) == ("memory", "efficientnet_lite0", True)
    assert loaded.predict(goods / "nut" / "0.png").verdict != "error"


def test_fast_and_another_preset_do_not_go_together(goods: Path) -> None:
    for other in (["--preset", "paper"], ["--detector", "rd4ad"]):
        result = CliRunner().invoke(app, ["fit", str(goods), "--fast", *other])
        assert result.exit_code == 2
        assert "preset of its own" in " ".join(result.output.split())
