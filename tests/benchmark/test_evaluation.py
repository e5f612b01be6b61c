"""Evaluation against scikit-learn on a tiny real model, and cases worked by hand on one whose map is the brightness."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import evaluation as evaluate
from mambaad_cli.benchmark.evaluation import EvaluationOptions, Proportion
from mambaad_cli.benchmark.evaluation_sheets import worst
from mambaad_cli.benchmark.evaluation_tables import notes, to_csv, to_json, to_markdown, to_table
from mambaad_cli.benchmark.metrics import PixelMetrics
from mambaad_cli.data import datasets, images
from mambaad_cli.data.datasets import Sample
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.encoder import build_encoder
from mambaad_cli.model.settings import Settings
from tests.benchmark.brightness import SIZE, brightness_model, grey, write
from tests.benchmark.test_evaluation_tables import printed, rows_of


def tiny_model(size: tuple[int, int] = SIZE) -> TorchScorer:
    torch.manual_seed(0)
    settings = Settings(encoder="test_resnet", size=size, options={"depths": (1, 1, 1, 1), "directions": 2})
    network = new_network(settings, encoder=build_encoder("test_resnet", (4, 8, 16)))
    network.detector.eval()
    return TorchScorer(ModelRecord(network))


def published_maps(model: TorchScorer, pictures: torch.Tensor) -> torch.Tensor:
    network = model.record.network
    return network.published_maps(network.features(pictures), (pictures.shape[2], pictures.shape[3]))


def textured_tree(root: Path) -> dict[Path, np.ndarray]:
    """An MVTec tree of two classes, 128 × 96 pixels; returns each test image's mask (128, 96)."""
    rng = np.random.default_rng(0)
    masks = {}
    for name in ("gear", "nut"):
        for kind, count in (("train/good", 1), ("test/good", 3), ("test/dent", 2), ("test/scratch", 2)):
            for i in range(count):
                picture = rng.normal(120, 20, (128, 96, 3))
                mask = np.zeros((128, 96), bool)
                if not kind.endswith("good"):
                    y, x = rng.integers(0, 60, 2)
                    mask[y : y + 40, x : x + 30] = mask[:9, :9] = True
                    picture[mask] += 60
                    write(root / name / "ground_truth" / Path(kind).name / f"{i}_mask.png", mask * np.uint8(255))
                path = write(root / name / kind / f"{i}.png", picture.clip(0, 255).astype(np.uint8))
                masks[path] = mask
    return masks


def expected_metrics(samples: list[Sample], masks: dict[Path, np.ndarray], model: TorchScorer) -> list[float]:
    """The seven of one class by scikit-learn, image by image, masks scaled by Pillow."""
    maps, truths, weights = [], [], []
    for sample in samples:
        with torch.inference_mode():
            maps.append(published_maps(model, images.resize(images.read(sample.path), SIZE)[None])[0].numpy())
        mask = np.array(Image.fromarray(masks[sample.path]).resize(SIZE[::-1], Image.Resampling.NEAREST))
        regions = cv2.connectedComponents(mask.astype(np.uint8))[1]
        truths.append(mask)
        weights.append(np.where(mask, 1 / np.bincount(regions.ravel())[regions], 1.0))
    labels, scores = [sample.defect != "good" for sample in samples], [m.max() for m in maps]
    pixels, values = np.ravel(truths), np.ravel(maps)
    partial = sk.roc_auc_score(pixels, values, sample_weight=np.ravel(weights), max_fpr=0.3)
    aupro = ((2 * partial - 1) * (0.3 - 0.045) + 0.045) / 0.3  # scikit-learn rescales it (McClish); undone
    return [*three(labels, scores), *three(pixels, values), aupro]


def three(labels: Any, scores: Any) -> list[float]:
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return [sk.roc_auc_score(labels, scores), sk.average_precision_score(labels, scores), f1.max()]


# Metrics


