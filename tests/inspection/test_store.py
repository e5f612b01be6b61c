import dataclasses
import json
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.file_schema import FORMAT
from mambaad_cli.inspection.model_record import Example
from mambaad_cli.inspection.product import Learnt, Product, ScoredDefect, cold_of, threshold_of
from mambaad_cli.inspection.recognition import Recogniser
from mambaad_cli.inspection.store import load, save
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model.anomaly_map import residual_statistics, residuals
from tests.conftest import calibrated, record_of, with_products, with_scores


@pytest.fixture
def saved(tiny_model: FittedModel, tmp_path: Path) -> Path:
    save(record_of(tiny_model), tmp_path / "model.safetensors")
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
    network = record_of(tiny_model).network
    maps = [torch.randn(2, c, side, side) for side, c in zip((16, 8, 4), network.encoder.channels, strict=True)]
    left = residuals(maps, [torch.randn_like(stage) for stage in maps])
    learnt = Learnt(tuple(residual_statistics(lambda: [left])))
    save(record_of(with_products(tiny_model, Product("nut", (64, 64), learnt=learnt))), tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network.anomaly_maps(network.features(pixels), (64, 64), learnt)
        found = again.network.anomaly_maps(again.network.features(pixels), (64, 64), again.products["nut"].learnt)
    assert torch.equal(found, expected)


def test_everything_that_is_known_of_a_model_travels_in_its_file(tiny_model: FittedModel, tmp_path: Path) -> None:
    nut = Product("größe\udcff", (64, 96), 7, (480, 640), turned=True)
    bolt = Product("b", (64, 64), 4, own_masks=True, region=np.eye(8, dtype=bool))
    before = with_products(
        tiny_model,
        calibrated(nut, [1.1, 1 / 3], promising=False, simulated=(ScoredDefect("spot", 4.0, 2.5),), farthest=7.25),
        calibrated(bolt, [2.0], max_false_reject=0.05, photos=(PhotoStatistics(0.5, 0.25, 0.125),)),
        Product("screw", (32, 32)),
    )
    record = replace(record_of(before), recipe={"steps": 3, "name": "small"})
    save(record, tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    assert list(found.products) == list(record.products)
    for name, product in record.products.items():
        for fact in ("name", "size", "images", "photo_shape", "turned", "own_masks", "calibration"):
            assert getattr(found.products[name], fact) == getattr(product, fact), (name, fact)
    region = found.products["b"].region
    assert region is not None
    assert np.array_equal(region, np.eye(8, dtype=bool))
    assert (found.recogniser, found.recipe) == (None, record.recipe)
    settings = [json.dumps(dataclasses.asdict(each.network.settings)) for each in (found, record)]  # tuples as lists
    assert settings[0] == settings[1]
    assert found.network.settings.size == (64, 64)
    assert not found.network.detector.training


def test_what_tells_products_apart_and_examples_travel_too(tiny_model: FittedModel, tmp_path: Path) -> None:
    record = record_of(tiny_model)
    length = 2 * sum(record.network.encoder.channels[-2:])
    recogniser = Recogniser(["nut", "bolt"], torch.randn(2, length), torch.randn(length, length))
    examples = (
        Example("nut", False, (1, 2, 3, 4), torch.arange(9, dtype=torch.uint8)),
        Example("bolt", True, None, torch.arange(5, dtype=torch.uint8), torch.arange(3, dtype=torch.uint8)),
    )
    save(replace(record, recogniser=recogniser, examples=examples), tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    assert found.recogniser is not None
    assert found.recogniser.names == ["nut", "bolt"]
    assert torch.equal(found.recogniser.means, recogniser.means)
    assert torch.equal(found.recogniser.precision, recogniser.precision)
    assert [(example.class_name, example.held_out, example.box) for example in found.examples] == [
        ("nut", False, (1, 2, 3, 4)),
        ("bolt", True, None),
    ]
    assert all(torch.equal(a.encoded, b.encoded) for a, b in zip(found.examples, examples, strict=True))
    assert [example.inside is not None for example in found.examples] == [False, True]


def test_scoring_needs_no_weights_from_elsewhere(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambaad_cli.model.encoder._packaged", None)
    monkeypatch.setattr("socket.socket.connect", None)
    assert {name: product.images for name, product in load(saved).products.items()} == {"nut": 9, "bolt": 8}


# ---- thresholds ----


def test_each_class_has_its_own_threshold_and_an_unknown_one_the_highest(tiny_model: FittedModel) -> None:
    products = tiny_model.products
    assert [threshold_of(products, name) for name in ("nut", "bolt", "screw", "")] == [3.0, 4.0, 4.0, 4.0]
    assert [cold_of(products, name) for name in ("nut", "bolt", "screw")] == [2.0, 4.0, 4.0]


def test_without_scores_of_good_images_there_is_no_threshold(tiny_model: FittedModel) -> None:
    products = with_scores(tiny_model, {}).products
    assert (threshold_of(products, "nut"), cold_of(products, "nut")) == (None, None)


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
    rewritten(saved, lambda facts: facts.update(format=FORMAT + 1, mambaad="99.0", settings={"new": 1}))
    assert "newer mambaad (99.0): upgrade" in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: "no json",
        lambda facts: "[1]",
        lambda facts: facts.pop("format"),
        lambda facts: facts["products"][0]["calibration"].pop("scores"),
        lambda facts: facts["products"][0].pop("name"),
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
            save(record_of(tiny_model), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_read_only_folder_is_one_line(tiny_model: FittedModel, shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o555)
    with pytest.raises(MambaADError, match=r"^cannot write .*/closed/m: Permission denied$"):
        save(record_of(tiny_model), shared / "closed" / "m")


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
