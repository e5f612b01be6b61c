"""The cache of features: what it holds, of which views, and where."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.training import cache
from mambaad_cli.training.cache import fill
from mambaad_cli.training.examples import example
from mambaad_cli.training.features import Views, features_of_examples, features_of_files
from mambaad_cli.training.recipe import RunOptions
from tests.conftest import picture, record_of, with_settings
from tests.training.conftest import (
    goods_of,
    job_of,
    same,
)


def test_features_kept_in_a_file_give_the_same_model(
    run: Callable[..., ModelRecord], never_stopped: ModelRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert same(run(cache_memory=0), never_stopped)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_features_of_half_the_size_give_nearly_the_same_training(run: Callable[..., ModelRecord]) -> None:
    losses: dict[str, list[float]] = {"fp32": [], "fp16": [], "bf16": []}
    for dtype, found in losses.items():
        run(cache_dtype=dtype, dropout=0.0, on_step=lambda step, steps, loss, images, found=found: found.append(loss))
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.001)
    assert len({tuple(found) for found in losses.values()}) == 3


def test_many_features_are_kept_in_half_precision_and_few_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "EXACT", 4 * 30)
    room = cache.Cache(RunOptions())
    assert [room.allocated(2, [(10,)])[0].dtype for _ in range(2)] == [torch.float32, torch.float16]
    chosen = cache.Cache(RunOptions(cache_dtype="fp32"))
    assert [chosen.allocated(2, [(10,)])[0].dtype for _ in range(2)] == [torch.float32, torch.float32]


def test_features_beyond_half_precision_become_its_largest() -> None:
    room = torch.empty(3, dtype=torch.float16)
    fill(room, torch.tensor([1e6, -1e6, 0.5]))
    assert room.tolist() == [65504, -65504, 0.5]


def test_the_memory_of_the_cache_is_that_of_all_sizes_and_views_together(
    tiny_model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products of different sizes, in two views each: any of the four would fit alone."""
    for name, shape in (("wide", (40, 160)), ("tall", (160, 40))):
        for i in range(3):
            images.write(tmp_path / "in" / name / f"{i}.png", picture(i, *shape))
    there = goods_of(images.find([tmp_path / "in"]))
    model = replace(record_of(with_settings(tiny_model, own_aspect=True, detail=1.5, looks=2)), products={})
    in_files: list[int] = []
    real = cache._mapped
    monkeypatch.setattr(cache, "_mapped", lambda size, dtype: in_files.append(size) or real(size, dtype))

    def bytes_in_files(memory: int) -> int:
        in_files.clear()
        features_of_files(job_of(model, there, cache_memory=memory), there.files, there.classes)
        return 4 * sum(in_files)

    everything = bytes_in_files(0)
    assert 0 < bytes_in_files(everything - 1) <= everything // 2
    assert bytes_in_files(everything) == 0


@pytest.mark.parametrize("looks", [1, 2])
def test_the_decoder_sees_examples_at_the_size_of_photos(tiny_model: FittedModel, tmp_path: Path, looks: int) -> None:
    """A model carries pictures at that size: they are not made smaller once more."""
    for i in range(3):
        images.write(tmp_path / "in" / "nut" / f"{i}.png", picture(i, 80, 120))
    goods = goods_of(images.find([tmp_path / "in"]))
    model = replace(record_of(with_settings(tiny_model, own_aspect=True, detail=1.5, looks=looks)), products={})
    job = job_of(model, goods)
    new, _ = features_of_files(job, goods.files, goods.classes, lambda images: Views(2))
    wanted = job.preparation.wanted("nut", size=job.map_size("nut"))
    kept = [one for file in goods.files if (one := example(file.path, "nut", False, wanted)) is not None]
    carried = features_of_examples(job, kept, Views(2))
    assert [stage.shape for stage in carried.groups[0].stages] == [stage.shape for stage in new.groups[0].stages]
    finest, same = (group.stages[0][0] for group in (carried.groups[0], new.groups[0]))
    assert float((finest - same).abs().max()) < 0.2 * float(same.abs().max())  # they were packed


def test_a_temporary_folder_that_is_too_small_is_said_before_training(
    run: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(MambaADError, match=r"GB free: set TMPDIR to a larger disk, or give --cache-dtype fp16"):
        run(cache_memory=0)


def test_features_are_those_of_the_encoder_in_the_order_of_the_images(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    model = run(epochs=1)
    (goods / "bolt" / "3.png").write_text("text")
    files, there = images.find([goods]), goods_of(images.find([goods]))
    features, readable = features_of_files(job_of(model, there), files, there.classes)
    assert readable == [0, 1, 2, *range(4, 12)]
    pixels = torch.stack([images.resize(images.read(files[i].path), (64, 64)) for i in readable])
    with torch.inference_mode():
        expected = model.network.encoder(pixels)
    for stage, found in zip(expected, features[torch.arange(11)], strict=True):
        assert torch.allclose(stage, found, rtol=1e-3, atol=1e-4)


def test_few_images_are_extended_by_moved_views(run: Callable[..., ModelRecord], goods: Path) -> None:
    there = goods_of(images.find([goods]))
    job, files, classes = job_of(run(), there), there.files, there.classes
    features, _ = features_of_files(job, files, classes, views_for=lambda images: Views(3))
    plain, _ = features_of_files(job, files, classes)
    assert len(features.groups[0].stages[0]) == 36
    chosen = torch.tensor([3, 7])
    for own, alone in zip(features[chosen], plain[chosen], strict=True):
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)
    drawn = torch.stack([features.any_view(chosen)[2] for _ in range(20)])
    assert len({float(one.sum()) for one in drawn[:, 0]}) == 3


def test_only_the_views_that_a_memory_remembers_are_looked_at_closely(
    run: Callable[..., ModelRecord], goods: Path
) -> None:
    there = goods_of(images.find([goods]))
    job, files, classes = job_of(run(two_looks=True, evidence="memory"), there), there.files, there.classes
    views = Views(3, turned=frozenset({"nut"}))
    features, _ = features_of_files(job, files, classes, views_for=lambda images: views)
    plain, _ = features_of_files(job, files, classes)
    everything = Views(3, flips=True, turned=views.turned)
    known = {"bolt": 1, "nut": 3}
    assert {name: (views.remembered(name), everything.remembered(name)) for name in known} == {
        "bolt": (1, 3),
        "nut": (3, 3),
    }
    for i, name in enumerate(classes):
        remembered = features.remembered_views(i)
        assert [len(stage) for stage in remembered] == [known[name]] * len(remembered)
        for own, alone in zip(remembered, plain.remembered_views(i), strict=True):
            torch.testing.assert_close(own[:1], alone, atol=1e-5, rtol=1e-4)
    assert len(features.any_view(torch.tensor([0]))) == len(features[torch.tensor([0])]) - 1
    both = features.and_those_of(features)
    for own, alone in zip(both.remembered_views(len(files) + 3), features.remembered_views(3), strict=True):
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)
