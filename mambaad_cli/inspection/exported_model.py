"""A model that was exported to ONNX, run by ONNX Runtime: it predicts like the model it was made from.

The file is an ordinary ONNX model. Its metadata holds what `mambaad.json` says below, and its last bytes a seal: the
SHA-256 of all bytes before them, as one more entry of the metadata, so that an edited file is noticed.

Letters: n images, H × W pixels of the model's input.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data.loading import Input, within
from mambaad_cli.files import shown
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.model.settings import Settings

FORMAT = 1  # of the metadata; newer formats are refused
VERDICTS = ("good", "anomalous", "unknown", "uncalibrated", "error")  # by the number that the graph gives
OUTPUTS = ("map", "score", "threshold", "p_value", "verdict", "product", "certainty")
OLDEST_RUNTIME = (1, 17)
INSTALL = "pip install 'mambaad[export]'"
SEAL = b"\x0a\x0emambaad.sha256\x12\x40"  # an entry of the metadata: its name, and the length of what follows


class Judged(NamedTuple):
    """What the graph itself says of an image."""

    anomaly_map: Tensor  # (H, W), without the padding of a letterboxed image
    class_name: str  # given, or recognised
    recognised: Recognised | None  # if the class was not given
    threshold: float | None
    p_value: float | None
    verdict: str


class ExportedModel(FittedModel):
    """An ONNX file that `mambaad export` wrote. It predicts; to fit or calibrate, take the model it was made from."""

    session: Any
    facts: dict[str, Any]

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def products(self) -> list[str]:
        return list(self.facts["products"])

    def to(self, device: str) -> "ExportedModel":
        if device != "cpu":
            raise MambaADError(f"an exported model runs on the cpu here, not on {device}")
        return self

    def for_inference(self) -> "ExportedModel":
        return self

    def save(self, path: str | Path) -> None:
        raise MambaADError("an exported model is not changed: change the model it was made from, and export that again")

    def calibrate(self, *_: Any, **__: Any) -> None:
        self.save("")

    def features(self, images: Tensor) -> list[Tensor]:
        raise MambaADError("an exported model gives no features: take the model it was made from")

    def anomaly_maps(self, images: Tensor, classes: Sequence[str] = ()) -> Tensor:
        """(n, 3, H, W) in 0 … 1 to anomaly maps (n, H, W)."""
        box = (0, 0, *self.map_size((images.shape[2], images.shape[3])))
        return torch.from_numpy(self.run(images, list(classes) or [""] * len(images), [box] * len(images))["map"])

    def judged(self, inputs: Sequence[Input], told: Sequence[str]) -> list[Judged]:
        """What the graph says of a batch; classes that are not told ("") are recognised."""
        whole = (0, 0, *self.settings.size)
        found = self.run(torch.stack([one.pixels for one in inputs]), told, [one.box or whole for one in inputs])
        return [self._judged(i, one, name, found) for i, (one, name) in enumerate(zip(inputs, told, strict=True))]

    def _judged(self, i: int, one: Input, told: str, found: dict[str, np.ndarray]) -> Judged:
        threshold, p_value, certainty = (
            None if np.isnan(found[name][i]) else float(found[name][i]) for name in ("threshold", "p_value", "certainty")
        )
        verdict, product = VERDICTS[found["verdict"][i]], int(found["product"][i])
        name = told or (self.products[product] if product >= 0 else "")
        look = None if certainty is None else Recognised(name, certainty, verdict != "unknown")
        return Judged(within(torch.from_numpy(found["map"][i]), one.box), name, look, threshold, p_value, verdict)

    def run(self, pixels: Tensor, told: Sequence[str], boxes: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The outputs by name, of images (n, 3, H, W) in 0 … 1."""
        image = (pixels * 255).permute(0, 2, 3, 1).contiguous()
        given: dict[str, np.ndarray] = {
            "image": (image.round().byte() if self.facts["image"] == "uint8" else image).numpy(),
            "told": np.array([self.products.index(name) if name in self.products else -1 for name in told]),
            "box": np.array(boxes, np.int64),
        }
        feed = {one.name: given[one.name] for one in self.session.get_inputs()}
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), feed), strict=True))


def load(path: Path, threads: int | None = None) -> ExportedModel:
    """Read an exported model. Raises MambaADError for a file that is missing, foreign, edited or made by a newer version."""
    content = _unsealed(path)
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are for those who made the graph
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, its own
        line = str(error).strip().splitlines()[0]
        raise MambaADError(f"ONNX Runtime {runtime.__version__} cannot run {shown(path)}: {line}") from error
    facts = _facts(session.get_modelmeta().custom_metadata_map, path)
    settings = Settings(**(facts["settings"] | {"size": tuple(facts["settings"]["size"])}))
    model = ExportedModel(settings, nn.Identity(), nn.Identity())  # type: ignore[arg-type]  # the graph is both
    model.session, model.facts = session, facts
    model.scores, model.held_out, model.trained_on = facts["scores"], set(facts["held_out"]), facts["trained_on"]
    model.max_false_reject = facts["max_false_reject"]
    return model


def onnx_runtime() -> Any:
    """The package onnxruntime. Raises MambaADError where it is missing or too old."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MambaADError(f"an exported model needs ONNX Runtime: {INSTALL}") from error
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST_RUNTIME:
        oldest = ".".join(map(str, OLDEST_RUNTIME))
        raise MambaADError(f"ONNX Runtime {onnxruntime.__version__} is too old, {oldest} is needed: {INSTALL}")
    return onnxruntime


def _facts(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(metadata["mambaad.json"])
    if facts["format"] > FORMAT:
        raise MambaADError(f"{shown(path)} was made by a newer mambaad ({facts['mambaad']}): upgrade this one ({__version__})")
    return facts


# ---- the seal ----


def sealed(content: bytes) -> bytes:
    """An ONNX file with the SHA-256 of its bytes behind them. Two protobuf messages in a row are one message.

    >>> len(sealed(b"")) - len(SEAL)
    66
    """
    entry = SEAL + hashlib.sha256(content).hexdigest().encode()
    return content + bytes([0x72, len(entry)]) + entry  # field 14 of ModelProto, metadata_props


def _unsealed(path: Path) -> bytes:
    """The bytes of an exported model. Raises MambaADError where it is none, or not as it was written."""
    if path.is_dir():
        raise MambaADError(f"{shown(path)} is a folder: --model takes a model file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MambaADError(f"no model {shown(path)}: make one with mambaad export MODEL -o {shown(path)}") from None
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    length = len(sealed(b""))
    if SEAL not in content:
        raise MambaADError(f"{shown(path)} was not made by mambaad export, or is truncated: export the model again")
    if sealed(content[:-length]) != content:
        raise MambaADError(f"{shown(path)} was changed since mambaad export wrote it: export the model again")
    return content