@pytest.mark.parametrize("exact_pixels", [evaluate.MAX_EXACT_PIXELS, 0])
def test_metrics_of_each_class_are_those_of_scikit_learn(tmp_path, monkeypatch, exact_pixels):
    monkeypatch.setattr(evaluate, "MAX_EXACT_PIXELS", exact_pixels)
    masks, model = textured_tree(tmp_path), tiny_model()
    samples = datasets.load(tmp_path)
    evaluation = evaluate.evaluate(model, samples, EvaluationOptions(batch=3))
    assert [one.name for one in evaluation.classes] == ["gear", "nut"]
    for one in evaluation.classes:
        own = [sample for sample in samples if sample.class_name == one.name and sample.split == "test"]
        seven = expected_metrics(own, masks, model)
        assert (one.pixel_error is None) == (exact_pixels > 0)
        tolerance = 1e-5 + max(one.pixel_error or [0.0])
        assert tolerance < 1e-2
        assert list(one.metrics.values()) == pytest.approx([*seven, np.mean(seven)], abs=tolerance)
        assert len(set(np.round(seven, 3))) > 3  # not a case where everything is 1


def test_classes_do_not_depend_on_how_samples_are_mixed_nor_on_the_batch(tmp_path):
    textured_tree(tmp_path)
    samples, model = datasets.load(tmp_path), tiny_model()
    mixed = samples[::2] + samples[1::2]
    found = (
        evaluate.evaluate(model, samples, EvaluationOptions(batch=1)),
        evaluate.evaluate(model, mixed, EvaluationOptions(batch=8, workers=1)),
    )
    means = [list(one.mean.values()) for one in found]
    assert means[0] == pytest.approx(means[1], abs=1e-4)


def test_training_images_are_not_looked_at(tmp_path):
    test = [grey(tmp_path, "good", 10), grey(tmp_path, "bent", 20)]
    gone = Sample(tmp_path / "gone.png", "nut", "train", "good", None)
    (one,) = evaluate.evaluate(brightness_model(15), [gone, *test]).classes
    assert (one.good, one.anomalous, one.unreadable) == (1, 1, [])
    with pytest.raises(MambaADError, match="no test images"):
        evaluate.evaluate(brightness_model(15), [gone])


def test_mean_is_over_the_classes_that_have_the_metric(tmp_path):
    samples = [
        *(grey(tmp_path, "good", value, "nut", slice(0, 8)) for value in (10, 30)),
        grey(tmp_path, "bent", 20, "nut", slice(32, 64)),  # AU-ROC 1/2
        grey(tmp_path, "good", 10, "gear"),
        grey(tmp_path, "bent", 20, "gear"),  # AU-ROC 1, no mask
        grey(tmp_path, "good", 10, "bolt"),  # no AU-ROC
    ]
    evaluation = evaluate.evaluate(brightness_model(15), samples)
    nut, gear, bolt = evaluation.classes
    assert (nut.metrics["image_auroc"], gear.metrics["image_auroc"], bolt.image) == (0.5, 1.0, None)
    assert evaluation.mean["image_auroc"] == 0.75
    assert nut.metrics["mad"] == pytest.approx(np.mean([*nut.image, *nut.pixel]))
    assert (gear.metrics["mad"], gear.pixel, bolt.pixel) == (None, None, None)
    assert evaluation.mean["pixel_auroc"] == nut.pixel.auroc
    assert evaluation.mean["mad"] == nut.metrics["mad"]


def test_label_of_a_defect_too_small_for_the_resized_mask_is_still_anomalous(tmp_path):
    samples = [grey(tmp_path, "good", 10), grey(tmp_path, "speck", 200, square=slice(20, 21))]
    (one,) = evaluate.evaluate(brightness_model(5, size=(32, 32)), samples).classes
    assert (one.good, one.anomalous) == (1, 1)
    assert one.pixel is not None


