"""A fitted model as one network, from images to verdicts: what is known of good images becomes its constants.

It differs from `FittedModel` only where a graph cannot branch: each image takes the numbers of its product from tables.

Letters: n images, k products, H × W pixels, h × w positions, p positions of an image, c channels, m patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.data.loading import at_size, blank_outside, placed
from mambaad_cli.export.judgement import Found, Judgement
from mambaad_cli.export.tables import Memories, Weights
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.recognition import signature
from mambaad_cli.inspection.tiles import STRIDE
from mambaad_cli.model.anomaly_map import Residual, ResidualStatistics, fuse, local_contrast, standardised_distances
from mambaad_cli.model.memory import close_patches, fuse_looks, looks_of, patches_of


class WholeModel(nn.Module):
    """`model` for images of one size, (height, width).

    With `class_name` all images show this product; otherwise any of the model's, which must all have that size.
    """

    visible: Tensor  # (H, W) bool: the region of interest in the image
    counting: Tensor  # and in the map
    row_means: Tensor  # (h, H) and
    column_means: Tensor  # (w, W): average an image's region of interest to that of its map

    def __init__(self, model: FittedModel, size: tuple[int, int], class_name: str | None = None) -> None:
        super().__init__()
        self.products = products(model) if class_name is None else [class_name]
        self.encoder, self.detector = model.encoder, model.detector
        self.letterbox = model.settings.letterbox
        self.size, self.map_size = size, model.map_size(size)
        self.recogniser = model.recogniser if len(self.products) > 1 else None
        self.takes_told = len(self.products) > 1  # the input `told`
        self.settings, self.detail = model.settings, model.settings.detail
        self.two_looks = model.settings.two_looks
        for name, matrix in self._resizing().items():
            self.register_buffer(name, matrix, persistent=False)
        described = [name for name in self.products if name in model.described]
        if model.described and described != self.products:
            raise MambaADError("the model does not know what all of its products look like: fit it anew")
        fusion = [model.fusion.get(name) for name in self.products]
        self.weights = Weights(fusion)
        self.statistics = _stacked(model, self.products) if model.statistics and self.weights.decoder else None
        memories = [model.memories[name] for name in self.products] if model.memories and self.weights.memory else []
        looks = zip(zip(*memories, strict=True), self._patch_grids(), strict=True) if memories else ()
        self.memories = nn.ModuleList(Memories(own, grid) for own, grid in looks)
        self.judgement = Judgement(model, self.products)
        self.takes_inside = model.own_masks  # the input `inside`
        region = model.rois.get(self.products[0])
        self.has_region = region is not None and not model.own_masks
        if region is not None and self.has_region:
            inside = placed(region, size, None)
            self.register_buffer("visible", inside, persistent=False)
            self.register_buffer("counting", at_size(inside, self.map_size), persistent=False)
        if self.takes_inside:
            for name, side, smaller in zip(("row_means", "column_means"), size, self.map_size, strict=True):
                self.register_buffer(name, _averaging_matrix(side, smaller), persistent=False)

    def forward(
        self, image: Tensor, told: Tensor | None = None, box: Tensor | None = None, inside: Tensor | None = None
    ) -> Found:
        """
        image: (n, H, W, 3) RGB in 0 … 255, uint8 or float32.
        told: (n,) int64, the place of each image's product in `products`; −1 has it recognised.
        box: (n, 4) int64: top, left, height, width of each image in its letterbox.
        inside: (n, H, W) bool: the region of interest in each image.
        """
        pixels = image.permute(0, 3, 1, 2).float() / 255
        if inside is not None:
            pixels = blank_outside(pixels, inside[:, None])
        elif self.has_region:
            pixels = blank_outside(pixels, self.visible)
        features = self._features(pixels)
        told = image.new_zeros(image.shape[0], dtype=torch.int64) if told is None else told
        seen, certainty, known = self._recognised(features, told)
        anomaly_map = self._map(features, seen.clamp(min=0))
        if inside is not None or self.has_region:
            counting = self.counting if inside is None else self._at_map_size(inside)
            least = torch.where(counting, anomaly_map, torch.inf).amin((1, 2), keepdim=True)
            anomaly_map = torch.where(counting, anomaly_map, least)
        return self.judgement(anomaly_map, self._inside(box), seen, certainty, known)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """As FittedModel.features; images are scaled by matrices, because runtimes differ in how they scale."""
        fine = self.encoder(pixels)
        if self.detail == 1:
            return fine
        if self.two_looks:
            return [*self.encoder(self._scaled(pixels, 0)), close_patches(fine, self.settings.binomial)]
        return [*(self._scaled(stage, i) for i, stage in enumerate(fine)), *fine[-2:]]

    def _scaled(self, stage: Tensor, i: int) -> Tensor:
        rows, columns = getattr(self, f"rows_{i}"), getattr(self, f"columns_{i}")
        # as one row of planes: OpenVINO 2026 takes what is done to each channel afterwards for a part of the product
        return (rows @ stage.flatten(0, 1) @ columns.T).unflatten(0, (-1, stage.shape[1]))

    def _resizing(self) -> dict[str, Tensor]:
        if self.detail == 1:
            return {}
        matrices = {}
        for i, stride in enumerate((1,) if self.two_looks else self.detector.strides):
            for name, side, smaller in zip(("rows", "columns"), self.size, self.map_size, strict=True):
                matrices[f"{name}_{i}"] = _resizing_matrix(-(-side // stride), smaller // stride)
        return matrices

    def _at_map_size(self, inside: Tensor) -> Tensor:
        """Regions of interest (n, H, W) at the size of the map, as `loading.at_size`."""
        share = self.row_means @ inside.float() @ self.column_means.T
        return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5) - 1e-6  # a half is not always exact here

    def _patch_grids(self) -> list[tuple[int, int]]:
        """Positions of the patches that the memory compares in each look, as `looks_of` has them."""
        *_, fine, coarse = self.detector.strides
        looks = [(self.map_size, fine), (self.size, coarse)] if self.two_looks else [(self.size, fine)]
        return [(-(-height // stride), -(-width // stride)) for (height, width), stride in looks]

    def _recognised(self, features: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Product, certainty and whether it is known, of each image; where it is told there is no certainty."""
        nan = torch.full_like(told, torch.nan, dtype=torch.float32)
        if self.recogniser is None:
            return told, nan, told == told
        places = torch.tensor([self.products.index(name) for name in self.recogniser.names])
        known_by = signature(features[:-1] if self.two_looks else features)
        far, nearest = self.recogniser.distances(known_by).topk(2, largest=False)
        given = told >= 0
        certainty = torch.where(given, nan, 1 - far[:, 0] / far[:, 1])
        return torch.where(given, told, places[nearest[:, 0]]), certainty, given | (far[:, 0] <= self.recogniser.limit)

    def _map(self, features: list[Tensor], product: Tensor) -> Tensor:
        """(n, H, W), as FittedModel.maps_of."""
        for_decoder = features if self.detail == 1 else features[: -1 if self.two_looks else -2]
        if self.statistics is None and not self.memories:
            return self.detector.anomaly_map(for_decoder, self.map_size)
        parts = []
        if self.statistics is not None:
            distances = self._decoder_distances(self.detector.residuals(for_decoder), product)
            parts.append(self.weights.of_decoder(self._contrasted(fuse(distances, self.map_size)), product))
        if self.memories:
            looks = zip(self.memories, looks_of(features, self.two_looks), strict=True)
            unusual = [memory(patches, product) for memory, patches in looks]
            found = fuse_looks(unusual, self.map_size, self.settings.far_weight, self.settings.memory_sigma)
            parts.append(self.weights.of_memory(self._contrasted(found), product))
        return parts[0] + parts[1] if len(parts) > 1 else parts[0]

    def _contrasted(self, maps: Tensor) -> Tensor:
        return local_contrast(maps, self.settings.local_contrast)

    def _decoder_distances(self, found: Sequence[Residual], product: Tensor) -> list[Tensor]:
        """Each image's residuals, standardised by the statistics of its product."""
        assert self.statistics is not None
        if len(self.products) == 1:
            return standardised_distances(found, [ResidualStatistics(*(t[0] for t in one)) for one in self.statistics])
        own = [ResidualStatistics(*(table[product] for table in one)) for one in self.statistics]
        return torch.vmap(standardised_distances)(list(found), own)

    def _inside(self, box: Tensor | None) -> Tensor | None:
        """Which values of the map lie on the image (n, H, W), where it is letterboxed."""
        if box is None:
            return None
        top, left, height, width = box[:, :, None, None].unbind(1)
        rows, columns = (torch.arange(side) for side in self.map_size)
        rows, columns = rows[:, None], columns[None]
        return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


