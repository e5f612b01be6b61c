"""A model that was exported, run by another runtime than PyTorch: it predicts like the model it was made from.

Letters: n images, H × W pixels of the model's input.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.data.loading import Box, Input, within
from mambaad_cli.files import shown
from mambaad_cli.inspection import runtimes
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.inspection.runtimes import Arrays, Runtime
from mambaad_cli.inspection.tiles import Tiles
from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.memory import Memory
from mambaad_cli.model.settings import Settings

FORMAT = 1  # of the description in the file; newer formats are refused
TILE_PART = ".tile"  # before the ending of a file beside the model's: the network that looks at tiles
VERDICTS = ("good", "anomalous", "unknown", "uncalibrated", "error")  # by the number that the graph gives


class Judged(NamedTuple):
    """What the graph itself says of an image."""

    anomaly_map: Tensor  # (H, W), without the padding of a letterboxed image
    class_name: str  # given, or recognised
    recognised: Recognised | None  # if the class was not given
    threshold: float | None
    p_value: float | None
    verdict: str


class ExportedModel(FittedModel):
    """What `mambaad export` wrote. It predicts; what changes a model needs the one that it was made from."""

    runtime: Runtime
    facts: dict[str, Any]  # its description, see export.onnx_file.facts_of
    tile_runtime: Runtime | None = None  # of its network for tiles

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def products(self) -> list[str]:
        return list(self.facts["products"])

    def to(self, device: str) -> "ExportedModel":
        if device != "cpu":
            raise MambaADError(f"an exported model runs on the CPU here, not on {device}")
        return self

    def for_inference(self, images: int | None = None) -> "ExportedModel":
        return self

    def save(self, path: str | Path) -> None:
        raise MambaADError("an exported model cannot be changed: change the one that it was made from and export again")

    def calibrate(
        self, folder: str | Path, class_name: str | None = None, max_false_reject: float | None = None
    ) -> None:
        self.save(folder)

    def features(self, images: Tensor) -> list[Tensor]:
        raise MambaADError("an exported model gives maps and scores, but no features")

    def anomaly_maps(self, images: Tensor, classes: Sequence[str] = ()) -> Tensor:
        """(n, 3, H, W) in 0 … 1 to anomaly maps (n, H, W)."""
        if images.shape[2:] != self.settings.size:
            height, width = self.settings.size
            raise MambaADError(f"this exported model takes images of {width}x{height} pixels only")
        found = self._run(images, list(classes) or [""] * len(images))
        return torch.from_numpy(found["map"])

    def tile_distances(self, pixels: Tensor, class_name: str) -> Tensor:
        assert self.tile_runtime is not None
        return torch.from_numpy(self.tile_runtime.run({"tile": self._image(pixels)})["distances"])

    def judged(self, inputs: Sequence[Input], told: Sequence[str]) -> list[Judged]:
        """What the graph says of a batch; classes that are not told ("") are recognised."""
        pixels = torch.stack([one.pixels for one in inputs])
        found = self._run(pixels, told, [one.box for one in inputs], [one.inside for one in inputs])
        return [self._judged(i, one, name, found) for i, (one, name) in enumerate(zip(inputs, told, strict=True))]

    def _judged(self, i: int, one: Input, told: str, found: Arrays) -> Judged:
        threshold, p_value, certainty = (
            None if np.isnan(found[name][i]) else float(found[name][i])
            for name in ("threshold", "p_value", "certainty")
        )
        verdict, product = VERDICTS[found["verdict"][i]], int(found["product"][i])
        name = told or (self.products[product] if product >= 0 else "")
        look = None if certainty is None else Recognised(name, certainty, verdict != "unknown")
        return Judged(within(torch.from_numpy(found["map"][i]), one.box), name, look, threshold, p_value, verdict)

    @property
    def _whole(self) -> tuple[int, int, int, int]:
        """The box of an image that fills the map."""
        return 0, 0, *self.map_size(self.settings.size)

    def _run(
        self,
        pixels: Tensor,
        told: Sequence[str],
        boxes: Sequence[Box | None] = (),
        insides: Sequence[Tensor | None] = (),
    ) -> Arrays:
        whole = torch.ones(self.settings.size, dtype=torch.bool)
        given: Arrays = {
            "image": self._image(pixels),
            "told": np.array([self.products.index(name) if name in self.products else -1 for name in told], np.int64),
            "box": np.array([one or self._whole for one in boxes or [None] * len(told)], np.int64),
            "inside": np.stack([whole if one is None else one for one in insides or [None] * len(told)]),
        }
        return self.runtime.run({name: given[name] for name in self.runtime.inputs})

    def _image(self, pixels: Tensor) -> np.ndarray:
        """Images (n, 3, H, W) in 0 … 1 as its networks take them: (n, H, W, 3) in 0 … 255."""
        image = (pixels * 255).permute(0, 2, 3, 1).contiguous()
        return (image.round().byte() if self.facts["image"] == "uint8" else image).numpy()


def load(path: Path) -> ExportedModel:
    """Read an exported model. Raises MambaADError as `runtimes.opened` does, and for one of a newer version."""
    runtime = runtimes.opened(path)
    facts = json.loads(runtime.facts)
    if facts["format"] > FORMAT:
        made = facts["mambaad"]
        raise MambaADError(f"{shown(path)} was made by a newer mambaad ({made}): upgrade this one ({__version__})")
    tiles = facts["settings"].get("tiles")
    settings = Settings(
        **(facts["settings"] | {"size": tuple(facts["settings"]["size"]), "tiles": tiles and tuple(tiles)})
    )
    model = ExportedModel(settings, nn.Identity(), nn.Identity())  # type: ignore[arg-type]  # both are in the graph
    model.runtime, model.facts = runtime, facts
    model.sha256 = facts["model_sha256"][:12]
    model.scores, model.held_out, model.trained_on = facts["scores"], set(facts["held_out"]), facts["trained_on"]
    model.max_false_reject = facts["max_false_reject"]
    model.own_masks = facts.get("own_masks", False)
    if facts.get("tiles"):
        beside = path.with_suffix(TILE_PART + path.suffix)
        model.tile_runtime = runtimes.opened(beside)
        if json.loads(model.tile_runtime.facts)["model_sha256"] != facts["model_sha256"]:
            raise MambaADError(f"{shown(beside)} is of another model than {shown(path)}: export the model again")
        model.tiles = {name: _tiles(own) for name, own in facts["tiles"].items()}
    model.rois = {
        name: roi.decoded(np.frombuffer(base64.b64decode(text), np.uint8))
        for name, text in facts.get("regions", {}).items()
    }
    return model


def _tiles(facts: dict[str, Any]) -> Tiles:
    both = Fusion(*(Witness(*one) for one in facts["fusion"]))
    return Tiles(Memory(*[torch.empty(0)] * len(Memory._fields)), torch.tensor(facts["expected"]), both)
