"""A model of PyTorch modules as a scorer: recognise what is not told, then judge each image as one of its product.

Letters: b batch, c channels, h × w positions of a stage, H × W pixels of a map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.loading import Input, at_size, on_device
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.inspection.explaining import explained
from mambaad_cli.inspection.explanation import Explanation
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Learnt, Products
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.scorer import Judgement, on_image, with_tiles
from mambaad_cli.model import compiled_encoder, onnx_encoder
from mambaad_cli.model.compiled_encoder import CompiledEncoder
from mambaad_cli.model.encoder import Encoder, for_inference
from mambaad_cli.model.onnx_encoder import OnnxEncoder
from mambaad_cli.side_by_side import threads_can_differ

FEW_IMAGES = 16  # that are scored before ONNX Runtime has started


class Settled(NamedTuple):
    """An image at the size of its product and through its region of interest: what is judged, and as what."""

    image: Input
    product: str
    recognised: Recognised | None  # where the product was not told
    coarse: list[Tensor] | None  # its features (1, c, h, w) that it was recognised by, where they are of this image


@dataclass(frozen=True)
class TorchScorer:
    """Scores by a model record. Encoders made for inference are shared by all scorers that come from this one."""

    record: ModelRecord
    runtime: str = "torch"  # of the encoder: torch, onnxruntime or auto, see `expecting`
    masks: MaskFolder | None = None  # of each photo
    network: Network | None = field(default=None, repr=False)  # with an encoder for inference; None: the record's
    _encoders: dict[str, Encoder] = field(default_factory=dict, repr=False, compare=False)

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.record.network.settings, self.record.products, self.masks)

    @property
    def products(self) -> Products:
        return self.record.products

    @property
    def sha256(self) -> str:
        return self.record.sha256

    @property
    def side_by_side(self) -> int:
        """As many as torch has threads; one on a GPU, where the encoder has threads of its own, and on Windows."""
        network = self.network or self.record.network
        alone = network.device != "cpu" or network.encoder.own_threads or not threads_can_differ()
        return 1 if alone else torch.get_num_threads()

    def with_record(self, record: ModelRecord) -> "TorchScorer":
        """This scorer after the same network was calibrated again."""
        return replace(self, record=record, network=None)

    def expecting(self, images: int | None) -> "TorchScorer":
        """This scorer with a faster encoder: the same scores, but for rounding.

        Its batch norms are folded into the convolutions. The runtime `torch` has each block of the default encoder
        computed by one kernel where the kernels were compiled. With `onnxruntime` ONNX Runtime runs the encoder; with
        `auto` only where there is no kernel and where it can, and not for only a few images, because it takes a moment
        to start.

        Raises MambaADError where ONNX Runtime is asked for, but cannot run it.
        """
        network = inference_network(self.record.network, self._encoders, self.runtime, images)
        return replace(self, network=network)

    @torch.inference_mode()
    def judge(self, images: Sequence[Input], told: Sequence[str], distances: bool = False) -> list[Judgement]:
        network = self.network or self.record.network
        settled = self._settled(network, images, told)
        judgements: dict[int, Judgement] = {}
        for group in _by_size(settled):
            features = _features(network, [settled[i] for i in group])
            maps = self._maps(network, features, [settled[i] for i in group])
            away = self._distances(network, features, settled, group) if distances else {}
            for i, anomaly_map in zip(group, maps.float().cpu(), strict=True):
                image, product, recognised, _ = settled[i]
                judgement = Judgement(image, product, anomaly_map, None, recognised, away.get(i))
                judgements[i] = self._in_tiles(network, on_image(judgement, anomaly_map))
        return [judgements[i] for i in range(len(images))]

    @torch.inference_mode()
    def explain(self, judgement: Judgement, regions: Sequence[Region]) -> tuple[Explanation, ...]:
        """Why each region is anomalous. The image goes through the network once more, so that scoring keeps nothing."""
        product = self.products.get(judgement.product)
        learnt = self._any_learnt() if product is None else product.learnt
        return explained(self.network or self.record.network, learnt, judgement, regions)

    def _settled(self, network: Network, images: Sequence[Input], told: Sequence[str]) -> list[Settled]:
        """Which product each image shows, and the image as that product is seen."""
        settled = [Settled(image, name, None, None) for image, name in zip(images, told, strict=True)]
        recogniser = self.record.recogniser
        untold = [i for i, name in enumerate(told) if not name]
        if recogniser is None or not untold:
            return settled
        if any(product.region is not None for product in self.products.values()):
            for i in untold:
                settled[i] = self._through_each_region(network, images[i])
            return settled
        for group in _by_size(settled, untold):
            coarse = network.coarse_features(_stacked(network, [images[i] for i in group]))
            known = recogniser(network.signature(coarse).cpu(), self.record.unknown_limit)
            for place, (i, recognised) in enumerate(zip(group, known, strict=True)):
                settled[i] = self._as_recognised(images[i], recognised, [stage[place, None] for stage in coarse])
        return settled

    def _as_recognised(self, image: Input, recognised: Recognised, coarse: list[Tensor]) -> Settled:
        size = self.preparation.input_size(recognised.name)
        if recognised.known and image.source is not None and tuple(image.pixels.shape[1:]) != size:
            return Settled(self.preparation.seen_as(image, recognised.name), recognised.name, recognised, None)
        return Settled(image, recognised.name, recognised, coarse)

    def _through_each_region(self, network: Network, image: Input) -> Settled:
        """Each product's signature is of its own region alone, so the image is seen through the region of each."""
        recogniser = self.record.recogniser
        assert recogniser is not None
        views = [self.preparation.seen_as(image, name) for name in recogniser.names]
        coarse = [network.coarse_features(_stacked(network, [view])) for view in views]
        rows = [recogniser.distances(network.signature(stages).cpu())[0] for stages in coarse]
        recognised = recogniser.nearest(
            torch.stack([row[i] for i, row in enumerate(rows)])[None], self.record.unknown_limit
        )[0]
        place = recogniser.names.index(recognised.name)
        return Settled(views[place], recognised.name, recognised, coarse[place])

    def _maps(self, network: Network, features: list[Tensor], settled: Sequence[Settled]) -> Tensor:
        """Anomaly maps (b, H, W) of images of one size, each by what was learnt of its product."""
        height, width = settled[0].image.pixels.shape[1:]
        size = network.map_size((height, width))
        maps = features[0].new_empty(len(settled), *size, dtype=torch.float32)
        names = [one.product for one in settled]
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            of_product = features if len(rows) == len(names) else [stage[rows] for stage in features]
            inside = _regions([settled[i].image for i in rows], size)
            learnt = self.products[name].learnt if name in self.products else self._any_learnt()
            maps[rows] = network.anomaly_maps(of_product, size, learnt, inside)
        return maps

    def _any_learnt(self) -> Learnt:
        """What is taken for good where the product is not known: that of the first one."""
        return next((product.learnt for product in self.products.values()), Learnt())

    def _distances(
        self, network: Network, features: list[Tensor], settled: Sequence[Settled], group: Sequence[int]
    ) -> dict[int, float]:
        """Squared distance of each image from what its product looks like."""
        recogniser = self.record.recogniser
        if recogniser is None:
            return {}
        rows = recogniser.distances(network.signature(features).cpu())
        names = recogniser.names
        return {
            i: float(row[names.index(settled[i].product)])
            for i, row in zip(group, rows, strict=True)
            if settled[i].product in names
        }

    def _in_tiles(self, network: Network, judgement: Judgement) -> Judgement:
        product = self.products.get(judgement.product)
        if product is None or product.learnt.tiles is None:
            return judgement
        tiles = product.learnt.tiles
        return with_tiles(judgement, tiles, network.tile_view(tiles.memory))


