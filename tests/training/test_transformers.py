"""A model on a vision transformer, from good photos to a file and to scores: sizes are multiples of its patch."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models._registry import _model_entrypoints, _module_to_models
from timm.models.vision_transformer import VisionTransformer

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.export.network import WholeModel
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.store import load, save
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.settings import PRESETS, Settings
from mambaad_cli.training.fit import fit
from mambaad_cli.training.recipe import RunOptions
from tests.conftest import TINY
from tests.export.conftest import needs
from tests.training.conftest import goods_of, judged, tiny_recipe

SMALL = replace(PRESETS["small"], encoder="tiny_vit14", size=(64, 64), options=TINY, detail=1.5)
MEMORY = replace(PRESETS["memory"], encoder="tiny_vit14", size=(64, 64))
KINDS: dict[str, tuple[Settings, dict[str, Any]]] = {
    "both": (SMALL, {"evidence": "both", "memory_size": 100}),
    "both, larger images in one look": (replace(SMALL, looks=1), {"evidence": "both", "memory_size": 100}),
    "decoder": (replace(SMALL, encoder="test_vit", detail=1.0), {"evidence": "decoder"}),
    "memory": (MEMORY, {"evidence": "memory", "memory_size": 100}),
}


@pytest.fixture(autouse=True)
def tiny_vit14() -> Iterator[None]:
    """A model of timm that is as small as its test models, with patches of 14 pixels as DINOv2 has them."""

    def tiny_vit14(pretrained: bool = False, **choices: Any) -> VisionTransformer:
        sizes = {"img_size": 70, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2, "reg_tokens": 2}
        build = timm.models._builder.build_model_with_cfg
        of_features = {"out_indices": choices.pop("out_indices", 3), "feature_cls": "getter"}
        return build(VisionTransformer, "tiny_vit14", pretrained, feature_cfg=of_features, **(sizes | choices))

    tiny_vit14.__module__ = __name__
    register_model(tiny_vit14)
    yield
    _model_entrypoints.pop("tiny_vit14")
    _module_to_models.pop(__name__.split(".")[-1], None)


def weights_of(name: str, folder: Path) -> Path:
    torch.manual_seed(3)
    path = folder / f"{name}.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    return path


def fitted(kind: str, goods: Path, folder: Path) -> ModelRecord:
    settings, choices = KINDS[kind]
    run = RunOptions(encoder_weights=weights_of(settings.encoder, folder))
    return fit(goods_of(images.find([goods])), settings, tiny_recipe(**choices), run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_scores_alike_after_it_was_saved_and_read(kind: str, goods: Path, tmp_path: Path) -> None:
    record = fitted(kind, goods, tmp_path)
    step = record.network.settings.step
    assert step == record.network.encoder.step == (16 if kind == "decoder" else 14)
    assert all(side % step == 0 for product in record.products.values() for side in product.size)
    save(record, tmp_path / "model.safetensors")
    files = images.find([goods])
    scores = [one.score for one in judged(record, files)]
    assert [one.score for one in judged(load(tmp_path / "model.safetensors"), files)] == scores
    assert len(set(scores)) > 1


def test_another_size_of_whole_patches_can_be_scored_at_and_others_are_refused(goods: Path, tmp_path: Path) -> None:
    record = fitted("memory", goods, tmp_path)
    assert len(judged(record.at_size((84, 98)), images.find([goods]))) == 12
    with pytest.raises(MambaADError, match=r"100x90 pixels: .* multiples of 14, such as 98x84"):
        record.at_size((90, 100))


def test_sizes_and_tiles_that_do_not_fit_the_patches_are_refused_before_an_image_is_read(tmp_path: Path) -> None:
    run = RunOptions(encoder_weights=weights_of("tiny_vit14", tmp_path))
    for settings, reason in (
        (replace(SMALL, own_aspect=False, detail=1.0), "64x64 pixels: .* multiples of 14, such as 70x70"),
        (replace(SMALL, tiles=(384, 384)), "--tiles needs an encoder with patches of 16 pixels"),
    ):
        with pytest.raises(MambaADError, match=reason):
            fit(goods_of([]), settings, tiny_recipe(), run)


def test_a_file_whose_sizes_do_not_fit_its_encoder_is_refused(goods: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(fitted("memory", goods, tmp_path), path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["mambaad"])
    facts["settings"]["step"] = 16
    save_file(load_file(path), path, {"mambaad": json.dumps(facts)})
    with pytest.raises(MambaADError, match="steps of 16, those of its encoder are 14"):
        load(path)


@pytest.mark.parametrize("kind", ["both", "both, larger images in one look"])
def test_the_network_that_is_exported_has_the_maps_of_the_model(kind: str, goods: Path, tmp_path: Path) -> None:
    record = fitted(kind, goods, tmp_path)
    scorer = TorchScorer(record)
    wanted = scorer.preparation.wanted("nut")
    inputs = [wanted.of_file(0, file.path)[0] for file in images.find([goods / "nut"])]
    pixels = torch.stack([image.pixels for image in inputs]).permute(0, 2, 3, 1) * 255
    with torch.no_grad():
        maps = WholeModel(record, "nut").eval()(pixels).map
    for judgement, anomaly_map in zip(scorer.judge(inputs, ["nut"] * len(inputs)), maps, strict=True):
        torch.testing.assert_close(anomaly_map, judgement.anomaly_map, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_exported_model_scores_as_the_model_does(goods: Path, tmp_path: Path) -> None:
    needs("onnx", "onnx_ir", "onnxscript", "onnxruntime")
    from mambaad_cli.export.write import ExportOptions, export

    save(fitted("memory", goods, tmp_path), tmp_path / "model.safetensors")
    scorer = TorchScorer(load(tmp_path / "model.safetensors"))
    options = ExportOptions(class_name="nut", check=goods / "nut")
    (written,) = export(scorer, tmp_path / "model.safetensors", tmp_path / "nut.onnx", options)
    assert written.agreement is not None
    assert written.agreement.images >= 6
