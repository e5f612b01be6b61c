import dataclasses
import json
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mambaad_cli import MambaADError
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection import model_file
from mambaad_cli.inspection.fitted_model import Example, FittedModel
from mambaad_cli.inspection.model_file import load, save
from mambaad_cli.inspection.recognition import Recogniser
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model.anomaly_map import residual_statistics, residuals


@pytest.fixture
def saved(tiny_model: FittedModel, tmp_path: Path) -> Path:
    save(tiny_model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def refusal(path: Path) -> str:
    """What `load` says of a file, which must be one line that names it."""
    with pytest.raises(MambaADError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], drop: str = "-") -> Path:
    """The model file with other facts, and without the tensors whose names start with `drop`."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["mambaad"])
    changed = change(facts)
    text = changed if isinstance(changed, str) else json.dumps(facts)
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(drop)}
    save_file(tensors, path, metadata={"mambaad": text})
    return path


# ---- round trip ----


def test_a_saved_model_gives_the_same_maps_to_the_bit(tiny_model: FittedModel, tmp_path: Path) -> None:
    maps = [torch.randn(2, c, side, side) for side, c in zip((16, 8, 4), tiny_model.encoder.channels, strict=True)]
    left = residuals(maps, [torch.randn_like(one) for one in maps])
    tiny_model.statistics = {"nut": residual_statistics(lambda: [left])}
    save(tiny_model, tmp_path / "m.safetensors")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "m.safetensors").anomaly_maps(pixels), tiny_model.anomaly_maps(pixels))


def test_everything_that_is_known_of_a_model_travels_in_its_file(tiny_model: FittedModel, tmp_path: Path) -> None:
    tiny_model.scores = {"größe\udcff": [1.1, 1 / 3], "b": [2.0]}
    tiny_model.trained_on = {"größe\udcff": 7, "b": 4}
    tiny_model.held_out, tiny_model.max_false_reject = {"bolt"}, 0.05
    tiny_model.photo_statistics = {"b": [PhotoStatistics(0.5, 0.25, 0.125)]}
    save(tiny_model, tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    for name in ("scores", "trained_on", "held_out", "max_false_reject", "statistics", "recogniser", "recipe"):
        assert getattr(found, name) == getattr(tiny_model, name), name
    as_json = [json.dumps(dataclasses.asdict(model.settings)) for model in (found, tiny_model)]  # tuples become lists
    assert as_json[0] == as_json[1]
    assert found.settings.size == (64, 64)
    assert found.photo_statistics == tiny_model.photo_statistics
    assert not found.detector.training


def test_what_tells_products_apart_and_examples_travel_too(tiny_model: FittedModel, tmp_path: Path) -> None:
    tiny_model.recogniser = Recogniser(["nut", "bolt"], torch.randn(2, 5), torch.randn(5, 5), 7.5)
    tiny_model.examples = [
        Example("nut", False, (1, 2, 3, 4), torch.arange(9, dtype=torch.uint8)),
        Example("bolt", True, None, torch.arange(5, dtype=torch.uint8)),
    ]
    save(tiny_model, tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    assert found.recogniser is not None
    assert found.recogniser.names == ["nut", "bolt"]
    assert found.recogniser.limit == 7.5
    assert torch.equal(found.recogniser.means, tiny_model.recogniser.means)
    assert torch.equal(found.recogniser.precision, tiny_model.recogniser.precision)
    assert [(one.class_name, one.held_out, one.box) for one in found.examples] == [
        ("nut", False, (1, 2, 3, 4)),
        ("bolt", True, None),
    ]
    assert all(torch.equal(a.encoded, b.encoded) for a, b in zip(found.examples, tiny_model.examples, strict=True))


def test_scoring_needs_no_weights_from_elsewhere(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambaad_cli.model.encoder._packaged", None)
    monkeypatch.setattr("socket.socket.connect", None)
    assert load(saved).trained_on == {"nut": 9, "bolt": 8}


# ---- thresholds ----


def test_each_class_has_its_own_threshold_and_an_unknown_one_the_highest(tiny_model: FittedModel) -> None:
    assert [tiny_model.threshold(name) for name in ("nut", "bolt", "screw", "")] == [3.0, 4.0, 4.0, 4.0]
    assert [tiny_model.cold(name) for name in ("nut", "bolt", "screw")] == [2.0, 4.0, 4.0]


def test_without_scores_of_good_images_there_is_no_threshold(tiny_model: FittedModel) -> None:
    tiny_model.scores = {}
    assert (tiny_model.threshold("nut"), tiny_model.cold("nut")) == (None, None)


# ---- files that are none of ours ----


def test_a_truncated_model_is_refused_wherever_it_is_cut(saved: Path) -> None:
    content = saved.read_bytes()
    for kept in (0, 1, 7, 8, 9, 1000, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:kept])
        assert "truncated" in refusal(saved)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / "m").write_bytes(random.Random(seed).randbytes(5000))
        assert "no model file" in refusal(tmp_path / "m")


def test_a_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "m")
    assert "was not made by mambaad" in refusal(tmp_path / "m")
    save_file({"a": torch.zeros(3)}, tmp_path / "m", metadata={"format": "pt"})
    assert "was not made by mambaad" in refusal(tmp_path / "m")


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_a_missing_model_says_how_to_make_one(tmp_path: Path) -> None:
    assert "mambaad fit" in refusal(tmp_path / "gone.safetensors")


def test_a_model_of_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    rewritten(saved, lambda facts: facts.update(format=model_file.FORMAT + 1, mambaad="99.0", settings={"new": 1}))
    assert "newer mambaad (99.0): upgrade" in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: "no json",
        lambda facts: "[1]",
        lambda facts: facts.pop("format"),
        lambda facts: facts.pop("scores"),
        lambda facts: facts.pop("settings"),
        lambda facts: facts["settings"].update(colour="red"),
        lambda facts: facts["settings"]["options"].update(colour="red"),
        lambda facts: facts["settings"].update(encoder="no_such_net"),
        lambda facts: facts["settings"].update(detector="no_such_detector"),
    ],
)
def test_damaged_facts_are_one_line(saved: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewritten(saved, change)
    with pytest.raises(MambaADError) as caught:
        load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drop", ["encoder.mean", "detector.", "encoder.net."])
def test_a_model_without_all_its_tensors_is_refused(saved: Path, drop: str) -> None:
    assert "damaged" in refusal(rewritten(saved, lambda facts: None, drop))


def test_tensors_of_other_settings_are_refused(saved: Path) -> None:
    rewritten(saved, lambda facts: facts["settings"]["options"].update(directions=4))
    assert "damaged" in refusal(saved)


def test_a_model_file_that_is_a_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(pickle.dumps(Bomb(tmp_path)))
    refusal(tmp_path / "m")
    assert not (tmp_path / "run").exists()


# ---- disks ----


def test_a_full_disk_is_one_line_and_keeps_the_old_model(tiny_model: FittedModel, saved: Path) -> None:
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*model\.safetensors: .*File too large"):
            save(tiny_model, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_read_only_folder_is_one_line(tiny_model: FittedModel, shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o555)
    with pytest.raises(MambaADError, match=r"^cannot write .*/closed/m: Permission denied$"):
        save(tiny_model, shared / "closed" / "m")


# ---- weights from elsewhere ----


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "run"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state_dict": {"a": torch.zeros(2), "b": bomb}}])
@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path, wrap: Any, write: Any) -> None:
    path = tmp_path / "weights.pth"
    write(wrap(Bomb(tmp_path)), path)
    with pytest.raises(MambaADError, match=r"weights\.pth holds more than tensors"):
        read_state_dict(path)
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path)))
    assert (tmp_path / "run").exists()  # the bomb was live


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"net": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {"net": state}, "loss": torch.zeros(())},
    ],
)
def test_weights_are_found_wrapped_or_not(tmp_path: Path, wrap: Any) -> None:
    state = {"a.weight": torch.rand(2, 3), "b": torch.rand(4)}
    torch.save(wrap(state), tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("content", [b"", b"text", bytes(2000), b"\x80\x02garbage", b"PK\x03\x04garbage"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_holds_no_weights_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MambaADError) as caught:
        read_state_dict(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_weights_a_folder_and_an_empty_state_dict_say_so(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    for path, said in ((tmp_path / "gone", "no file"), (tmp_path, "directory"), (tmp_path / "w.pth", "no tensors in")):
        with pytest.raises(MambaADError, match=said):
            read_state_dict(path)
