from unittest.mock import patch

import pytest

from mambaad_cli.benchmark import profile_ssm


def test_a_line_for_each_place_with_the_ratio_of_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    monkeypatch.setattr(profile_ssm, "SIDES", (16, 8, 4))
    with patch("sys.argv", ["profile_ssm", "--rounds", "1", "--batch", "2"]):
        profile_ssm.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if ", ms" in line]
    assert [line.split(", ms")[0] for line in lines][-1] == "ONNX Runtime, pass of 1"
    for line in lines:
        mamba, gla, ratio = map(float, line.split(", ms")[1].split())
        assert ratio == pytest.approx(gla / mamba, rel=0.2)
