"""`mambaad export`, its gate, and exported models at work. One export is made for all of these tests."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mambaad_cli
from mambaad_cli import MambaADError
from mambaad_cli.api import FittedModel
from mambaad_cli.benchmark import detectors
from mambaad_cli.benchmark.passes import scoring_pass
from mambaad_cli.data import images
from mambaad_cli.data.roi import MaskFolder, parse
from mambaad_cli.export import write
from mambaad_cli.export.gate import LOCAL, Agreement, with_p_value
from mambaad_cli.export.write import ExportOptions, Target, targets
from mambaad_cli.inspection import exported_scorer, store
from mambaad_cli.inspection.file_schema import described
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.product import Product
from mambaad_cli.inspection.runtimes import FACTS, sealed_onnx
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.settings import Settings
from tests.cli.test_commands import complaint, run
from tests.code_blocks import blocks
from tests.conftest import calibrated, record_of, with_products
from tests.export.conftest import WHOLE, WHOLE_INPUT, Fit, Saved, needs
from tests.export.test_network import KINDS

Nuts = Callable[..., ModelRecord]


@pytest.fixture
def ready(whole: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """The exported model, which `mambaad export` writes at once instead of tracing it again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "onnx_bytes", lambda *_: whole.onnx.read_bytes())
    return whole


def broken(content: bytes) -> bytes:
    """The same graph with the largest of its constants a little larger, properly sealed."""
    import onnx

    graph = onnx.load_from_string(content)
    del graph.metadata_props[-1]  # the seal
    floats = [constant for constant in graph.graph.initializer if constant.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda constant: int(np.prod(constant.dims)))
    values = onnx.numpy_helper.to_array(largest) * np.float32(1.05)
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    return sealed_onnx(graph.SerializeToString())


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- the gate ----


def test_a_file_that_scores_alike_is_written_with_its_numbers(ready: Saved) -> None:
    done = run("export", ready.path, "-o", "out/model.onnx", "--check", ready.photos)
    assert done.exit_code == 0, done.output
    assert "no verdict differs" in done.stdout
    assert sorted(path.name for path in Path("out").iterdir()) == ["model.onnx", "model.onnx.json"]
    report = json.loads(Path("out/model.onnx.json").read_text())
    assert report["images"] == len(ready.record.examples) + 12
    assert (report["verdicts"], report["products"]) == (0, 0)
    assert max(report["score"], report["map"], report["map_value"] / LOCAL) < 1e-3


def test_a_graph_with_a_broken_constant_is_refused_and_nothing_is_left(
    ready: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "onnx_bytes", lambda *_: broken(ready.onnx.read_bytes()))
    Path("out").mkdir()
    said = complaint(run("export", ready.path, "-o", "out/model.onnx"))
    assert "out/model.onnx is not written: on" in said
    assert "the tolerance is 0.001" in said
    assert list(Path("out").iterdir()) == []


def test_a_file_that_is_not_compared_says_so_loudly(ready: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "onnx_bytes", lambda *_: broken(ready.onnx.read_bytes()))
    Path("model.onnx.json").write_text("the numbers of an earlier file")
    done = run("export", ready.path, "--no-check")
    assert done.exit_code == 0
    assert "WAS NOT COMPARED" in done.stderr
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]


