"""The package as a program uses it."""

import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mambaad_cli as mambaad
from mambaad_cli.data import images
from mambaad_cli.inspection import store, torch_scorer
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.model import compiled_encoder, onnx_encoder
from mambaad_cli.model.encoder import DEFAULT
from tests.conftest import around, picture, record_of, tiny_network, with_scores

SIGNATURES = {
    "load": "(path: str | pathlib.Path = 'mambaad.safetensors', device: str = 'auto', runtime: str = 'auto')",
    "fit": "(folder: str | pathlib.Path, "
    "preset: Literal['small', 'fast', 'paper', 'memory', 'rd4ad', 'uniad'] = 'small', "
    "size: tuple[int, int] | None = None, letterbox: bool = False, device: str = 'auto', "
    "progress: mambaad_cli.training.progress.Progress | None = None, **choices: Any)",
    "FittedModel.predict": "(self, image: 'Image | list[Image]', class_name: str | None = None)",
    "FittedModel.predict_many": "(self, paths: collections.abc.Iterable[str | pathlib.Path], "
    "class_name: str | None = None, batch: int = 8)",
    "FittedModel.calibrate": "(self, folder: str | pathlib.Path, class_name: str | None = None, "
    "max_false_reject: float | None = None)",
    "FittedModel.save": "(self, path: str | pathlib.Path)",
}


@pytest.fixture
def saved(tiny_model: mambaad.FittedModel, tmp_path: Path) -> Path:
    tiny_model.save(tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay_as_they_are(name: str) -> None:
    found: object = mambaad
    for part in name.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)  # type: ignore[arg-type]
    assert str(signature.replace(return_annotation=inspect.Signature.empty)) == SIGNATURES[name]


def test_the_package_itself_loads_nothing_heavy_and_says_what_it_has_not() -> None:
    program = "import sys, mambaad_cli; print(sorted({'torch', 'timm', 'cv2', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        mambaad.predict_all  # noqa: B018


def test_a_picture_scores_the_same_whatever_it_comes_in(saved: Path, tmp_path: Path) -> None:
    model = mambaad.load(saved)
    pixels = picture()
    images.write(tmp_path / "a.png", pixels)
    kinds = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        pixels,
        pixels.astype(np.uint16) * 257,
        pixels / 255,
        Image.fromarray(pixels),
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    ]
    found = model.predict(kinds, class_name="nut")
    assert [one.score for one in found] == pytest.approx([found[0].score] * len(kinds), rel=1e-3)
    alone = model.predict(pixels, class_name="nut")
    assert alone.score == pytest.approx(found[0].score, rel=1e-5)
    grey = model.predict([pixels[..., 0], np.repeat(pixels[..., :1], 3, 2)], class_name="nut")
    assert grey[0].score == pytest.approx(grey[1].score, rel=1e-5)


def test_a_prediction_tells_all_that_the_command_tells(saved: Path) -> None:
    model = mambaad.load(saved)
    one = model.predict(picture(), class_name="nut")
    assert one.class_name == "nut"
    assert one.verdict in ("good", "anomalous")
    assert one.threshold == 3.0
    assert one.p_value is not None
    assert one.anomaly_map is not None
    assert one.anomaly_map.max() == one.score
    assert one.regions is not None
    assert bool(one.regions) == (one.verdict == "anomalous")
    drawn = one.overlay()
    assert (drawn.shape, drawn.dtype) == ((80, 96, 3), np.uint8)


@pytest.mark.parametrize(
    "wrong", [None, 3.5, np.zeros((4, 4, 2)), np.zeros(7), np.zeros((0, 4, 3)), np.full((4, 4), 9.0)]
)
def test_what_is_no_picture_is_an_error_of_one_line(saved: Path, wrong: object) -> None:
    with pytest.raises(mambaad.MambaADError, match="is no picture") as caught:
        mambaad.load(saved).predict(wrong, class_name="nut")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_prediction_with_its_reason(saved: Path, tmp_path: Path) -> None:
    one = mambaad.load(saved).predict(tmp_path / "gone.png", class_name="nut")
    assert (one.verdict, one.error, one.score) == ("error", "no such file", None)
    with pytest.raises(mambaad.MambaADError, match="no such file"):
        one.overlay()


def test_many_files_come_one_by_one_in_order(saved: Path, goods: Path) -> None:
    found = list(mambaad.load(saved).predict_many([goods / "nut"], batch=4))
    assert [one.file.path.name for one in found] == [f"{i}.png" for i in range(6)]
    assert {one.class_name for one in found} == {"nut"}


