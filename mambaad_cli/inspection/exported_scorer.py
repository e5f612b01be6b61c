"""A model that was exported, run by another runtime than PyTorch: a scorer whose graph judges whole photos itself.

Letters: n images, H × W pixels of the model's input.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.data.loading import Input
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.files import shown
from mambaad_cli.inspection import runtimes
from mambaad_cli.inspection.explanation import Explanation
from mambaad_cli.inspection.file_schema import ProductFacts
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Calibration, Conditions, Learnt, Product, Products, Size
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.runtimes import Arrays, Runtime
from mambaad_cli.inspection.scorer import Judgement, Stated, on_image, with_tiles
from mambaad_cli.inspection.tiles import Tiles, TileView
from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.memory import Memory
from mambaad_cli.model.settings import Settings, scaled_size

FORMAT = 2  # of the description in the file; newer formats are refused
TILE_PART = ".tile"  # before the ending of a file beside the model's: the network that looks at tiles
VERDICTS = ("good", "anomalous", "unknown", "uncalibrated", "error")  # by the number that the graph gives


@dataclass(frozen=True)
class ExportedScorer:
    """What `mambaad export` wrote. It predicts; what changes a model needs the one that it was made from."""

    runtime: Runtime
    facts: Mapping[str, Any]  # its description, see export.onnx_file.facts_of
    settings: Settings
    products: Products
    tile_runtime: Runtime | None = None  # of its network for tiles
    masks: MaskFolder | None = None  # of each photo

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.settings, self.products, self.masks)

    @property
    def sha256(self) -> str:
        return str(self.facts["model_sha256"])[:12]

    @property
    def names(self) -> list[str]:
        """The products that its graph numbers; [""] where it knows none by name."""
        return list(self.facts["products"])

    @property
    def input_size(self) -> Size:
        """Height and width of the images that its graph takes."""
        return self.preparation.input_size(self.names[0])

    @property
    def side_by_side(self) -> int:
        """One: the runtime has threads of its own."""
        return 1

    def expecting(self, images: int | None) -> "ExportedScorer":
        return self

    def judge(self, images: Sequence[Input], told: Sequence[str], distances: bool = False) -> list[Judgement]:
        """What the graph says of each image; products that are not told ("") are recognised. It gives no distances."""
        if not images:
            return []
        outputs = self._run(images, told)
        return [
            self._judgement(i, image, name, outputs) for i, (image, name) in enumerate(zip(images, told, strict=True))
        ]

    def explain(self, judgement: Judgement, regions: Sequence[Region]) -> tuple[Explanation, ...]:
        """Raises MambaADError: its graph gives no evidence but the map."""
        raise MambaADError("an exported model cannot explain its maps: take the model that it was made from")

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in 0 … 1 to anomaly maps (n, H, W), of the first product."""
        if tuple(images.shape[2:]) != self.input_size:
            height, width = self.input_size
            raise MambaADError(f"this exported model takes images of {width}x{height} pixels only")
        inputs = [Input(pixels, None, None, (0, 0)) for pixels in images]
        return torch.from_numpy(self._run(inputs, [""] * len(inputs))["map"])

    def _judgement(self, i: int, image: Input, told: str, outputs: Arrays) -> Judgement:
        threshold, p_value, certainty = (
            None if np.isnan(outputs[name][i]) else float(outputs[name][i])
            for name in ("threshold", "p_value", "certainty")
        )
        verdict, place = VERDICTS[outputs["verdict"][i]], int(outputs["product"][i])
        name = told or (self.names[place] if place >= 0 else "")
        recognised = None if certainty is None else Recognised(name, certainty, verdict != "unknown")
        anomaly_map = torch.from_numpy(outputs["map"][i])
        judgement = on_image(Judgement(image, name, anomaly_map, None, recognised), anomaly_map)
        tiles = self.products[name].learnt.tiles if name in self.products else None
        if tiles is not None and self.tile_runtime is not None:
            return with_tiles(judgement, tiles, TileView(self._tile_size, self.settings.scale, self._tile_distances))
        return judgement._replace(stated=Stated(threshold, p_value, verdict))

    @property
    def _tile_size(self) -> Size:
        assert self.settings.tiles is not None
        return self.settings.tiles

    def _tile_distances(self, tiles: Tensor) -> Tensor:
        assert self.tile_runtime is not None
        return torch.from_numpy(self.tile_runtime.run({"tile": self._pixels(tiles)})["distances"])

    def _run(self, images: Sequence[Input], told: Sequence[str]) -> Arrays:
        size, settings = self.input_size, self.settings
        seen = scaled_size(size, 1 / settings.detail, settings.step) if settings.detail != 1 else size
        whole_box = (0, 0, *seen)
        whole = torch.ones(size, dtype=torch.bool)
        values: Arrays = {
            "image": self._pixels(torch.stack([image.pixels for image in images])),
            "told": np.array([self.names.index(name) if name in self.names else -1 for name in told], np.int64),
            "box": np.array([image.box or whole_box for image in images], np.int64),
            "inside": np.stack([whole if image.inside is None else image.inside for image in images]),
        }
        return self.runtime.run({name: values[name] for name in self.runtime.inputs})

    def _pixels(self, images: Tensor) -> np.ndarray:
        """Images (n, 3, H, W) in 0 … 1 as its networks take them: (n, H, W, 3) in 0 … 255."""
        pixels = (images * 255).permute(0, 2, 3, 1).contiguous()
        return (pixels.round().byte() if self.facts["image"] == "uint8" else pixels).numpy()