def test_without_anything_to_compare_nothing_is_written(ready: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(replace(ready.record, examples=()), Path("bare.safetensors"))
    assert "give a folder of photos with --check, or --no-check" in complaint(run("export", "bare.safetensors"))
    assert not Path("model.onnx").exists()


@pytest.fixture
def prediction(whole: Saved) -> Prediction:
    """A prediction of a good image: the score 2, the threshold 3."""
    first = next(mambaad_cli.load(whole.path).predict_many([whole.photos]))
    return first._replace(anomaly_map=np.zeros((2, 2)), score=2.0, threshold=3.0, verdict="good", p_value=0.25)


def test_a_verdict_that_differs_is_refused_except_on_the_threshold_itself(prediction: Prediction) -> None:
    agreement = Agreement()
    agreement.add(prediction, prediction._replace(verdict="anomalous"))
    assert not agreement.within(1.0)
    on_it = prediction._replace(score=3.0)
    agreement = Agreement()
    agreement.add(on_it, on_it._replace(score=3.0000001, verdict="anomalous"))
    assert agreement.within(1e-3)
    assert "but for 1 where the score equals the threshold" in agreement.line


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"threshold": 3.00001}, "1 threshold differs"),
        ({"threshold": None}, "1 threshold differs"),
        ({"p_value": 0.2501}, "1 p-value differs"),
        ({"p_value": None}, "1 p-value differs"),
        ({"certainty": 0.4}, "certainties differ by up to 1.0e-01"),
        ({"certainty": None}, "certainties differ by up to inf"),
    ],
)
def test_a_threshold_a_p_value_or_a_certainty_that_differs_is_refused(
    prediction: Prediction, changed: dict[str, Any], line: str
) -> None:
    expected = prediction._replace(certainty=0.5)
    same = expected._replace(threshold=3.0000001, p_value=0.25000001, certainty=0.5001)  # as float32 may have them
    agreement = Agreement()
    agreement.add(expected, same)
    assert agreement.within(1e-3)
    agreement.add(expected, same._replace(**changed))
    assert not agreement.within(1e-3)
    assert line in agreement.line


def test_the_p_value_is_compared_at_the_score_of_the_file(prediction: Prediction) -> None:
    """Of the model's own score another good image may score as high: the last digit decides."""
    nut = calibrated(Product("nut", (64, 64)), [1.0, 2.0, 3.0])
    ours = prediction._replace(class_name="nut", score=2.0, p_value=0.75)
    assert with_p_value({"nut": nut}, ours, 2.0).p_value == 0.75
    assert with_p_value({"nut": nut}, ours, 2.0001).p_value == 0.5
    assert with_p_value({"nut": nut}, ours._replace(p_value=None), 2.0).p_value is None


def test_where_only_maps_differ_the_refusal_says_which_tolerance_accepts_them() -> None:
    said = write.refusal(Path("m.onnx"), Agreement(9, 1e-6, 1e-5, 6e-2), 1e-3)
    assert said.endswith("only maps differ, which --tolerance 0.004 accepts")
    assert "only maps" not in write.refusal(Path("m.onnx"), Agreement(9, 1e-2, 2.2e-3, 6e-2), 1e-3)
    assert "only maps" not in write.refusal(Path("m.onnx"), Agreement(9, 1e-6, 2.2e-3, 6e-2, verdicts=1), 1e-3)


# ---- an exported model at work ----


