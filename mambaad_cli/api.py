"""The Python API: load or fit a model, then let it predict."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, overload

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.files import shown
from mambaad_cli.inspection import opening, store
from mambaad_cli.inspection.calibration import check_share
from mambaad_cli.inspection.judged_photos import Judging
from mambaad_cli.inspection.opening import OpenRequest
from mambaad_cli.inspection.predict import Image, predict, predict_images
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.product import Products
from mambaad_cli.inspection.recalibrate import recalibrated_record
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.inspection.teaching import Lectured, taught_record
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.training.progress import Progress


@dataclass
class FittedModel:
    """Scores images: what `mambaad.fit` gives and `mambaad.load` reads.

    One model may be used from several threads, as long as none of them calibrates it.
    """

    scorer: Scorer
    fitted: TorchScorer | None = None  # the same scorer; None: an exported model, which cannot be changed

    @property
    def products(self) -> Products:
        """What is known of each product, by name: its threshold, its calibration and more."""
        return self.scorer.products

    @property
    def sha256(self) -> str:
        """The first 12 hex digits, of the model file that it was loaded from, or exported from."""
        return self.scorer.sha256

    @overload
    def predict(self, image: "Image", class_name: str | None = None) -> "Prediction": ...

    @overload
    def predict(self, image: "list[Image]", class_name: str | None = None) -> "list[Prediction]": ...

    def predict(self, image: "Image | list[Image]", class_name: str | None = None) -> "Prediction | list[Prediction]":
        """Score one image, or a list of them.

        - image: a path, a PIL image, or an array (h, w, 3) or (h, w) in RGB order of uint8, of uint16 with white at
          65535, or of floats in 0 … 1.
        - class_name: the product that it shows. By default it is recognised, if the model knows several.

        Raises MambaADError for an array of another kind and for a class that the model does not know. A file that
        cannot be read gives a Prediction with the verdict `error`.
        """
        listed = image if isinstance(image, list) else [image]
        predictions = predict_images(
            self.scorer, listed, PredictOptions(class_name, maps=True, min_area=0, explainable=True)
        )
        return predictions if isinstance(image, list) else predictions[0]

    def predict_many(
        self, paths: Iterable[str | Path], class_name: str | None = None, batch: int = 8
    ) -> "Iterator[Prediction]":
        """Score image files, and all images in folders, one Prediction each as they come.

        Files are read in worker threads while the model works. Predictions of files carry no maps, so that memory stays
        flat; `predict` gives them.

        Raises MambaADError for a folder without images.
        """
        files = images.find([Path(path) for path in paths])
        return predict(self.scorer, files, PredictOptions(class_name, batch))

    def calibrate(
        self, folder: str | Path, class_name: str | None = None, max_false_reject: float | None = None
    ) -> None:
        """Set new thresholds from a folder of good images that the model was not trained on.

        Raises MambaADError, and leaves the model as it was, where no image can be read, and where it cannot be told
        which product an image shows.
        """
        fitted = self._changeable()
        check_share(max_false_reject)
        files = images.find([Path(folder)])
        predictions = predict(fitted, files, PredictOptions(class_name, distances=True))
        record = recalibrated_record(fitted.record, predictions, Path(folder), max_false_reject)
        self.scorer = self.fitted = fitted.with_record(record)

    def learn(
        self,
        bad: str | Path | None = None,
        good: str | Path | None = None,
        masks: str | Path | None = None,
        class_name: str | None = None,
    ) -> "Mapping[str, Lectured]":
        """Teach known defects and good parts that were rejected by mistake, in seconds, as `mambaad learn` does.

        - bad, good: folders of photos.
        - masks: a folder with a mask of each defect.
        - class_name: the product that all of them show; by default a folder tells it, or it is recognised.

        Returns what that did, by product. Raises MambaADError, and leaves the model as it was, where a photo teaches
        nothing, and where one is both good and bad.
        """
        fitted = self._changeable()
        mask_folder = None if masks is None else MaskFolder(Path(masks))
        judging = Judging(fitted, class_name, mask_folder, on_left_out=_refuse)
        bad_files, good_files = ([] if folder is None else images.find([Path(folder)]) for folder in (bad, good))
        record, lectured = taught_record(fitted.record, judging.lessons(bad_files, good_files))
        self.scorer = self.fitted = fitted.with_record(record)
        return lectured

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. Raises MambaADError where the disk refuses."""
        store.save(self._changeable().record, Path(path))

    def _changeable(self) -> TorchScorer:
        if self.fitted is None:
            raise MambaADError(
                "an exported model cannot be changed: change the one that it was made from and export again"
            )
        return self.fitted


def _refuse(file: images.ImageFile, why: str) -> None:
    raise MambaADError(f"{shown(file.path)}: {why}")


def load(path: str | Path = "mambaad.safetensors", device: str = "auto", runtime: str = "auto") -> FittedModel:
    """Read a model file, or one that was exported, ready to predict.

    - device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
    - runtime: torch, onnxruntime or auto: what runs the default encoder on a CPU.

    Raises MambaADError for a file that is missing, damaged or made by a newer version, and for a device that does
    not exist, or a runtime.
    """
    opened = opening.open_model(OpenRequest(Path(path), device, runtime))
    return FittedModel(opened.scorer, opened.fitted)


def fit(
    folder: str | Path,
    preset: Literal["small", "fast", "paper", "memory", "rd4ad", "uniad"] = "small",
    size: tuple[int, int] | None = None,
    letterbox: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    **choices: Any,
) -> FittedModel:
    """Train one model on a folder of good images, whose sub-folders are product classes, as `mambaad fit` does.

    - size: (height, width) in pixels that the decoder sees of all images; by default each product has its own.
    - letterbox: keep each image's aspect ratio; otherwise images are stretched to that size.
    - choices: fields of FitRequest or of Recipe, such as max_minutes=2, epochs=20, folds=4, flips=True or seed=1.

    Raises MambaADError, before an image is read, for an unknown choice and for choices that do not go together, and
    for a folder without enough good images.
    """
    from mambaad_cli.training import fit as training  # late: it takes a second, which scoring does not need
    from mambaad_cli.training.request import FitRequest, recipe_fields

    known = {field.name for field in fields(FitRequest)} - {"good", "recipe_choices"}
    others = recipe_fields() - known
    if unknown := sorted(set(choices) - known - others):
        raise MambaADError(f"fit has no choice {', '.join(unknown)}: choose from {', '.join(sorted(known | others))}")
    request = FitRequest(
        Path(folder),
        preset=preset,
        size=size,
        letterbox=letterbox,
        device=device,
        recipe_choices={name: value for name, value in choices.items() if name in others},
        **{name: value for name, value in choices.items() if name in known},
    )
    record = training.fit_request(request, progress)
    scorer = TorchScorer(record, request.runtime, request.masks)
    return FittedModel(scorer, scorer)
