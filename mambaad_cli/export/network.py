"""A model as one network, from images to verdicts: what is known of good images becomes its constants.

It differs from `inspection.network` only where a graph cannot branch or scale: each image takes the numbers of its
product from tables, and scaling is a product of matrices. Regions of interest enter where they enter there.

Letters: n images, k products, H × W pixels, h × w positions of a stage, r × c positions of a tile.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.data.loading import blank_outside, placed
from mambaad_cli.export.judgement import GraphOutputs, Verdicts
from mambaad_cli.export.resizing import at_size, scaled
from mambaad_cli.export.tables import FusionTable, KnownDefectsTable, MemoryTable, StatisticsTable
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Learnt, Product, Size
from mambaad_cli.inspection.tiles import STRIDE
from mambaad_cli.model.memory import close_patches, fuse_looks, patches_of
from mambaad_cli.model.settings import STEP


class WholeModel(nn.Module):
    """A model for images of one size.

    With `class_name` all images show this product; otherwise any of the model's, which must all have one size.
    """

    visible: Tensor  # (1, H, W) bool: the region of interest of the only product

    def __init__(self, record: ModelRecord, class_name: str | None = None) -> None:
        super().__init__()
        self.products = names_of(record, class_name)
        products = [record.products.get(name) or Product(name, record.network.settings.size) for name in self.products]
        self.network = replace(record.network, precision="fp32")
        self.encoder, self.detector = self.network.encoder, self.network.detector  # their weights are constants
        self.settings = self.network.settings
        self.size = input_size(record, class_name)
        self.map_size = self.network.map_size(self.size)
        self.recogniser = record.recogniser if len(products) > 1 else None
        self.unknown_limit = record.unknown_limit

        learnt = [product.learnt for product in products]
        _check_alike(learnt)
        self.fusion = FusionTable([of_product.fusion for of_product in learnt])
        has_decoder = bool(learnt[0].statistics) and self.fusion.has_decoder
        decoder_only = learnt[0].fusion is None and has_decoder  # as in Network.anomaly_maps
        has_memory = bool(learnt[0].memories) and self.fusion.has_memory and not decoder_only
        self.statistics = StatisticsTable(learnt) if has_decoder else None
        views = zip(*(of_product.memories for of_product in learnt), strict=True) if has_memory else ()
        self.memories = nn.ModuleList(map(MemoryTable, views, self._patch_grids()))
        known = [of_product.known for of_product in learnt]
        channels = sum(self.encoder.channels[-2:])
        self.known = KnownDefectsTable(known, len(self.memories), channels) if any(known) else None
        self.verdicts = Verdicts(record.products, self.products)

        self.takes_told = len(products) > 1  # the input `told`
        self.takes_box = self.settings.letterbox
        self.takes_inside = any(product.own_masks for product in products)
        region = products[0].region
        self.has_region = region is not None and not self.takes_inside
        if region is not None and self.has_region:
            self.register_buffer("visible", placed(region, self.size, None)[None], persistent=False)

    def forward(
        self, image: Tensor, told: Tensor | None = None, box: Tensor | None = None, inside: Tensor | None = None
    ) -> GraphOutputs:
        """
        image: (n, H, W, 3) RGB in 0 … 255, uint8 or float32.
        told: (n,) int64, the place of each image's product in `products`; −1 has it recognised.
        box: (n, 4) int64: top, left, height, width of each image in its letterbox.
        inside: (n, H, W) bool: the region of interest in each image.
        """
        pixels = image.permute(0, 3, 1, 2).float() / 255
        if self.has_region:
            inside = self.visible
        if inside is not None:
            pixels = blank_outside(pixels, inside[:, None])
            inside = at_size(inside, self.map_size)
        features = self._features(pixels)
        told = image.new_zeros(image.shape[0], dtype=torch.int64) if told is None else told
        product, certainty, known = self._recognised(features, told)
        row = product.clamp(min=0)
        anomaly_map = self._maps(features, row, inside)
        if self.known is not None:
            anomaly_map = self.known(anomaly_map, self._likeness(features, row, inside), row)
        return self.verdicts(anomaly_map, self._on_image(box), product, certainty, known)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """As Network.features."""
        fine: list[Tensor] = self.encoder(pixels)
        if self.settings.detail == 1:
            return fine
        if self.settings.two_looks:
            return [*self.encoder(scaled(pixels, self.map_size)), close_patches(fine, self.settings.binomial)]
        grids = [self._grid(self.map_size, stride) for stride in self.detector.strides]
        return [*(scaled(stage, grid) for stage, grid in zip(fine, grids, strict=True)), *fine[-2:]]

    def _patch_grids(self) -> list[Size]:
        """Positions of the patches that the memory compares in each view, as `looks_of` has them."""
        *_, fine, coarse = self.detector.strides
        views = [(self.map_size, fine), (self.size, coarse)] if self.settings.two_looks else [(self.size, fine)]
        return [self._grid(size, stride) for size, stride in views]

    def _grid(self, size: Size, stride: int) -> Size:
        """Positions of a stage in images of a size: where a stride of 16 covers `step` pixels."""
        pixels = stride * self.settings.step
        return -(-size[0] * STEP // pixels), -(-size[1] * STEP // pixels)

    def _recognised(self, features: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Product, certainty and whether it is known, of each image; where it is told there is no certainty."""
        nan = torch.full_like(told, torch.nan, dtype=torch.float32)
        if self.recogniser is None:
            return told, nan, told == told
        places = torch.tensor([self.products.index(name) for name in self.recogniser.names])
        distances = self.recogniser.distances(self.network.signature(features))
        far, nearest = distances.topk(2, largest=False)
        is_told = told >= 0
        certainty = torch.where(is_told, nan, 1 - far[:, 0] / far[:, 1].clamp(min=1e-12))
        return torch.where(is_told, told, places[nearest[:, 0]]), certainty, is_told | (far[:, 0] <= self.unknown_limit)

    def _maps(self, features: list[Tensor], product: Tensor, inside: Tensor | None) -> Tensor:
        """(n, H, W), as Network.anomaly_maps.

        inside: (n or 1, H, W) bool, the region of interest in each map; None: all of it.
        """
        if self.statistics is None and not self.memories:
            return Network.cold(self.network.published_maps(features, self.map_size), inside)
        parts = []
        if self.statistics is not None:
            scales = self.statistics(self.network.residuals(features), product)
            cold = [Network.cold(scale, _at_grid(inside, scale)) for scale in scales]
            parts.append(self.fusion.of_decoder(self.network.fused_scales(cold, self.map_size, inside), product))
        if self.memories:
            views = zip(self.memories, self.network.patches(features), strict=True)
            unusual = [memory(patches, product, _at_grid(inside, patches)) for memory, patches in views]
            parts.append(self.fusion.of_memory(self.network.memory_maps(unusual, self.map_size, inside), product))
        return parts[0] + parts[1] if len(parts) > 1 else parts[0]

    def _likeness(self, features: list[Tensor], product: Tensor, inside: Tensor | None) -> Tensor:
        """(n, H, W), as Network.known_defect_maps."""
        assert self.known is not None
        found = self.known.likenesses(self.network.patches(features), product)
        maps = fuse_looks(found, self.map_size, self.settings.far_weight, self.settings.memory_sigma)
        return Network.cold(maps, inside)

    def _on_image(self, box: Tensor | None) -> Tensor | None:
        """Which values of the map lie on the image (n, H, W), where it is letterboxed."""
        if box is None:
            return None
        top, left, height, width = box[:, :, None, None].unbind(1)
        rows, columns = (torch.arange(side) for side in self.map_size)
        rows, columns = rows[:, None], columns[None]
        return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


