"""A fitted model and its file: one safetensors with its settings as JSON metadata; nothing is ever unpickled."""

import dataclasses
import json
import pickle
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambaad_cli import MambaADError, __version__
from mambaad_cli.files import written_whole
from mambaad_cli.inspection import calibration
from mambaad_cli.inspection.recognition import Recognised, Recogniser, signature
from mambaad_cli.model import DETECTORS
from mambaad_cli.model import anomaly_map as anomaly
from mambaad_cli.model.anomaly_map import Normal, Residual
from mambaad_cli.model.encoder import Encoder, build_encoder

FORMAT = 1  # of the file; a reader refuses what is newer than itself


@dataclass(frozen=True)
class Settings:
    """What describes a model and travels in its file."""

    detector: str = "mambaad"
    encoder: str = "efficientnet_lite0"
    size: tuple[int, int] = (256, 256)  # height, width in pixels of what the encoder sees
    letterbox: bool = False  # keep each image's aspect; else it is stretched to `size`
    options: dict[str, Any] = field(default_factory=dict)  # the detector's keyword arguments


@dataclass(frozen=True)
class Example:
    """A good image as the encoder saw it, kept in the model file so that a product can be added to it later."""

    class_name: str
    held_out: bool
    box: tuple[int, int, int, int] | None  # where the image lies in it, if it was letterboxed
    png: Tensor  # uint8, the bytes of a PNG


@dataclass
class Model:
    """A fitted detector with its encoder and what good images taught about its scores."""

    settings: Settings
    encoder: Encoder
    detector: Any  # one of DETECTORS
    scores: dict[str, list[float]] = field(default_factory=dict)  # of held-out good images, by class; empty: none yet
    trained_on: dict[str, int] = field(default_factory=dict)  # images, by class
    held_out: bool = True  # False: there were too few images, and the scores are of training images
    max_false_reject: float = 0.01
    normal: dict[str, list[Normal]] = field(default_factory=dict)  # by class and scale; empty: the paper's plain map
    recogniser: Recogniser | None = None  # tells the products apart, where there are several
    examples: list[Example] = field(default_factory=list)
    precision: str = "fp32"  # of products, while it runs; not in the file

    def anomaly_maps(self, images: Tensor, classes: Sequence[str] = ()) -> Tensor:
        """(b, 3, H, W) in 0 … 1 to anomaly maps (b, H, W); what is good differs from class to class."""
        size = (images.shape[2], images.shape[3])
        return self.maps_of(self.features(images), size, classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to the encoder's features."""
        with rounding(self.precision, images.device.type):
            return self.encoder(images)

    def residuals(self, features: list[Tensor]) -> list[Residual]:
        """What the decoder cannot rebuild of the encoder's features."""
        with rounding(self.precision, features[0].device.type):
            return self.detector.residuals(features)

    def maps_of(self, features: list[Tensor], size: tuple[int, int], classes: Sequence[str] = ()) -> Tensor:
        """Encoder features to anomaly maps (b, *size). Classes that are not told, or not known, are recognised."""
        if not self.normal:
            with rounding(self.precision, features[0].device.type):
                return self.detector.anomaly_map(features, size)
        names = list(classes) or [""] * len(features[0])
        if not all(name in self.normal for name in names):
            looks = [one.name for one in self.recognised(features)]
            names = [name if name in self.normal else look for name, look in zip(names, looks, strict=True)]
        residuals = self.residuals(features)
        maps = residuals[0].difference.new_empty(len(names), *size)
        for name in set(names):
            own = [i for i, other in enumerate(names) if other == name]
            normal = [Normal(*(part.to(maps.device) for part in one)) for one in self.normal[name]]
            found = [Residual(one.difference[own], one.rebuilt[own]) for one in residuals]
            maps[own] = anomaly.fuse(anomaly.unusual(found, normal), size)
        return maps

    def recognised(self, features: list[Tensor]) -> list[Recognised]:
        """The product that each image looks like: where there is only one, that one."""
        if self.recogniser is None:
            return [Recognised(next(iter(self.normal), ""), 1.0, True)] * len(features[0])
        return self.recogniser(signature(features).cpu())

    def threshold(self, class_name: str, max_false_reject: float | None = None) -> float | None:
        """Above it an image of this class is anomalous; None while there are no scores of good images.

        A class that the model does not know gets the highest of the thresholds of those it knows. Another
        `max_false_reject` than the model's gives another threshold from the same scores.
        """
        share = self.max_false_reject if max_false_reject is None else max_false_reject
        return max((calibration.threshold(scores, share) for scores in self._known(class_name)), default=None)

    def cold(self, class_name: str) -> float | None:
        """What half the good images of this class never exceed: there the colours of a heatmap begin."""
        return self.threshold(class_name, 0.5)

    def p_value(self, class_name: str, score: float) -> float | None:
        """How often a good image of this class scores as high; None without scores of images not trained on.

        For a class that the model does not know: the highest of those it knows.
        """
        if not self.held_out:
            return None
        return max((calibration.p_value(scores, score) for scores in self._known(class_name)), default=None)

    def _known(self, class_name: str) -> list[list[float]]:
        return [self.scores[class_name]] if class_name in self.scores else list(self.scores.values())

    def to(self, device: str) -> "Model":
        self.encoder.to(device)
        self.detector.to(device)
        return self


def rounding(precision: str, device: str) -> AbstractContextManager[Any]:
    """Within it bf16 rounds the factors of products and convolutions; the scan and the map stay fp32."""
    if precision == "fp32":
        return nullcontext()  # whoever called us may round already
    return torch.autocast(device.partition(":")[0], torch.bfloat16)


def new_model(settings: Settings, encoder: Encoder | None = None) -> Model:
    """A model with a fresh detector, and unless given one an encoder whose weights are still to be loaded."""
    if settings.detector not in DETECTORS:
        raise MambaADError(f"no detector {settings.detector!r}: choose {', '.join(DETECTORS)}")
    detector = DETECTORS[settings.detector]
    if encoder is None:
        encoder = build_encoder(settings.encoder, detector.strides)
    return Model(settings, encoder, detector(encoder.channels, **settings.options))


def save(model: Model, path: Path) -> None:
    """Write the model, its encoder with it, so that scoring needs no network."""
    tensors = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors |= {f"detector.{name}": tensor for name, tensor in model.detector.state_dict().items()}
    for i, scales in enumerate(model.normal.values()):
        for scale, one in enumerate(scales):
            tensors |= {f"normal.{i}.{scale}.{part}": tensor for part, tensor in one._asdict().items()}
    if model.recogniser is not None:
        tensors |= {"recogniser.means": model.recogniser.means, "recogniser.precision": model.recogniser.precision}
    tensors |= {f"example.{i}": one.png for i, one in enumerate(model.examples)}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "mambaad": __version__,
        "settings": dataclasses.asdict(model.settings),
        "scores": model.scores,
        "trained_on": model.trained_on,
        "held_out": model.held_out,
        "max_false_reject": model.max_false_reject,
        "normal": {name: len(scales) for name, scales in model.normal.items()},
        "examples": [(one.class_name, one.held_out, one.box) for one in model.examples],
    }
    if model.recogniser is not None:
        facts["recogniser"] = {"names": model.recogniser.names, "limit": model.recogniser.limit}
    with written_whole(path) as half:
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, half, metadata={"mambaad": json.dumps(facts)})
        except SafetensorError as error:
            raise MambaADError(f"cannot write {path}: {error}") from error