def test_mask_of_a_letterboxed_image_lies_on_the_image_alone(tmp_path):
    picture, mask = np.full((32, 64), 50, np.uint8), np.zeros((32, 64), np.uint8)
    picture[:, :16] = mask[:, :16] = 255
    bad = Sample(write(tmp_path / "1.png", picture), "nut", "test", "bent", write(tmp_path / "1_mask.png", mask))
    model = brightness_model(90, letterbox=True)
    (one,) = evaluate.evaluate(model, [bad]).classes
    assert one.pixel == PixelMetrics(1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("exact_pixels", [evaluate.MAX_EXACT_PIXELS, 6000])  # both images', or those of the first
def test_pixel_metrics_at_the_size_of_the_photos(tmp_path, monkeypatch, exact_pixels):
    monkeypatch.setattr(evaluate, "MAX_EXACT_PIXELS", exact_pixels)
    samples = [grey(tmp_path, "bent", value, square=slice(9, 22)) for value in (60, 90)]
    model = tiny_model(size=(32, 32))
    shapes = {sample.path: images.read(sample.path).shape[:2] for sample in samples}
    truths = [cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE) > 0 for sample in samples]
    with torch.inference_mode():
        pictures = [images.resize(images.read(sample.path), (32, 32))[None] for sample in samples]
        maps = [published_maps(model, one)[0].numpy() for one in pictures]
    large = [cv2.resize(one, shapes[sample.path][::-1]) for sample, one in zip(samples, maps, strict=True)]
    assert large[0].shape == truths[0].shape != maps[0].shape
    (one,) = evaluate.evaluate(model, samples, EvaluationOptions(full_size=True)).classes
    assert list(one.pixel[:3]) == pytest.approx(three(np.ravel(truths), np.ravel(large)), abs=1e-4)
    assert (one.pixel_error is None) == (exact_pixels > 6000)


# What is missing or broken


@pytest.mark.parametrize(("defect", "counts"), [("good", (2, 0)), ("bent", (0, 2))])
def test_one_kind_of_image_gives_dashes_not_a_crash(tmp_path, defect, counts):
    evaluation = evaluate.evaluate(brightness_model(15), [grey(tmp_path, defect, value) for value in (10, 20)])
    (one,) = evaluation.classes
    assert (one.good, one.anomalous) == counts
    assert set(evaluation.mean.values()) == {None}
    assert to_markdown(evaluation).count("–") == 2 * 8
    assert "–" in printed(to_table(evaluation))


def test_anomalous_images_alone_still_have_pixel_metrics(tmp_path):
    (one,) = evaluate.evaluate(brightness_model(15), [grey(tmp_path, "bent", 90, square=slice(8, 24))]).classes
    assert one.pixel == PixelMetrics(1.0, 1.0, 1.0, 1.0)
    assert one.metrics["mad"] is None


def test_anomalous_image_without_mask_counts_for_image_metrics_only(tmp_path):
    masked = grey(tmp_path, "bent", 90, square=slice(8, 24))
    damaged = grey(tmp_path, "torn", 91, square=slice(8, 24))
    damaged.mask.write_bytes(b"no image")
    bare = grey(tmp_path, "bent", 5)
    evaluation = evaluate.evaluate(brightness_model(15), [masked, damaged, bare, grey(tmp_path, "good", 50)])
    (one,) = evaluation.classes
    assert one.anomalous == 3
    assert one.image.auroc == pytest.approx(2 / 3)
    assert one.pixel.auroc == 1.0  # with the bare one, whose mask would be empty or full, it would be less
    assert len(one.without_mask) == 2
    assert any("2 of 3 anomalous images left out of pixel metrics" in line for line in notes(evaluation))


def test_empty_masks_give_no_pixel_metrics(tmp_path):
    bad = grey(tmp_path, "bent", 90, square=slice(8, 24))
    cv2.imwrite(str(bad.mask), np.zeros(SIZE, np.uint8))
    (one,) = evaluate.evaluate(brightness_model(15), [bad, grey(tmp_path, "good", 5)]).classes
    assert one.pixel is None
    assert one.image is not None


def test_unreadable_image_is_left_out_listed_and_counted(tmp_path):
    samples = [grey(tmp_path, "good", 10), grey(tmp_path, "good", 11), grey(tmp_path, "bent", 20)]
    samples[0].path.write_bytes(samples[0].path.read_bytes()[:60])
    seen: list[Prediction] = []
    evaluation = evaluate.evaluate(brightness_model(15), samples, on_result=seen.append)
    (one,) = evaluation.classes
    assert (one.good, one.anomalous, one.false_rejects) == (1, 1, Proportion(0, 1))
    assert [line.split(": ")[0] for line in one.unreadable] == [str(samples[0].path)]
    assert [prediction.verdict for prediction in seen] == ["error", "good", "anomalous"]
    assert rows_of(to_csv(evaluation))[0]["unreadable"] == "1"
    assert any(str(samples[0].path) in line for line in notes(evaluation))


