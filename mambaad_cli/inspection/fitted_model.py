"""A fitted model: a detector with its encoder, and what is known of their results on good images.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels of the model's input.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.loading import RegionOf, Size, SizeOf, Wanted
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.data.roi import MaskFolder, scaled
from mambaad_cli.inspection import calibration
from mambaad_cli.inspection.recognition import Recognised, Recogniser, signature
from mambaad_cli.inspection.tiles import Tiles, tile_distances
from mambaad_cli.model import DETECTORS, STRIDES, onnx_encoder
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, fuse, local_contrast, standardised_distances
from mambaad_cli.model.detector import Detector
from mambaad_cli.model.encoder import Encoder, build_encoder, for_inference
from mambaad_cli.model.fusion import Fusion, fuse_witnesses
from mambaad_cli.model.memory import Memory, close_patches, fuse_looks, looks_of, unusual_patches
from mambaad_cli.model.precision import rounding as rounding
from mambaad_cli.model.settings import Settings, scaled_size

FEW = 16  # images that are scored before a runtime has started

if TYPE_CHECKING:
    from mambaad_cli.inspection.predict import Image, Prediction


@dataclass(frozen=True)
class Example:
    """A good image as the encoder saw it, kept in the model file so that a product can be added to it later."""

    class_name: str
    held_out: bool
    box: tuple[int, int, int, int] | None  # top, left, height, width of the image in it, if it was letterboxed
    encoded: Tensor  # uint8, the bytes of a JPEG or PNG
    inside: Tensor | None = None  # uint8, the bytes of a PNG: its own region of interest


@dataclass
class FittedModel:
    """Scores images: what `mambaad fit` writes and `mambaad.load` reads.

    One model may be used from several threads, as long as none of them calibrates it.
    """

    settings: Settings
    encoder: Encoder
    detector: Detector
    scores: dict[str, list[float]] = field(default_factory=dict)  # of good images, by class; empty: uncalibrated
    held_out: set[str] = field(default_factory=set)  # classes whose scores promise something, see training.describe
    trained_on: dict[str, int] = field(default_factory=dict)  # number of images learnt from, by class
    max_false_reject: float | None = None  # the share that a threshold may reject; None: see calibration.usual_share
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # height, width by class, where each has its own
    statistics: dict[str, list[ResidualStatistics]] = field(default_factory=dict)  # by class; empty: the plain map
    # of good patches, by class, one for each look; empty: the decoder alone
    memories: dict[str, tuple[Memory, ...]] = field(default_factory=dict)
    fusion: dict[str, Fusion] = field(default_factory=dict)  # of the decoder's map and the memory's, by class
    photos: dict[str, tuple[int, int]] = field(default_factory=dict)  # median height, width of a class's files
    photo_statistics: dict[str, list[PhotoStatistics]] = field(default_factory=dict)  # of good images, by class
    # kind, length in pixels of the photo and score of simulated defects in held-out images, by class
    simulated: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)
    recogniser: Recogniser | None = None  # distinguishes the products, if there are several
    tiles: dict[str, Tiles] = field(default_factory=dict)  # what good tiles are like, by class
    rois: dict[str, np.ndarray] = field(default_factory=dict)  # region of interest by class: a mask, see data.roi
    own_masks: bool = False  # each photo has a mask of its own, which comes with it
    masks: MaskFolder | None = field(default=None, repr=False, compare=False)  # where these lie; not in the file
    examples: list[Example] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)  # how it was trained; empty if not known
    sha256: str = ""  # the first 12 hex digits, of the model file that it was loaded from, or exported from
    precision: str = "fp32"  # of matrix products at run time; not in the file
    encoder_runtime: str = "torch"  # of the encoder, see for_inference; not in the file
    _fast: tuple[Encoder, str, Encoder] | None = field(default=None, repr=False, compare=False)

    # For programs

    @overload
    def predict(self, image: "Image", class_name: str | None = None) -> "Prediction": ...

    @overload
    def predict(self, image: "list[Image]", class_name: str | None = None) -> "list[Prediction]": ...

    def predict(self, image: "Image | list[Image]", class_name: str | None = None) -> "Prediction | list[Prediction]":
        """Score one image, or a list of them.

        image: a path, an array (h, w, 3) or (h, w) in RGB order of uint8, of uint16 with white at 65535, or of floats
            in 0 … 1, or a PIL image.
        class_name: the product that it shows. By default it is recognised, if the model knows several.

        Raises MambaADError for an array of another kind and for a class that the model does not know. A file that
        cannot be read gives a Prediction with the verdict `error`.
        """
        from mambaad_cli.inspection import predict

        listed = image if isinstance(image, list) else [image]
        found = predict.predict_images(self, listed, predict.PredictOptions(class_name, maps=True, min_area=0))
        return found if isinstance(image, list) else found[0]

    def predict_many(
        self, paths: Iterable[str | Path], class_name: str | None = None, batch: int = 8
    ) -> "Iterator[Prediction]":
        """Score image files, and all images in folders, one Prediction each as they come.

        Files are read in worker threads while the model works. Predictions of files carry no maps, so that memory stays
        flat; `predict` gives them.

        Raises MambaADError for a folder without images.
        """
        from mambaad_cli.data import images
        from mambaad_cli.inspection import predict

        files = images.find([Path(path) for path in paths])
        return predict.predict(self, files, predict.PredictOptions(class_name, batch))

    def calibrate(
        self, folder: str | Path, class_name: str | None = None, max_false_reject: float | None = None
    ) -> None:
        """Set the thresholds anew from a folder of good images that the model was not trained on.

        Raises MambaADError where no image can be read, or where it cannot be told which product an image shows.
        """
        from mambaad_cli.data import images
        from mambaad_cli.inspection import predict
        from mambaad_cli.inspection.recalibration import recalibrate

        if max_false_reject is not None:
            self.max_false_reject = max_false_reject
        files = images.find([Path(folder)])
        found = predict.predict(self, files, predict.PredictOptions(class_name, distances=True))
        recalibrate(self, found, Path(folder))

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. Raises MambaADError where the disk refuses."""
        from mambaad_cli.inspection import model_file

        model_file.save(self, Path(path))

    # From images to maps

    def anomaly_maps(self, images: Tensor, classes: Sequence[str] = ()) -> Tensor:
        """(b, 3, H, W) in 0 … 1 to anomaly maps (b, H, W), each with the statistics of its class."""
        size = self.map_size((images.shape[2], images.shape[3]))
        return self.maps_of(self.features(images), size, classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to features, one (b, c, h, w) a stage: those of the decoder, then of the memory."""
        far = self.far_features(images)
        return [*far, self.close_look(images)] if self.settings.two_looks else far

    def far_features(self, images: Tensor) -> list[Tensor]:
        """The same without what a second, close look sees."""
        size = height, width = self.map_size((images.shape[2], images.shape[3]))
        with rounding(self.precision, images.device.type):
            found = self.encoder.in_parts(_scaled(images, size) if self.settings.two_looks else images)
        if self.settings.detail == 1 or self.settings.two_looks:
            return found
        sizes = [(height // stride, width // stride) for stride in self.detector.strides]
        scaled = [_scaled(stage, size) for stage, size in zip(found, sizes, strict=True)]
        return [*scaled, *found[-2:]]

    def close_look(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in 0 … 1 to the patches (b, c, h, w) of a close look."""
        with rounding(self.precision, images.device.type):
            return close_patches(self.encoder.in_parts(images), self.settings.binomial)

    def _for_decoder(self, features: list[Tensor]) -> list[Tensor]:
        """The stages that the decoder takes: where the memory sees more detail, its own follow them."""
        return features[: len(self.detector.strides)]

    def patches(self, features: list[Tensor]) -> list[Tensor]:
        """The patches (b, h, w, c) that the memory compares, of each look."""
        return looks_of(features, self.settings.two_looks)

    def tile_distances(self, pixels: Tensor, class_name: str) -> Tensor:
        """How unusual the positions of tiles (b, 3, H, W) in 0 … 1 of a class are: (b, r, c)."""
        return tile_distances(self, self.tiles[class_name].memory, pixels)

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the anomaly maps of images of this size: what the decoder sees them at."""
        return size if self.settings.detail == 1 else scaled_size(size, 1 / self.settings.detail)

    def residuals(self, features: list[Tensor]) -> list[Residual]:
        """What the decoder cannot reconstruct of the encoder's features."""
        with rounding(self.precision, features[0].device.type):
            return self.detector.residuals(self._for_decoder(features))

    def maps_of(self, features: list[Tensor], size: tuple[int, int], classes: Sequence[str] = ()) -> Tensor:
        """Encoder features to anomaly maps (b, *size). Classes that are not told, or not known, are recognised."""
        if not (self.statistics or self.memories):
            with rounding(self.precision, features[0].device.type):
                return self.detector.anomaly_map(self._for_decoder(features), size)
        names = list(classes) or [""] * len(features[0])
        if not all(name in self.described for name in names):
            looks = [one.name for one in self.recognised(features)]
            names = [name if name in self.described else look for name, look in zip(names, looks, strict=True)]
        maps = features[0].new_empty(len(names), *size, dtype=torch.float32)
        for name in dict.fromkeys(names):
            own = [i for i, other in enumerate(names) if other == name]
            mine = features if len(own) == len(names) else [stage[own] for stage in features]
            decoder_map, memory_map = self.evidence(mine, size, name)
            fusion = self.fusion.get(name)
            if fusion is None:
                only = memory_map if decoder_map is None else decoder_map
                assert only is not None
                maps[own] = only
            else:
                maps[own] = fuse_witnesses(fusion, decoder_map, memory_map)
        return maps

    def evidence(
        self, features: list[Tensor], size: tuple[int, int], class_name: str
    ) -> tuple[Tensor | None, Tensor | None]:
        """The maps (b, *size) of the decoder and of the memory for images of one class; None where one has no say."""
        fusion, memory = self.fusion.get(class_name), self.memories.get(class_name)
        decoder_map = memory_map = None
        if fusion is None or fusion.decoder.weight > 0:
            decoder_map = self.decoder_map(features, size, class_name)
        if memory is not None and (fusion is None or fusion.memory.weight > 0):
            looks = zip(memory, self.patches(features), strict=True)
            memory_map = self.memory_map([unusual_patches(one, patches) for one, patches in looks], size)
        return decoder_map, memory_map

    def decoder_map(self, features: list[Tensor], size: tuple[int, int], class_name: str) -> Tensor | None:
        """The decoder's maps (b, *size) for images of one class; None where it has no say."""
        statistics = self.statistics.get(class_name)
        if statistics is None:
            return None
        distances = standardised_distances(self.residuals(features), statistics)
        return local_contrast(fuse(distances, size), self.settings.local_contrast)

    def memory_map(self, unusual: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The memory's maps (b, *size) from how unusual the patches (b, h, w) of each look are."""
        own = self.settings
        return local_contrast(fuse_looks(unusual, size, own.far_weight, own.memory_sigma), own.local_contrast)

    @property
    def described(self) -> dict[str, Any]:
        """The classes of which is known what good images are like."""
        return self.statistics or self.memories

    def recognised(self, features: list[Tensor]) -> list[Recognised]:
        """The product that each image looks like. Where there is only one product, it is that one."""
        if self.recogniser is None:
            return [Recognised(next(iter(self.described), ""), 1.0, True)] * len(features[0])
        return self.recogniser(self.signature(features).cpu())

    def signature(self, features: list[Tensor]) -> Tensor:
        """(b, s): what the product of each image is recognised by. A close look at it adds nothing."""
        return signature(features[:-1] if self.settings.two_looks else features)

    def for_inference(self, images: int | None = None) -> "FittedModel":
        """This model with a faster encoder: the same scores, but for rounding.

        Its batch norms are folded into the convolutions. With the encoder_runtime `onnxruntime` ONNX Runtime runs it;
        with `auto` only where it can, and not for only a FEW images, because it takes a moment to start.

        images: how many there will be; None: not known, so many.

        Raises MambaADError where ONNX Runtime is asked for, but cannot run it.
        """
        if isinstance(self.encoder, onnx_encoder.OnnxEncoder):
            return self
        runtime = self.encoder_runtime
        if runtime == "auto":
            many = images is None or images > FEW
            able = onnx_encoder.installed() and onnx_encoder.suits(self.encoder) and self.precision == "fp32"
            runtime = "onnxruntime" if many and able else "torch"
        if self._fast is None or self._fast[0] is not self.encoder or self._fast[1] != runtime:
            self._fast = self.encoder, runtime, self._faster(runtime)
        return replace(self, encoder=self._fast[2])

    def _faster(self, runtime: str) -> Encoder:
        folded = for_inference(self.encoder)
        if runtime == "torch":
            return folded
        try:
            return onnx_encoder.with_onnx_runtime(folded)
        except MambaADError:
            if self.encoder_runtime == "auto":
                return folded
            raise

    # What is known of good images

    def size_of(self, class_name: str) -> tuple[int, int]:
        """Height and width that images of this class are scaled to."""
        return self.sizes.get(class_name, self.settings.size)

    def wanted(
        self, size: Size | SizeOf, names: Sequence[str] | str = "", pictures: bool = False, sources: bool = False
    ) -> Wanted:
        """How files of some classes are read for this model, at a size or at one of each: in fit and in score alike."""
        every = list(self.sizes.values()) or [self.settings.size]
        largest = max(height for height, _ in every), max(width for _, width in every)
        return Wanted(size, self.settings.letterbox, pictures, sources, largest, self._regions(names), self._scale)

    @property
    def _scale(self) -> float:
        return self.settings.scale if self.settings.tiles else 0.0

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of its tiles."""
        assert self.settings.tiles is not None  # asked only of models with tiles
        return self.settings.tiles

    def _regions(self, names: Sequence[str] | str) -> RegionOf | None:
        if not self.has_regions:
            return None

        def region(place: int, path: Path, shape: Size) -> np.ndarray | None:
            return self.region(names if isinstance(names, str) else names[place], path, shape)

        return region

    @property
    def has_regions(self) -> bool:
        """Whether not all of every photo counts."""
        return bool(self.rois) or self.own_masks

    def region(self, class_name: str, path: Path, shape: Size) -> np.ndarray | None:
        """The region of interest in a photo (h, w) of a class: a mask of bool of any size; None where all of it counts.

        Raises ImageError where the photo lacks a mask of its own.
        """
        own = self.rois.get(class_name)
        if not self.own_masks:
            return own
        if self.masks is None:
            raise MambaADError("the model was fitted with a mask for each photo: give their folder with --roi-dir")
        mask = self.masks.of(path, shape)
        return mask if own is None else mask & scaled(own, shape)

    def photo_scale(self, class_name: str) -> float:
        """Pixels of a photo of this class on a pixel of the model's input, along a side."""
        (height, width), (rows, columns) = (
            self.photos.get(class_name, self.size_of(class_name)),
            self.size_of(class_name),
        )
        return math.sqrt(height * width / (rows * columns))

    def threshold(self, class_name: str, max_false_reject: float | None = None) -> float | None:
        """An image of this class is anomalous above it; None while there are no scores of good images.

        A class that the model does not know gets the highest of the thresholds of those it knows. Another
        `max_false_reject` than the model's gives another threshold from the same scores.
        """
        shares = (max_false_reject or self.share_of(scores) for scores in self._known(class_name))
        found = map(calibration.threshold, self._known(class_name), shares)
        return max(found, default=None)

    def share_of(self, scores: Sequence[float]) -> float:
        """The share of good images that the threshold from these scores may reject."""
        return self.max_false_reject or calibration.usual_share(scores)

    def cold(self, class_name: str) -> float | None:
        """The median score of good images of this class, where the colours of a heatmap begin."""
        return self.threshold(class_name, 0.5)

    def p_value(self, class_name: str, score: float) -> float | None:
        """How often a good image of this class scores this high; None without scores that promise something.

        For a class that the model does not know, it is the highest p-value over the known classes.
        """
        names = [class_name] if class_name in self.scores else list(self.scores)
        promising = [self.scores[name] for name in names if name in self.held_out]
        return max((calibration.p_value(scores, score) for scores in promising), default=None)

    def _known(self, class_name: str) -> list[list[float]]:
        return [self.scores[class_name]] if class_name in self.scores else list(self.scores.values())

    @property
    def device(self) -> str:
        """The device of its tensors."""
        return str(self.encoder.mean.device)

    def to(self, device: str) -> "FittedModel":
        self.encoder.to(device)
        self.detector.to(device)
        self.memories = {
            name: tuple(Memory(*(part.to(device) for part in one)) for one in looks)
            for name, looks in self.memories.items()
        }
        self.tiles = {
            name: own._replace(memory=Memory(*(part.to(device) for part in own.memory)))
            for name, own in self.tiles.items()
        }
        self.statistics = {
            name: [ResidualStatistics(*(part.to(device) for part in one)) for one in scales]
            for name, scales in self.statistics.items()
        }
        self._fast = None
        return self


def _scaled(stage: Tensor, size: tuple[int, int]) -> Tensor:
    """A stage or images (b, c, h, w) at a smaller size, channels last in memory as the encoder gives it."""
    scaled = F.interpolate(stage.float(), size=size, mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def new_model(settings: Settings, encoder: Encoder | None = None) -> FittedModel:
    """A model with a new detector. Without `encoder`, its encoder's weights are still to be loaded."""
    if settings.detector not in DETECTORS:
        raise MambaADError(f"no detector {settings.detector!r}: choose {', '.join(DETECTORS)}")
    if encoder is None:
        encoder = build_encoder(settings.encoder, STRIDES[settings.detector])
    return FittedModel(settings, encoder, DETECTORS[settings.detector](encoder.channels, **settings.options))
