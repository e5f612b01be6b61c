"""One training: its network, the products as they are planned, its recipe, where it runs, and who hears of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mambaad_cli.data.roi import MaskFolder, regions_of_interest
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Product, Products, Size
from mambaad_cli.inspection.recalibrate import check_region
from mambaad_cli.inspection.torch_scorer import inference_network
from mambaad_cli.model.encoder import Encoder
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.progress import Progress
from mambaad_cli.training.recipe import Recipe, RunOptions
from mambaad_cli.training.sizes import median_shape, own_size, shapes_of


@dataclass(frozen=True)
class Job:
    """What the steps of a training hand on."""

    network: Network
    products: Products  # at their sizes and with their regions of interest
    recipe: Recipe
    run: RunOptions
    progress: Progress
    masks: MaskFolder | None = None  # of each photo
    _encoders: dict[str, Encoder] = field(default_factory=dict, repr=False, compare=False)

    @property
    def preparation(self) -> Preparation:
        """How photos are read."""
        return Preparation(self.network.settings, self.products, self.masks)

    @property
    def fast(self) -> Network:
        """The network with an encoder for inference."""
        return inference_network(self.network, self._encoders, self.run.runtime)

    def input_size(self, name: str) -> Size:
        """Height and width that photos of a product are scaled to."""
        return self.preparation.input_size(name)

    def map_size(self, name: str) -> Size:
        """Height and width of the anomaly maps of a product."""
        return self.network.map_size(self.input_size(name))

    def by(self, recipe: Recipe) -> "Job":
        """The same training by another recipe."""
        return replace(self, recipe=recipe)


def planned_products(goods: GoodFiles, settings: Settings, known: Products | None = None) -> Products:
    """The products of a training before anything is learnt, those that are `known` already among them.

    A product that is not known gets its size from the shapes of its photos. Regions are those that are asked for; a
    known product without new photos keeps its own.

    Raises MambaADError for a region of a known product that reaches beyond the one that was learnt.
    """
    products = dict(known or {})
    shapes = shapes_of(goods.files, goods.classes)
    for name in dict.fromkeys(goods.classes):
        if name not in products:
            products[name] = _new_product(name, settings, shapes.get(name, []))
    with_photos = {name: products[name] for name in dict.fromkeys(goods.classes)}
    photo_shapes = {name: product.photo_shape for name, product in with_photos.items() if product.photo_shape}
    wished = goods.inside or goods.ignored
    regions = regions_of_interest(goods.inside, goods.ignored, photo_shapes) if wished else {}
    for name, product in with_photos.items():
        region = regions.get(name)
        if region is not None and known and name in known:
            check_region(product, region)
        products[name] = product.under(region=region, own_masks=goods.masks is not None)
    return products


def _new_product(name: str, settings: Settings, shapes: Sequence[Size]) -> Product:
    if not shapes:
        return Product(name, settings.size)
    budget = settings.size[0] * settings.size[1]
    size = own_size(shapes, budget, settings.step) if settings.own_aspect else settings.size
    return Product(name, size, photo_shape=median_shape(shapes))


def learnt_images(known: Products, names: Sequence[str]) -> dict[str, int]:
    """How many images each product was learnt from, with these more."""
    return dict(Counter({name: product.images for name, product in known.items()}) + Counter(names))