class TileNetwork(nn.Module):
    """How unusual each position of tiles of one product is: what `tiles.tile_distances` gives."""

    usual: Tensor

    def __init__(self, model: FittedModel, class_name: str) -> None:
        super().__init__()
        memory = model.tiles[class_name].memory
        self.size = height, width = model.tile_size
        self.encoder, self.products = model.encoder, [class_name]
        self.memory = Memories([memory], (height // STRIDE, width // STRIDE))
        self.register_buffer("usual", memory.expected.view(()), persistent=False)

    def forward(self, tile: Tensor) -> Tensor:
        """tile: (n, H, W, 3) RGB in 0 … 255, uint8 or float32. Returns (n, r, c)."""
        patches = patches_of(self.encoder(tile.permute(0, 3, 1, 2).float() / 255))
        return self.memory.distances(patches, tile.new_zeros(tile.shape[0], dtype=torch.int64)) / self.usual


def products(model: FittedModel) -> list[str]:
    """The products of a model, those it can describe first, as FittedModel does; [""] where it knows none by name."""
    return list(dict.fromkeys([*model.described, *model.trained_on, *model.scores])) or [""]


def _stacked(model: FittedModel, names: Sequence[str]) -> list[ResidualStatistics]:
    """The statistics of each scale, of all products: (k, …)."""
    scales = zip(*(model.statistics[name] for name in names), strict=True)
    return [ResidualStatistics(*(torch.stack(part) for part in zip(*own, strict=True))) for own in scales]


def _averaging_matrix(side: int, smaller: int) -> Tensor:
    """(smaller, side): what averages a side as `F.adaptive_avg_pool2d` does.

    >>> _averaging_matrix(5, 2).tolist()
    [[0.3333333432674408, 0.3333333432674408, 0.3333333432674408, 0.0, 0.0], \
[0.0, 0.0, 0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]
    """
    return F.adaptive_avg_pool1d(torch.eye(side), smaller).T.contiguous()


def _resizing_matrix(side: int, smaller: int) -> Tensor:
    """(smaller, side): what scales a side as `F.interpolate` does, bilinear and antialiased.

    >>> _resizing_matrix(4, 2).tolist()
    [[0.4285714328289032, 0.4285714328289032, 0.1428571492433548, 0.0], \
[0.0, 0.1428571492433548, 0.4285714328289032, 0.4285714328289032]]
    """
    return F.interpolate(torch.eye(side)[None, None], size=(smaller, side), mode="bilinear", antialias=True)[0, 0]
