"""Whatever is changed in a model file: it is one line that names the file, or a model that gives predictions."""

import json
import random
import resource
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.inspection import store
from mambaad_cli.inspection.model_record import ModelRecord
from tests.conftest import around, picture
from tests.inspection.test_older_formats import format_2, write

ODD = (
    None,
    -1,
    0,
    1,
    3,
    10**6,
    10**12,
    1e308,
    -1e-9,
    float("nan"),
    float("inf"),
    True,
    "",
    "x",
    "a/b",
    [],
    {},
    [1],
    [[]],
)
FEW_OR_MANY = pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])  # changes to try


def content_of(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["mambaad"]), load_file(path)


def one_line(path: Path, use: Callable[[], object]) -> str:
    """The line that using a model ends with; empty where it works."""
    try:
        use()
    except MambaADError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return str(error)
    return ""


def loaded_and_used(path: Path) -> None:
    """Score a photo, told and recognised. What cannot be loaded must not be noticed only now."""
    record = store.load(path)
    model = around(record)
    for name in (*record.products, None):
        prediction = model.predict(picture(3), class_name=name)
        assert prediction.score is not None or prediction.error
        if prediction.regions:
            prediction.explain()


@contextmanager
def memory_for(gigabytes: float) -> Iterator[None]:
    """No more than this much memory beside what is taken already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(gigabytes * 2**30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values in nested lists and dicts."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*at, key)
        yield from places(inner, (*at, key))


def change_somewhere(facts: dict[str, Any], rng: random.Random) -> str:
    """Put something odd in the place of a value, or take it away; returns what was done."""
    way = rng.choice(list(places(facts)))
    holder = facts
    for key in way[:-1]:
        holder = holder[key]
    odd = rng.choice([*ODD, "gone"])
    if odd == "gone":
        del holder[way[-1]]  # type: ignore[arg-type]
    else:
        holder[way[-1]] = odd  # type: ignore[index]
    return f"{way} = {odd}"


@FEW_OR_MANY
@pytest.mark.parametrize("older", [False, True])
def test_a_description_that_was_changed_anywhere_is_one_line_or_a_model(
    rich_file: Path, rich_record: ModelRecord, tmp_path: Path, older: bool, count: int
) -> None:
    facts, tensors = format_2(rich_record) if older else content_of(rich_file)
    text, refused = json.dumps(facts), 0
    for seed in range(count):
        changed = json.loads(text)
        what = change_somewhere(changed, random.Random(seed))
        path = write(tmp_path / "changed", changed, tensors)
        try:
            with memory_for(3):
                refused += bool(one_line(path, lambda path=path: loaded_and_used(path)))
        except Exception as error:
            raise AssertionError(f"{what} is no line: {type(error).__name__}: {error}") from error
    assert refused > count // 4


def damaged(tensors: dict[str, Tensor], name: str, way: str) -> None:
    """Change one tensor of a file."""
    tensor = tensors[name]
    if way == "gone":
        del tensors[name]
    elif way == "turned":
        tensors[name] = tensor.reshape(tensor.shape[::-1] if tensor.dim() > 1 else (1, -1)).contiguous()
    elif way == "empty":
        tensors[name] = tensor.flatten()[:0]
    elif way == "short":
        tensors[name] = tensor[:-1].contiguous() if tensor.dim() else tensor[None]
    elif way == "int64":
        tensors[name] = tensor.long()
    elif way == "bool":
        tensors[name] = tensor.bool()
    elif way == "float64":
        tensors[name] = tensor.double()
    elif way == "nan":
        tensors[name] = torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
    elif way == "zeros":
        tensors[name] = torch.zeros_like(tensor)
    else:
        tensors[f"{name}.{way}"] = tensors.pop(name)


WAYS = ("gone", "turned", "empty", "short", "int64", "bool", "float64", "nan", "zeros", "renamed")


@FEW_OR_MANY
@pytest.mark.parametrize("older", [False, True])
def test_a_tensor_that_was_changed_is_one_line_or_a_model(
    rich_file: Path, rich_record: ModelRecord, tmp_path: Path, older: bool, count: int
) -> None:
    facts, tensors = format_2(rich_record) if older else content_of(rich_file)
    of_products = [name for name in tensors if not name.startswith(("encoder.", "detector."))]
    of_network = random.Random(0).sample(sorted(set(tensors) - set(of_products)), 6)
    changes = [(name, way) for name in (*of_products, *of_network) for way in WAYS]
    for name, way in random.Random(1).sample(changes, min(count, len(changes))):
        changed = dict(tensors)
        damaged(changed, name, way)
        path = write(tmp_path / "changed", facts, changed)
        try:
            line = one_line(path, lambda path=path: loaded_and_used(path))
        except Exception as error:
            raise AssertionError(f"{name} {way} is no line: {type(error).__name__}: {error}") from error
        assert line or way not in ("gone", "renamed", "empty") or name.endswith("learnt_region"), (name, way)


@FEW_OR_MANY
def test_bytes_of_the_header_that_were_changed_are_one_line_or_a_model(
    rich_file: Path, tmp_path: Path, count: int
) -> None:
    content = rich_file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    path = tmp_path / "changed"
    for seed in range(count):
        rng, changed = random.Random(seed), bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 3, 20))):
            changed[rng.randrange(8 + length)] = rng.randrange(256)
        path.write_bytes(changed)
        with memory_for(3):
            one_line(path, lambda: loaded_and_used(path))


# ---- what a file from elsewhere could do ----


def rewritten(path: Path, **settings: Any) -> Path:
    facts, tensors = content_of(path)
    facts["settings"].update(settings)
    return write(path, facts, tensors)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp/x", "../resnet18", "a/b", "a b", ""])
def test_an_encoder_of_a_foreign_name_is_refused_before_anybody_asks_for_it(
    rich_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.create_model", None)
    monkeypatch.setattr("socket.socket.connect", None)
    assert "no encoder" in one_line(rich_file, lambda: store.load(rewritten(rich_file, encoder=name)))


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"depths": [100_000] * 4, "directions": 2, "drop_path": 0.0}},
        {"options": {"depths": [1, 1, 1, 1], "directions": 2, "drop_path": 0.0, "state": 10**7}},
        {"options": {"depths": [1, 1, 1, 10**12], "directions": 10**9}},
        {"encoder": "vit_giant_patch14_224"},
        {"encoder": "resnet152"},
        {"detector": "uniad", "options": {"hidden": 10**7, "width": 10**6}},
        {"size": [10**6, 10**6]},
        {"size": [64, -64]},
        {"detail": 1e6},
        {"tiles": [64, 64]},
    ],
)
def test_a_network_that_would_fill_the_memory_is_refused_before_it_is_made(
    rich_file: Path, settings: dict[str, Any]
) -> None:
    rewritten(rich_file, **settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "is damaged" in one_line(rich_file, lambda: store.load(rich_file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kilobytes


@pytest.mark.parametrize("name", ["product.0.region", "product.0.learnt_region"])
@pytest.mark.parametrize("data", ["text", "cut", "giant", "float"])
def test_a_region_that_is_no_mask_is_refused(rich_file: Path, name: str, data: str) -> None:
    facts, tensors = content_of(rich_file)
    png = bytearray(tensors[name].numpy().tobytes())
    if data == "giant":
        png[16:24] = struct.pack(">II", 60_000, 60_000)
    contents = {"text": b"text", "cut": png[:40], "giant": png, "float": png}
    tensors[name] = torch.from_numpy(np.frombuffer(bytes(contents[data]), np.uint8).copy())
    if data == "float":
        tensors[name] = tensors[name].float()
    write(rich_file, facts, tensors)
    with memory_for(1):
        assert "is damaged" in one_line(rich_file, lambda: store.load(rich_file))


def test_weights_in_another_precision_are_taken(rich_file: Path, rich_record: ModelRecord) -> None:
    """Somebody may store them in half precision, to save space: they are computed with as ever."""
    facts, tensors = content_of(rich_file)
    halved = {
        name: value.half() if name.startswith("detector.") and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    write(rich_file, facts, halved)
    expected = around(rich_record).predict(picture(3), class_name="nut").score
    assert around(store.load(rich_file)).predict(picture(3), class_name="nut").score == pytest.approx(
        expected, rel=0.05
    )