@pytest.mark.parametrize("class_name", [(), ("--class", "bolt")])
def test_score_prints_the_same_rows(whole: Saved, tmp_path: Path, class_name: tuple[str, ...]) -> None:
    shutil.copytree(whole.photos / "nut", tmp_path / "mixed")  # no folder tells the product
    images.write(tmp_path / "mixed" / "noise.png", np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    (tmp_path / "mixed" / "broken.png").write_bytes(b"no image")
    ours, theirs = (
        rows(run("score", tmp_path / "mixed", "--csv", "-m", path, *class_name).stdout)
        for path in (whole.path, whole.onnx)
    )
    assert len(ours) == 8
    for of_model, of_file in zip(ours, theirs, strict=True):
        numbers = {name for name in ("score", "threshold", "p_value", "certainty") if of_model[name]}
        assert {name: text for name, text in of_model.items() if name not in numbers} == {
            name: text for name, text in of_file.items() if name not in numbers
        }
        assert [float(of_file[name]) for name in numbers] == pytest.approx(
            [float(of_model[name]) for name in numbers], rel=1e-3, abs=1e-4
        )


def test_map_and_the_python_api_take_an_exported_model(whole: Saved, tmp_path: Path) -> None:
    done = run("map", whole.photos, "-o", tmp_path / "maps", "-m", whole.onnx)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 13
    model = mambaad_cli.load(whole.onnx)
    assert model.sha256 == mambaad_cli.load(whole.path).sha256  # rows name the model that it was made from
    photo = images.read(whole.photos / "nut" / "0.png")
    exported, expected = model.predict(photo), whole.model.predict(photo)
    assert exported.anomaly_map is not None
    assert expected.anomaly_map is not None
    assert exported.anomaly_map.shape == expected.anomaly_map.shape
    assert np.allclose(exported.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)
    for wrong in (
        lambda: model.calibrate("good"),
        lambda: model.save("x"),
        lambda: mambaad_cli.load(whole.onnx, "cuda"),
    ):
        with pytest.raises(MambaADError):
            wrong()


def test_an_image_scores_the_same_in_any_batch(whole: Saved) -> None:
    model = exported_scorer.load(whole.onnx)
    pixels = torch.rand(3, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    together = model.anomaly_maps(pixels)
    for i in range(3):
        assert torch.allclose(model.anomaly_maps(pixels[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_bench_times_an_exported_model_at_its_own_size(whole: Saved) -> None:
    spec = detectors.fitted(whole.onnx)
    built = detectors.build(spec)
    assert (spec.detector, built.parameters) == (
        "mambaad",
        detectors.build(detectors.fitted(whole.path)).parameters,
    )
    assert scoring_pass(built.maps, WHOLE_INPUT)().shape == (1, 64, 48)
    with pytest.raises(MambaADError, match="takes images of 64x96 pixels only"):
        scoring_pass(built.maps, (64, 64))()


def example(language: str) -> str:
    """The documentation's example that uses ONNX Runtime in this language."""
    (code,) = (block.code for block in blocks(language) if "onnxruntime" in block.code)
    return code


def test_the_python_example_gives_our_verdict_without_mambaad(whole: Saved, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example("python"))
    photo = whole.photos / "nut" / "0.png"
    command = [sys.executable, "example.py", str(whole.onnx), str(photo)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    verdict, score = done.stdout.split()[:2]
    expected = whole.model.predict(photo)
    assert verdict == expected.verdict
    assert float(score) == pytest.approx(expected.score, rel=2e-2)


def test_the_cpp_example_gives_our_score(whole: Saved, tmp_path: Path) -> None:
    roots = [os.environ.get("ORT", ""), "/usr", "/usr/local"]
    headers = [path.parent for root in roots if root for path in Path(root, "include").rglob("onnxruntime_cxx_api.h")]
    libraries = list(Path(onnxruntime_folder(), "capi").glob("libonnxruntime.so.*"))
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not (headers and libraries and compiler):
        pytest.skip("no C++ compiler, or no headers of ONNX Runtime in $ORT/include or /usr/include")
    (tmp_path / "score.cpp").write_text(example("cpp"))
    (tmp_path / "libonnxruntime.so.1").symlink_to(libraries[0])  # its soname, which the wheel has no file of
    build = [compiler, "-std=c++17", "score.cpp", f"-I{headers[0]}", "libonnxruntime.so.1", "-o", "score"]
    subprocess.run([*build, f"-Wl,-rpath,{tmp_path}"], cwd=tmp_path, check=True)
    height, width = WHOLE_INPUT
    picture = images.resize(images.read(whole.photos / "nut" / "0.png"), (height, width))
    (tmp_path / "pixels.rgb").write_bytes(
        (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes()
    )
    command = ["./score", str(whole.onnx), "pixels.rgb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    score = float(done.stdout.split()[1])
    assert score == pytest.approx(whole.model.predict(whole.photos / "nut" / "0.png").score, rel=1e-3)


def onnxruntime_folder() -> str:
    import onnxruntime

    return str(Path(onnxruntime.__file__).parent)


# ---- bad input ----


def test_a_file_that_was_edited_truncated_or_is_foreign_is_one_line(whole: Saved, tmp_path: Path) -> None:
    content = whole.onnx.read_bytes()
    edited = bytearray(content)
    edited[len(content) // 2] ^= 1
    for name, there, said in (
        ("edited", bytes(edited), "was changed after mambaad export wrote it"),
        ("cut", content[:-100], "was not made by mambaad export, or is truncated"),
        ("foreign", b"PK", "was not made by mambaad export"),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(there)
        assert said in complaint(run("score", whole.photos, "--csv", "-m", tmp_path / f"{name}.onnx"))
    assert "make one with mambaad export" in complaint(
        run("score", whole.photos, "--csv", "-m", tmp_path / "gone.onnx")
    )


def test_a_runtime_that_is_too_old_or_missing_is_one_line(whole: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.9.0")
    assert "ONNX Runtime 1.9.0 is too old" in complaint(run("score", whole.photos, "--csv", "-m", whole.onnx))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'mambaad[export]'" in complaint(run("score", whole.photos, "--csv", "-m", whole.onnx))


def test_without_the_extra_one_line_says_what_to_install(whole: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'mambaad[export]'" in complaint(run("export", whole.path))


def test_size_and_precision_of_an_exported_model_cannot_be_chosen(whole: Saved) -> None:
    for option in (("--res", "64"), ("--precision", "bf16")):
        assert "has its size and precision inside" in complaint(run("score", whole.photos, "-m", whole.onnx, *option))


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    whole: Saved, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(write, "onnx_bytes")
    (shared / "closed").mkdir(mode=0o555)
    assert "Permission denied" in complaint(run("export", whole.path, "-o", shared / "closed" / "model.onnx"))


def test_an_exported_model_is_neither_calibrated_nor_exported_again(whole: Saved, tmp_path: Path) -> None:
    before = whole.onnx.read_bytes()
    for command in (("calibrate", whole.onnx, whole.photos), ("export", whole.onnx, "-o", tmp_path / "again.onnx")):
        assert "take the model file that it was made from" in complaint(run(*command))
    assert whole.onnx.read_bytes() == before


@pytest.mark.parametrize(
    "options", [("-o", "model.pt"), ("--format", "openvino", "-o", "m.onnx"), ("--no-check", "--check", "x")]
)
def test_options_that_make_no_sense_are_wrong_usage(options: tuple[str, ...]) -> None:
    assert run("export", "m.safetensors", *options).exit_code == 2


def test_a_model_without_threshold_is_exported_and_told(ready: Saved) -> None:
    uncalibrated = [replace(product, calibration=None) for product in ready.record.products.values()]
    store.save(ready.record.with_products(*uncalibrated), Path("bare.safetensors"))
    done = run("export", "bare.safetensors", "--no-check")
    assert done.exit_code == 0
    assert "every verdict is uncalibrated" in done.stderr


# ---- several sizes ----


def target_paths(record: ModelRecord) -> dict[str | None, str]:
    return {target.class_name: str(target.path) for target in targets(record, Path("out/m.onnx"), None)}


def test_products_of_several_sizes_have_a_file_each(tiny_model: FittedModel) -> None:
    record = record_of(tiny_model)
    wide = record.with_products(record.products["bolt"].under(size=(64, 96)))
    assert target_paths(wide) == {"nut": "out/m.nut.onnx", "bolt": "out/m.bolt.onnx"}
    assert list(targets(wide, Path("m.onnx"), "nut")) == [Target("nut", Path("m.onnx"))]
    assert list(targets(record, Path("m.onnx"), None)) == [Target(None, Path("m.onnx"))]


def test_a_product_whose_name_is_no_file_name_gets_one_that_is(tiny_model: FittedModel) -> None:
    wide = Product("bolt", (64, 96))
    products = [replace(wide, name=name) for name in ("a/b", "a%2Fb", "a\\b", "ä b")]
    record = record_of(with_products(tiny_model, *products, Product("nut", (64, 64))))
    paths = target_paths(record)
    assert len(set(paths.values())) == 5
    assert {Path(path).parent for path in paths.values()} == {Path("out")}
    assert paths["a/b"] == "out/m.a%2Fb.onnx"
    assert paths["ä b"] == "out/m.ä b.onnx"


def test_products_whose_names_are_no_file_names_are_exported(tiny_model: FittedModel, ready: Saved) -> None:
    scorer = TorchScorer(record_of(with_products(tiny_model, Product("a/b", (64, 64)), Product("c", (64, 96)))))
    files = write.export(scorer, ready.path, Path("out/m.onnx"), ExportOptions(compare=False))
    assert [file.path for file in files] == [Path("out/m.a%2Fb.onnx"), Path("out/m.c.onnx")]
    assert all(file.path.exists() for file in files)


# ---- what a file says of itself ----


def test_a_file_describes_its_products_as_a_model_file_does(whole: Saved) -> None:
    exported = exported_scorer.load(whole.onnx)
    assert exported.facts["format"] == 2
    assert exported.settings.size == (64, 48)
    assert exported.input_size == WHOLE_INPUT
    assert list(exported.products) == exported.names == ["bolt", "nut"]
    for name, product in whole.record.products.items():
        assert exported_scorer.described_products(exported.facts)[exported.names.index(name)] == described(product)
        assert exported.products[name].calibration == product.calibration
        assert exported.products[name].conditions() == product.conditions()


def as_format_1(content: bytes, record: ModelRecord) -> bytes:
    """An exported file with the description that version 0.2 gave it."""
    import onnx

    graph = onnx.load_from_string(content)
    del graph.metadata_props[-1]  # the seal
    (entry,) = (entry for entry in graph.metadata_props if entry.key == FACTS)
    facts = json.loads(entry.value)
    del facts["described"]
    facts["format"] = 1
    facts["settings"]["size"] = WHOLE_INPUT  # which was that of the image then
    facts["scores"] = {name: list(product.scores) for name, product in record.products.items()}
    facts["held_out"] = sorted(record.products)
    facts["trained_on"] = {name: product.images for name, product in record.products.items()}
    facts |= {"max_false_reject": None, "own_masks": False}
    entry.value = json.dumps(facts)
    return sealed_onnx(graph.SerializeToString())


def test_a_file_of_version_0_2_gives_the_same_rows(whole: Saved, tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(as_format_1(whole.onnx.read_bytes(), whole.record))
    old, new = (run("score", whole.photos, "--csv", "-m", path).stdout for path in (tmp_path / "old.onnx", whole.onnx))
    assert old == new
    assert old.count("\n") == 13
    loaded = exported_scorer.load(tmp_path / "old.onnx")
    assert loaded.settings.size == (64, 48)
    assert {name: product.scores for name, product in loaded.products.items()} == {
        name: product.scores for name, product in whole.record.products.items()
    }


# ---- minutes ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "openvino"])
def test_every_detector_passes_the_gate(kind: str, tiny_fit: Fit, photos: Path, tmp_path: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime", *(["openvino"] if kind == "openvino" else []))
    settings, choices = KINDS.get(kind, KINDS["whole"])
    store.save(tiny_fit(settings, **choices), tmp_path / "m.safetensors")
    form, suffix = ("openvino", "xml") if kind == "openvino" else ("onnx", "onnx")
    done = run(
        "export", tmp_path / "m.safetensors", "-o", tmp_path / f"m.{suffix}", "--check", photos, "--format", form
    )
    assert done.exit_code == 0, done.output
    assert run("score", photos, "--csv", "-m", tmp_path / f"m.{suffix}").exit_code == 0


@pytest.fixture
def nuts(tiny_fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nuts:
    """Fits a tiny model of nuts alone, in ./model.safetensors: `nuts(settings, inside=…)`."""
    needs("onnx", "onnxscript", "onnxruntime")
    monkeypatch.chdir(tmp_path)

    def fitted(settings: Settings, **choices: Any) -> ModelRecord:
        record = tiny_fit(settings, only="nut", views=12, memory_size=300, cut_paste=True, **choices)
        store.save(record, Path("model.safetensors"))
        return record

    return fitted


@pytest.mark.slow
def test_a_region_of_interest_is_inside_the_graph(nuts: Nuts, photos: Path, tmp_path: Path) -> None:
    files = images.find([photos / "nut"])
    record = nuts(WHOLE, inside=(parse("20%,20%,60%,60%"),))
    result = run("export", "model.safetensors", "-o", "model.onnx", "--check", photos / "nut")
    assert result.exit_code == 0, result.output
    disturbed = images.read(files[0].path).copy()
    disturbed[:15] = 255
    images.write(tmp_path / "in" / "1.png", disturbed)
    scores = [
        rows(run("score", *paths, "--csv").stdout)[0]["score"]
        for paths in (
            (files[0].path, "-m", "model.onnx"),
            ("in", "-m", "model.onnx"),
            ("in", "-m", "model.safetensors"),
        )
    ]
    assert scores[0] == scores[1]
    # patches of a good image lie in the memory themselves: distances near zero, which rounding moves most
    assert float(scores[2]) == pytest.approx(float(scores[0]), rel=1e-3)

    region = record.products["nut"].region
    assert region is not None
    moved = record.products["nut"].under(region=np.roll(region, 12, axis=0))  # as `calibrate --roi` sets another one
    store.save(record.with_products(moved), tmp_path / "model.safetensors")
    result = run("export", "model.safetensors", "-o", "model.onnx")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_tiles_are_looked_at_by_a_network_of_their_own(nuts: Nuts, photos: Path, tmp_path: Path) -> None:
    files = images.find([photos / "nut"])
    nuts(replace(WHOLE, tiles=(128, 128), size=(48, 64)))
    large = np.tile(images.read(files[0].path), (2, 3, 1))
    large[100:110, 150:160] = 0
    images.write(tmp_path / "large" / "1.png", large)
    result = run("export", "model.safetensors", "-o", "out/model.onnx", "--check", "large")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "model.onnx",
        "model.onnx.json",
        "model.tile.onnx",
    ]
    ours, theirs = (mambaad_cli.load(path) for path in ("model.safetensors", "out/model.onnx"))
    for path in (files[0].path, tmp_path / "large" / "1.png"):
        expected, exported = ours.predict(path), theirs.predict(path)
        assert expected.anomaly_map is not None
        assert exported.anomaly_map is not None
        assert expected.anomaly_map.shape == exported.anomaly_map.shape
        assert (exported.verdict, exported.threshold) == (expected.verdict, expected.threshold)
        assert exported.score == pytest.approx(expected.score, rel=1e-3)
        assert np.allclose(expected.anomaly_map, exported.anomaly_map, rtol=1e-2, atol=1e-2)

    Path("out/model.tile.onnx").write_bytes(broken(Path("out/model.tile.onnx").read_bytes()))
    wrong = mambaad_cli.load("out/model.onnx").predict(tmp_path / "large" / "1.png")
    assert wrong.score != pytest.approx(ours.predict(tmp_path / "large" / "1.png").score, rel=1e-3)
    Path("out/model.tile.onnx").unlink()
    assert "no model out/model.tile.onnx" in complaint(run("score", "large", "-m", "out/model.onnx"))


@pytest.mark.slow
def test_a_mask_for_each_photo_is_an_input_of_the_graph(
    nuts: Nuts, photos: Path, masks: MaskFolder, tmp_path: Path
) -> None:
    files = images.find([photos / "nut"])
    nuts(WHOLE, masks=masks)
    of_masks = ("--roi-dir", masks.folder)
    result = run("export", "model.safetensors", "-o", "model.onnx", "--check", photos / "nut", *of_masks)
    assert result.exit_code == 0, result.output
    disturbed = images.read(files[0].path).copy()
    disturbed[:8] = 255
    images.write(tmp_path / "in" / files[0].path.name, disturbed)
    score = ("score", "--csv", "-m", "model.onnx")
    scores = [rows(run(*score, path, *of_masks).stdout)[0]["score"] for path in (files[0].path, "in")]
    assert scores[0] == scores[1]
    assert "give their folder with --roi-dir" in complaint(run(*score, "in"))