def test_score_that_is_not_a_number_is_an_error_never_a_good_image(tmp_path):
    model = brightness_model(15)
    model.record.network.detector.gain = float("nan")
    evaluation = evaluate.evaluate(model, [grey(tmp_path, "good", 10)])
    assert len(evaluation.classes[0].unreadable) == 1
    assert evaluation.classes[0].results == []


def test_interrupt_keeps_the_classes_that_are_done(tmp_path):
    samples = [grey(tmp_path, "good", 10, "nut"), grey(tmp_path, "good", 10, "gear"), grey(tmp_path, "good", 1, "bolt")]

    def stop_at(class_name: str) -> Any:
        def on_result(one: Prediction) -> None:
            if one.class_name == class_name:
                raise KeyboardInterrupt

        return on_result

    evaluation = evaluate.evaluate(brightness_model(15), samples, on_result=stop_at("gear"))
    assert [one.name for one in evaluation.classes] == ["nut"]
    assert evaluation.unfinished == ["gear", "bolt"]
    assert notes(evaluation)[-1] == "interrupted: nothing is known of gear, bolt"
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(brightness_model(15), samples, on_result=stop_at("nut"))


# The threshold


@pytest.mark.parametrize(
    ("threshold", "false_rejects", "recall"),
    [
        (5, Proportion(3, 3), {"bent": Proportion(2, 2), "torn": Proportion(2, 2)}),
        (45, Proportion(1, 3), {"bent": Proportion(1, 2), "torn": Proportion(2, 2)}),
        (80, Proportion(0, 3), {"bent": Proportion(0, 2), "torn": Proportion(1, 2)}),
        (
            90,
            Proportion(0, 3),
            {"bent": Proportion(0, 2), "torn": Proportion(0, 2)},
        ),  # at the threshold is not above it
    ],
)
def test_false_rejects_and_recall_are_those_of_the_models_own_threshold(tmp_path, threshold, false_rejects, recall):
    samples = [
        *(grey(tmp_path, "good", value) for value in (10, 30, 50)),
        *(grey(tmp_path, "bent", value) for value in (20, 60)),
        *(grey(tmp_path, "torn", value) for value in (70, 90)),
    ]
    (one,) = evaluate.evaluate(brightness_model(threshold), samples).classes
    assert one.false_rejects == false_rejects
    assert one.recall == recall
    assert one.misses == Proportion(4 - sum(share.count for share in recall.values()), 4)


def test_each_class_is_judged_by_its_own_threshold_whatever_its_folders_are_called(tmp_path):
    samples = [grey(tmp_path / "nut", "good", 20, "gear"), grey(tmp_path / "gear", "good", 20, "nut")]
    model = brightness_model(scores={"nut": 0.01, "gear": 0.5})
    gear, nut = evaluate.evaluate(model, samples).classes
    assert (gear.false_rejects, nut.false_rejects) == (Proportion(0, 1), Proportion(1, 1))


def test_model_without_threshold_has_metrics_but_no_counts_of_mistakes(tmp_path):
    samples = [grey(tmp_path, "good", 10), grey(tmp_path, "bent", 20)]
    evaluation = evaluate.evaluate(brightness_model(None), samples)
    (one,) = evaluation.classes
    assert one.image.auroc == 1.0
    assert (one.false_rejects, one.misses, one.recall) == (None, None, {})
    assert worst(evaluation) == ([], [])
    assert rows_of(to_csv(evaluation))[0]["misses"] == ""
    assert any("no threshold yet" in line for line in notes(evaluation))


def test_a_threshold_from_training_images_is_noted(tmp_path):
    model = brightness_model(15, promising=())
    evaluation = evaluate.evaluate(model, [grey(tmp_path, "good", 10)])
    (note,) = notes(evaluation)
    assert note.startswith("the threshold comes from training images")
    assert json.loads(to_json(evaluation))["held_out"] is False