def test_a_program_fits_calibrates_and_saves(goods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}
    record = ModelRecord(tiny_network())

    def fitted(good_files: Any, settings: Any, recipe: mambaad.Recipe, *_: Any) -> ModelRecord:
        calls.update(goods=good_files, settings=settings, recipe=recipe)
        return record

    monkeypatch.setattr("mambaad_cli.training.fit.fit", fitted)
    assert record_of(mambaad.fit(goods, size=(64, 96), letterbox=True, max_minutes=2, seed=7)) is record
    assert list(calls["goods"].classes) == ["bolt"] * 6 + ["nut"] * 6
    assert (calls["settings"].size, calls["settings"].letterbox) == ((64, 96), True)
    assert (calls["recipe"].max_minutes, calls["recipe"].seed) == (2, 7)
    with pytest.raises(mambaad.MambaADError, match="no choice colour: choose from batch"):
        mambaad.fit(goods, colour=True)


def test_calibrate_and_save_as_the_command_does(saved: Path, goods: Path, tmp_path: Path) -> None:
    model = mambaad.load(saved)
    model.calibrate(goods, max_false_reject=0.2)
    model.save(tmp_path / "again.safetensors")
    again = mambaad.load(tmp_path / "again.safetensors")
    measured = {name: product.calibration for name, product in again.products.items()}
    assert list(measured) == ["nut", "bolt"]
    for calibration in measured.values():
        assert calibration is not None
        assert (len(calibration.scores), calibration.max_false_reject, calibration.promising) == (6, 0.2, True)
    described = store.read_facts(tmp_path / "again.safetensors").products
    assert [product.calibration for product in described] == list(measured.values())


@pytest.mark.parametrize("share", [0, 1, 3, 5, -0.1])
def test_a_share_that_is_none_is_refused_and_the_model_stays_as_it_was(saved: Path, goods: Path, share: float) -> None:
    """A percentage by mistake: it must not take effect with the next calibration either."""
    model = mambaad.load(saved)
    before = record_of(model)
    with pytest.raises(mambaad.MambaADError, match="expected a share between 0 and 1"):
        model.calibrate(goods, max_false_reject=share)
    assert record_of(model) is before
    model.calibrate(goods)
    assert {product.calibration.max_false_reject for product in model.products.values()} == {None}


def test_a_calibration_that_fails_leaves_the_model_as_it_was(saved: Path, goods: Path, tmp_path: Path) -> None:
    model = mambaad.load(saved)
    before = record_of(model)
    (tmp_path / "broken" / "nut").mkdir(parents=True)
    (tmp_path / "broken" / "nut" / "a.png").write_text("text")
    images.write(tmp_path / "mixed" / "nut" / "a.png", picture())
    images.write(tmp_path / "mixed" / "z.png", picture())  # of which product cannot be told
    for folder, why in (("broken", "no readable image"), ("mixed", "cannot tell which product"), ("gone", "gone")):
        with pytest.raises(mambaad.MambaADError, match=why):
            model.calibrate(tmp_path / folder, max_false_reject=0.2)
        assert record_of(model) is before
    with pytest.raises(mambaad.MambaADError, match="no class 'screw'"):
        model.calibrate(goods, class_name="screw", max_false_reject=0.2)
    assert record_of(model) is before


# ---- the encoder that scores ----


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """What is added to whenever a function of a module is called."""
    calls: list[Any] = []
    function = getattr(module, name)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)
    return calls


def alternate(model: mambaad.FittedModel, goods: Path) -> list[float | None]:
    """Scores by `predict` and by `predict_many` in turn, by more than two calls each."""
    scores = []
    for _ in range(2):
        scores.append(model.predict(goods / "nut" / "0.png").score)
        scores += [prediction.score for prediction in model.predict_many([goods / "nut" / "0.png"])]
        model.calibrate(goods / "nut")
    return scores


def test_the_encoder_for_inference_is_made_once(saved: Path, goods: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = count_calls(monkeypatch, torch_scorer, "for_inference")
    scores = alternate(mambaad.load(saved), goods)
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-5)
    assert len(folded) == 1


@pytest.mark.skipif(not onnx_encoder.installed(), reason="onnx and onnxruntime are not installed")
def test_each_runtime_starts_once_however_one_image_and_many_alternate(
    goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image at a time may go on for ever, so ONNX Runtime starts; a list of a few files does without."""
    monkeypatch.setattr(compiled_encoder, "suits", lambda encoder: False)
    network = tiny_network(encoder=DEFAULT)
    folded = count_calls(monkeypatch, torch_scorer, "for_inference")
    started = count_calls(monkeypatch, onnx_encoder, "with_onnx_runtime")
    model = with_scores(around(ModelRecord(network)), {"nut": [1.0, 2.0]})
    model = around(record_of(model), runtime="auto")
    scores = alternate(model, goods)
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-3)
    assert (len(folded), len(started)) == (1, 1)


def test_several_threads_share_a_model(saved: Path) -> None:
    model = mambaad.load(saved)
    pictures = [picture(seed) for seed in range(8)]
    expected = [model.predict(each, class_name="nut").score for each in pictures]
    found: list[float | None] = [None] * 8

    def work(start: int) -> None:
        for i in range(start, 8, 2):
            found[i] = model.predict(pictures[i], class_name="nut").score

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx(expected, rel=1e-5)
