"""PatchCore of anomalib beside our detectors."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import peers
from mambaad_cli.data import datasets
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.progress import Progress

COOKIE = Path(__file__).parents[1] / "data" / "cookie"


def test_without_anomalib_one_line_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MambaADError, match="pip install anomalib"):
        peers.peers()


def test_a_patch_that_it_remembers_is_less_unusual_than_one_that_it_does_not() -> None:
    pytest.importorskip("anomalib")
    paths = [sample.path for sample in datasets.training_images(datasets.load(COOKIE))][:4]
    settings = Settings(peers.PATCHCORE, size=(64, 64))
    model = peers.fit(paths, ["cookie"] * 4, peers.PeerOptions(settings, 42), Progress())
    known = model.predict(paths[0])
    other = model.predict(torch.rand(64, 64, 3).numpy())
    assert known.verdict == "uncalibrated"
    assert known.anomaly_map is not None
    assert known.anomaly_map.shape == (64, 64)
    assert known.score < other.score
