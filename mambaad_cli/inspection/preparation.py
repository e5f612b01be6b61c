"""How photos of each product are read and prepared for a model: in fit and in score alike.

Letters: h × w pixels of a photo.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import loading, roi
from mambaad_cli.data.loading import Input, RegionOf, SizeOf, Wanted
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.inspection.product import Products, Size
from mambaad_cli.model.settings import Settings, scaled_size


@dataclass(frozen=True)
class Preparation:
    """The sizes and regions of interest of a model's products."""

    settings: Settings
    products: Products
    masks: MaskFolder | None = None  # of each photo, where the products have own masks

    def input_size(self, name: str) -> Size:
        """Height and width that photos of this product are scaled to; of one that is not known, the model's own."""
        size = self.products[name].size if name in self.products else self.settings.size
        settings = self.settings
        return scaled_size(size, settings.detail, settings.step) if settings.detail != 1 else size

    def size_for(self, name: str, shape: Size) -> Size:
        """The same for a photo (h, w). Of an unknown product: the size whose aspect is nearest to the photo's."""
        sizes = list(dict.fromkeys(self.input_size(known) for known in self.products))
        if name or len(sizes) < 2:
            return self.input_size(name or next(iter(self.products), ""))
        aspect = math.log(shape[1] / shape[0])
        return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))

    @property
    def has_regions(self) -> bool:
        """Whether not all of every photo counts."""
        return self.own_masks or any(product.region is not None for product in self.products.values())

    @property
    def own_masks(self) -> bool:
        """Whether each photo comes with a mask of its own."""
        return self.masks is not None or any(product.own_masks for product in self.products.values())

    @property
    def differ(self) -> bool:
        """Whether a photo has to be prepared anew once its product is recognised."""
        return len({self.input_size(name) for name in self.products}) > 1 or any(
            product.region is not None for product in self.products.values()
        )

    def region(self, name: str, path: Path, shape: Size) -> np.ndarray | None:
        """The region of interest in a photo (h, w) of a product: a mask of bool of any size; None where all counts.

        Raises ImageError where the photo lacks a mask of its own, and MambaADError where no folder of masks is known.
        """
        region = self.products[name].region if name in self.products else None
        if not self.own_masks:
            return region
        if self.masks is None:
            raise MambaADError("the model was fitted with a mask for each photo: give their folder with --roi-dir")
        mask = self.masks.of(path, shape)
        return mask if region is None else mask & roi.scaled(region, shape)

    def wanted(self, names: Sequence[str] | str, pictures: bool = False, size: Size | SizeOf | None = None) -> Wanted:
        """How files of products are read: `names` of all of them, or of each; "" where it is still to be recognised.

        pictures: keep them at their own size, for overlays. size: another one than that of the products.
        """

        def name_of(place: int) -> str:
            return names if isinstance(names, str) else names[place]

        def size_of(place: int, shape: Size) -> Size:
            return self.size_for(name_of(place), shape)

        def region_of(place: int, path: Path, shape: Size) -> np.ndarray | None:
            return self.region(name_of(place), path, shape)

        every = [self.input_size(name) for name in self.products] or [self.input_size("")]
        largest = max(height for height, _ in every), max(width for _, width in every)
        untold = not names if isinstance(names, str) else not all(names)
        sources = self.settings.tiles is not None or (untold and self.differ)
        region: RegionOf | None = region_of if self.has_regions else None
        scale = self.settings.scale if self.settings.tiles else 0.0
        return Wanted(size or size_of, self.settings.letterbox, pictures, sources, largest, region, scale)

    def of_picture(self, picture: np.ndarray, name: str, path: Path | None = None) -> Input:
        """A picture (h, w, 3) in memory as the model takes it. path: by which its mask is found, where it has one."""
        shape = (picture.shape[0], picture.shape[1])
        region = self.region(name, path or Path(), shape) if self.has_regions else None
        return loading.prepared(picture, self.size_for(name, shape), self.settings.letterbox, keep=True, region=region)

    def seen_as(self, image: Input, name: str) -> Input:
        """An image, prepared without knowing its product, as the model sees it if it shows a certain one.

        Its region of interest is that of the product, as far as it lies in the image's own mask, if there is one.
        """
        assert image.source is not None
        region, mask = self.products[name].region, image.region
        if region is None or mask is None:
            region = mask if region is None else region
        else:
            region = mask & roi.scaled(region, (mask.shape[0], mask.shape[1]))
        size = self.input_size(name)
        prepared = loading.prepared(image.source, size, self.settings.letterbox, keep=True, region=region)
        return prepared._replace(picture=image.picture, shape=image.shape)