def load(path: Path) -> Model:
    """Read a model. Raises MambaADError for a file that is missing, truncated, foreign or made by a newer version."""
    facts = read_facts(path)
    try:
        settings = Settings(**(facts["settings"] | {"size": tuple(facts["settings"]["size"])}))
        model = new_model(settings)
        for name in ("scores", "trained_on", "held_out", "max_false_reject"):
            setattr(model, name, facts[name])
        kept = [(str(name), bool(held_out), box and tuple(box)) for name, held_out, box in facts.get("examples", [])]
    except (KeyError, TypeError, ValueError) as error:
        raise MambaADError(f"{path} is damaged: its description does not fit ({error}): fit it anew") from error
    tensors = load_file(path)
    for part, name in ((model.encoder, "encoder."), (model.detector, "detector.")):
        own = {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            raise MambaADError(f"{path} is damaged: its tensors are not those of its settings: fit it anew") from error
    model.detector.eval()
    try:
        for i, (name, scales) in enumerate(facts.get("normal", {}).items()):
            parts = [[tensors[f"normal.{i}.{scale}.{part}"] for part in Normal._fields] for scale in range(scales)]
            model.normal[name] = [Normal(*one) for one in parts]
        if "recogniser" in facts:
            means, precision = tensors["recogniser.means"], tensors["recogniser.precision"]
            model.recogniser = Recogniser(facts["recogniser"]["names"], means, precision, facts["recogniser"]["limit"])
        model.examples = [Example(*one, tensors[f"example.{i}"]) for i, one in enumerate(kept)]
    except (KeyError, TypeError) as error:
        raise MambaADError(f"{path} is damaged: it lacks {error}: fit it anew") from error
    return model


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON that describes a model file, without its tensors."""
    if path.is_dir():
        raise MambaADError(f"{path} is a folder: --model takes a model file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise MambaADError(f"no model {path}: make one with mambaad fit GOOD_DIR, or name it with --model") from None
    except (SafetensorError, OSError) as error:
        raise MambaADError(f"{path} is no model file, or a truncated one ({error}): fit it anew") from error
    if "mambaad" not in metadata:
        raise MambaADError(f"{path} was not made by mambaad: expected a file written by mambaad fit or import")
    try:
        facts = json.loads(metadata["mambaad"])
        newer = facts["format"] > FORMAT
    except (KeyError, TypeError, ValueError) as error:
        raise MambaADError(f"{path} is damaged: its description does not fit ({error}): fit it anew") from error
    if newer:
        maker = facts.get("mambaad", "unknown")
        raise MambaADError(f"{path} was made by a newer mambaad ({maker}): upgrade this one ({__version__})")
    return facts


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, wrapped under a key or not, `module.` cut off their names.

    PyTorch files are loaded with weights_only=True alone: code in them is refused, not run.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MambaADError(f"no file {path}") from None
    except pickle.UnpicklingError as error:
        raise MambaADError(f"{path} holds more than tensors, or is no PyTorch file: refused") from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise MambaADError(f"cannot read weights from {path}, is it damaged? ({reason})") from error
    state = _unwrapped(loaded)
    if not state:
        raise MambaADError(f"no tensors in {path}: expected a state dict, or one under a key such as state_dict")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _unwrapped(loaded: Any) -> dict[str, Tensor]:
    """The largest dict of tensors in `loaded`: itself or under one of its keys."""
    if not isinstance(loaded, Mapping):
        return {}
    own = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    nested = [_unwrapped(value) for value in loaded.values() if isinstance(value, Mapping)]
    return max([own, *nested], key=len)