class TileNetwork(nn.Module):
    """How unusual each position of tiles of one product is: what the `distances` of a TileView give."""

    expected: Tensor

    def __init__(self, record: ModelRecord, class_name: str) -> None:
        super().__init__()
        tiles = record.products[class_name].learnt.tiles
        assert tiles is not None
        self.size = height, width = record.network.tile_size
        self.encoder, self.products = record.network.encoder, [class_name]
        self.memory = MemoryTable([tiles.memory], (height // STRIDE, width // STRIDE))
        self.register_buffer("expected", tiles.memory.expected.view(()), persistent=False)

    def forward(self, tile: Tensor) -> Tensor:
        """tile: (n, H, W, 3) RGB in 0 … 255, uint8 or float32. Returns (n, r, c)."""
        patches = patches_of(self.encoder(tile.permute(0, 3, 1, 2).float() / 255))
        return self.memory.distances(patches, tile.new_zeros(tile.shape[0], dtype=torch.int64)) / self.expected


def names_of(record: ModelRecord, class_name: str | None = None) -> list[str]:
    """The products of one file, in the order in which it numbers them; [""] of a model that knows none by name."""
    return (list(record.products) or [""]) if class_name is None else [class_name]


def input_size(record: ModelRecord, class_name: str | None = None) -> Size:
    """(height, width) of the images of one file. Raises MambaADError where its products have several sizes."""
    preparation = Preparation(record.network.settings, record.products)
    sizes = {preparation.input_size(name) for name in names_of(record, class_name)}
    if len(sizes) > 1:
        raise MambaADError(f"the products have {len(sizes)} sizes, a file has one: export each with --class NAME")
    return sizes.pop()


def _check_alike(learnt: Sequence[Learnt]) -> None:
    """Raises MambaADError for products that cannot share a graph, because not the same is known of each."""
    kinds = {(bool(each.statistics), bool(each.memories), each.fusion is None) for each in learnt}
    if len(kinds) > 1:
        raise MambaADError("the products were not all learnt in the same way: export each with --class NAME")


def _at_grid(inside: Tensor | None, values: Tensor) -> Tensor | None:
    """Regions of interest (n, H, W) at the positions of values (n, h, w, …)."""
    return None if inside is None else at_size(inside, (values.shape[1], values.shape[2]))