def test_classes_whose_threshold_comes_from_training_images_are_named(tmp_path):
    model = brightness_model(scores={"nut": 0.01, "gear": 0.5}, promising=("nut",))
    samples = [grey(tmp_path, "good", 10, name) for name in ("nut", "gear", "bolt")]
    evaluation = evaluate.evaluate(model, samples)
    assert [one.held_out for one in evaluation.classes] == [True, False, False]  # a bolt has gear's
    unknown = "bolt: the model was not trained on this class"
    (note,) = (note for note in notes(evaluation) if note != unknown)
    assert note.startswith("gear, bolt: the threshold comes from training images")
    whole = json.loads(to_json(evaluation))
    assert (whole["held_out"], [one["held_out"] for one in whole["classes"]]) == (False, [True, False, False])
    model = brightness_model(scores={"nut": 0.01, "gear": 0.5})
    assert notes(evaluate.evaluate(model, samples)) == [unknown]


def test_class_that_the_model_never_saw_is_noted(tmp_path):
    model = brightness_model(15)
    samples = [grey(tmp_path, "good", 10, "nut"), grey(tmp_path, "good", 10, "gear")]
    assert notes(evaluate.evaluate(model, samples)) == ["gear: the model was not trained on this class"]


# Overlays


def test_maps_writes_an_overlay_of_each_test_image_and_the_same_metrics(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "maps"
    samples = [
        grey(data, "good", 10, "nut"),
        grey(data, "bent", 60, "nut", slice(0, 20)),
        grey(data, "good", 10, "gear"),
        grey(data, "bent", 70, "gear"),
    ]
    samples[2].path.write_bytes(b"")
    seen: list[Prediction] = []
    with_maps = evaluate.evaluate(brightness_model(40), samples, EvaluationOptions(maps=folder), on_result=seen.append)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    overlays = {"nut/test/good/10.png", "nut/test/bent/60.png", "gear/test/bent/70.png"}
    assert written == overlays | {"contact_sheet.png"}
    assert len(seen) == 4
    assert to_json(with_maps) == to_json(evaluate.evaluate(brightness_model(40), samples))


def test_maps_never_replace_images_or_masks_of_the_dataset(tmp_path):
    picture, mask = np.zeros(SIZE, np.uint8), np.full(SIZE, 255, np.uint8)
    bad = Sample(
        write(tmp_path / "test" / "ko" / "1.png", picture),
        *("nut", "test", "ko"),
        write(tmp_path / "ground_truth" / "ko" / "1.png", mask),
    )
    good = Sample(write(tmp_path / "test" / "ok" / "1.png", picture), "nut", "test", "good", None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    for folder in (tmp_path / "test", tmp_path / "ground_truth"):
        with pytest.raises(MambaADError, match="choose another"):
            evaluate.evaluate(brightness_model(40), [bad, good], EvaluationOptions(maps=folder))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_maps_of_images_anywhere_stay_inside_their_folder(tmp_path):
    write(tmp_path / "else" / "1.png", np.zeros(SIZE, np.uint8))
    write(tmp_path / "lists" / "2.png", np.zeros(SIZE, np.uint8))
    paths = [tmp_path / "lists" / ".." / "else" / "1.png", tmp_path / "lists" / "2.png"]
    evaluate.evaluate(
        brightness_model(40),
        [Sample(path, "nut", "test", "good", None) for path in paths],
        EvaluationOptions(maps=tmp_path / "a" / "b"),
    )
    assert sorted(path.name for path in (tmp_path / "a").rglob("*.png")) == ["1.png", "2.png", "contact_sheet.png"]
    assert (tmp_path / "a" / "b" / "else" / "1.png").exists()


def test_maps_need_a_threshold(tmp_path):
    with pytest.raises(MambaADError, match="no threshold yet"):
        evaluate.evaluate(
            brightness_model(None), [grey(tmp_path, "good", 10)], EvaluationOptions(maps=tmp_path / "maps")
        )
