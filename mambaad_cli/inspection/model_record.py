"""Everything that a model file holds: one frozen record, made by fit, changed by calibrate, read by score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Product, Size
from mambaad_cli.inspection.recognition import MARGIN, Recogniser
from mambaad_cli.model.anomaly_map import ResidualStatistics
from mambaad_cli.model.memory import Memory


@dataclass(frozen=True, eq=False)
class Example:
    """A good image as the decoder sees it, kept in the model file so that a product can be added to it later."""

    class_name: str
    held_out: bool
    box: tuple[int, int, int, int] | None  # top, left, height, width of the image in it, if it was letterboxed
    encoded: Tensor  # uint8: the bytes of an image file
    inside: Tensor | None = None  # uint8, the bytes of a PNG: its own region of interest


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """A network and what it knows of its products."""

    network: Network
    products: Mapping[str, Product] = field(default_factory=dict)
    recogniser: Recogniser | None = None  # distinguishes the products, if there are several
    examples: tuple[Example, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)  # how it was trained; empty if not known
    sha256: str = ""  # the first 12 hex digits, of the file that it was read from

    @property
    def unknown_limit(self) -> float:
        """Squared distance beyond which an image shows no product; without limit where none was measured."""
        measured = [product.calibration for product in self.products.values() if product.calibration is not None]
        farthest = [calibration.farthest for calibration in measured if calibration.farthest is not None]
        return MARGIN * max(farthest) if farthest else math.inf

    @property
    def calibrated(self) -> bool:
        """Whether the threshold of any product is known."""
        return any(product.calibration is not None for product in self.products.values())

    def with_products(self, *products: Product) -> "ModelRecord":
        """The same with other products of these names, or more products."""
        return replace(self, products={**self.products, **{product.name: product for product in products}})

    def at_size(self, size: Size) -> "ModelRecord":
        """The same with one size for all products. Calibrations of another size are dropped.

        Raises MambaADError for a size that the encoder cannot take.
        """
        self.network.encoder.check_size(size)
        settings = replace(self.network.settings, size=size, own_aspect=False)
        products = {name: product.under(size=size) for name, product in self.products.items()}
        return replace(self, network=replace(self.network, settings=settings), products=products)

    def at_precision(self, precision: str) -> "ModelRecord":
        """The same with products of matrices of another precision."""
        return replace(self, network=replace(self.network, precision=precision))

    def to(self, device: str) -> "ModelRecord":
        """The same on another device; the network's tensors are moved in place."""
        self.network.to(device)
        return replace(self, products={name: on_device(product, device) for name, product in self.products.items()})


def on_device(product: Product, device: str) -> Product:
    """The same product with its tensors on another device."""
    learnt = product.learnt
    moved = replace(
        learnt,
        statistics=tuple(ResidualStatistics(*(part.to(device) for part in scale)) for scale in learnt.statistics),
        memories=tuple(_moved(memory, device) for memory in learnt.memories),
        known=learnt.known
        and learnt.known._replace(classifiers=tuple(classifier.to(device) for classifier in learnt.known.classifiers)),
        tiles=learnt.tiles and learnt.tiles._replace(memory=_moved(learnt.tiles.memory, device)),
    )
    return replace(product, learnt=moved)


def _moved(memory: Memory, device: str) -> Memory:
    return Memory(*(part.to(device) for part in memory))