def load(path: Path, masks: MaskFolder | None = None) -> ExportedScorer:
    """Read an exported model. Raises MambaADError as `runtimes.opened` does, and for one of another version."""
    runtime = runtimes.opened(path)
    facts = json.loads(runtime.facts)
    if facts["format"] > FORMAT:
        made = facts["mambaad"]
        raise MambaADError(f"{shown(path)} was made by a newer mambaad ({made}): upgrade this one ({__version__})")
    described, settings = described_products(facts), settings_of(facts)
    tile_runtime = None
    if settings.tiles is not None:
        beside = path.with_suffix(TILE_PART + path.suffix)
        tile_runtime = runtimes.opened(beside)
        if json.loads(tile_runtime.facts)["model_sha256"] != facts["model_sha256"]:
            raise MambaADError(f"{shown(beside)} is of another model than {shown(path)}: export the model again")
    products = {product.name: _product(product, facts) for product in described}
    return ExportedScorer(runtime, facts, settings, products, tile_runtime, masks)


def described_products(facts: Mapping[str, Any]) -> list[ProductFacts]:
    """What a file says of its products. Format 1 has what is measured of them in several tables."""
    if facts["format"] > 1:
        return msgspec.convert(facts["described"], list[ProductFacts])
    size, share = settings_of(facts).size, facts["max_false_reject"]
    own_masks = facts.get("own_masks", False)
    return [
        ProductFacts(
            name,
            size,
            images,
            own_masks=own_masks,
            calibration=Calibration(Conditions(size), tuple(facts["scores"][name]), name in facts["held_out"], share)
            if name in facts["scores"]
            else None,
        )
        for name, images in facts["trained_on"].items()
    ]


def settings_of(facts: Mapping[str, Any]) -> Settings:
    """The settings of an exported model, whose size is what the decoder sees."""
    settings = msgspec.convert(facts["settings"], Settings)
    if facts["format"] > 1 or settings.detail == 1:
        return settings
    return replace(settings, size=scaled_size(settings.size, 1 / settings.detail))


def _product(described: ProductFacts, facts: Mapping[str, Any]) -> Product:
    product = described.product()
    encoded = facts.get("regions", {}).get(product.name)
    region = None if encoded is None else roi.decoded(np.frombuffer(base64.b64decode(encoded), np.uint8))
    tiles = facts.get("tiles", {}).get(product.name)
    learnt = Learnt() if tiles is None else Learnt(tiles=_tiles(tiles))
    conditions = replace(product, region=region).conditions()
    measured = product.calibration and replace(product.calibration, conditions=conditions)
    return replace(product, region=region, learnt=learnt, calibration=measured)


def _tiles(facts: Mapping[str, Any]) -> Tiles:
    fusion = Fusion(*(Witness(*witness) for witness in facts["fusion"]))
    return Tiles(Memory(*[torch.empty(0)] * len(Memory._fields)), torch.tensor(facts["expected"]), fusion)