def inference_network(
    network: Network, encoders: dict[str, Encoder], runtime: str = "torch", images: int | None = None
) -> Network:
    """A network with an encoder made for inference, from those that were made before, or a new one among them.

    runtime and images: see TorchScorer.expecting.
    """
    if isinstance(network.encoder, (OnnxEncoder, CompiledEncoder)):
        return network
    exact = network.precision == "fp32"
    compiled = exact and compiled_encoder.suits(network.encoder)
    wanted = runtime
    if runtime == "auto":
        many = images is None or images > FEW_IMAGES
        able = exact and onnx_encoder.installed() and onnx_encoder.suits(network.encoder)
        wanted = "onnxruntime" if many and able and not compiled else "torch"
    if "folded" not in encoders:
        encoders["folded"] = for_inference(network.encoder)
    if wanted not in encoders:
        encoders[wanted] = _running(encoders["folded"], wanted, compiled, may_fail=runtime == "auto")
    return network.with_encoder(encoders[wanted])


def _running(folded: Encoder, runtime: str, compiled: bool, may_fail: bool) -> Encoder:
    """A folded encoder as a runtime runs it."""
    if runtime == "torch":
        return CompiledEncoder(folded) if compiled else folded
    try:
        return onnx_encoder.with_onnx_runtime(folded)
    except MambaADError:
        if not may_fail:
            raise
        return folded


def _by_size(settled: Sequence[Settled], chosen: Sequence[int] | None = None) -> Iterator[list[int]]:
    """The images that can go through the network together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(settled)) if chosen is None else chosen:
        sizes.setdefault(tuple(settled[i].image.pixels.shape), []).append(i)
    yield from sizes.values()


def _features(network: Network, settled: Sequence[Settled]) -> list[Tensor]:
    """Of images of one size; what they were recognised by is not computed again."""
    images = _stacked(network, [one.image for one in settled])
    coarse = [one.coarse for one in settled]
    if all(stages is not None for stages in coarse):
        joined = [torch.cat(stages) for stages in zip(*(stages for stages in coarse if stages), strict=True)]
        return network.closely(images, joined)
    return network.features(images)


def _stacked(network: Network, images: Sequence[Input]) -> Tensor:
    return on_device(torch.stack([image.pixels for image in images]), network.device)


def _regions(images: Sequence[Input], size: tuple[int, int]) -> Tensor | None:
    """The regions of interest in the maps (b, *size) of images of one size, bool; None where all of each counts."""
    if all(image.inside is None for image in images):
        return None
    whole = torch.ones(images[0].pixels.shape[1:], dtype=torch.bool)
    return at_size(torch.stack([whole if image.inside is None else image.inside for image in images]), size)
