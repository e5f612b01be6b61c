"""What a model file says of itself besides its tensors: types and limits that whatever is read is checked against."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mambaad_cli.inspection.product import Calibration, Learnt, Product, Size
from mambaad_cli.inspection.tiles import OVERLAP
from mambaad_cli.model.fusion import Fusion
from mambaad_cli.model.settings import Settings

MAX_PIXELS = 2**26  # of an image as a model sees it: more would fill the memory
MAX_FACTOR = 64.0  # of any scale, and pixels of any Gaussian
FORMAT = 3  # of the model file: one description for each product. Formats 1 and 2 are read by `older_formats`


class LessonFacts(msgspec.Struct):
    """A photo that somebody judged, without its patches: see `Lesson`."""

    name: str
    digest: str
    good: bool
    score: float
    kind: str = ""
    taught: str = ""


class TaughtFacts(msgspec.Struct):
    """What a product was taught, without tensors."""

    lessons: list[LessonFacts]
    remembered: list[int]
    untaught: Calibration
    known: tuple[float, float] | None = None  # centre and gain


class ProductFacts(msgspec.Struct):
    """One product without its tensors: see `Product`."""

    name: str
    size: Size
    images: int = 0
    photo_shape: Size | None = None
    turned: bool = False
    own_masks: bool = False
    region: bool = False  # there is one, among the tensors
    learnt_region: bool = False
    scales: int = 0  # statistics of the decoder's residuals
    views: int = 0  # memories
    fusion: Fusion | None = None
    tiles: Fusion | None = None  # of the whole photo's map and the tiles', where there are tiles
    calibration: Calibration | None = None
    hardest: list[float] = []  # scores of the good images whose hardest patches are there
    taught: TaughtFacts | None = None
    sources: list[str] = []  # names of the photos that the patches of the memories come from

    def product(self) -> Product:
        """The product, with nothing learnt yet but what is described here."""
        return Product(
            self.name,
            self.size,
            self.images,
            self.photo_shape,
            self.turned,
            own_masks=self.own_masks,
            learnt=Learnt(fusion=self.fusion),
            calibration=self.calibration,
            untaught=None if self.taught is None else self.taught.untaught,
        )


class ExampleFacts(msgspec.Struct):
    """One good image that the file carries: see `Example`."""

    class_name: str
    held_out: bool
    box: tuple[int, int, int, int] | None = None
    inside: bool = False


class Facts(msgspec.Struct):
    """The description of a model file."""

    format: int
    mambaad: str  # the version that wrote it
    settings: Settings
    products: list[ProductFacts] = []
    recogniser: list[str] | None = None  # the products that it distinguishes, in its order
    recipe: dict[str, Any] = {}
    examples: list[ExampleFacts] = []


def described(product: Product) -> ProductFacts:
    """What a file says of a product."""
    learnt = product.learnt
    return ProductFacts(
        product.name,
        product.size,
        product.images,
        product.photo_shape,
        product.turned,
        product.own_masks,
        region=product.region is not None,
        learnt_region=learnt.region is not None,
        scales=len(learnt.statistics),
        views=len(learnt.memories),
        fusion=learnt.fusion,
        tiles=learnt.tiles and learnt.tiles.fusion,
        calibration=product.calibration,
        hardest=list(learnt.hardest.scores) if learnt.hardest else [],
        taught=_described_lessons(product),
        sources=list(learnt.sources.photos) if learnt.sources else [],
    )


def _described_lessons(product: Product) -> TaughtFacts | None:
    taught, known = product.learnt.taught, product.learnt.known
    if taught is None or product.untaught is None:
        return None
    lessons = [LessonFacts(one.name, one.digest, one.good, one.score, one.kind, one.taught) for one in taught.lessons]
    return TaughtFacts(lessons, list(taught.remembered), product.untaught, known and (known.centre, known.gain))


# ---- limits: what has the right type may still be none that a model can have ----


def check(facts: Facts) -> None:
    """Raises ValueError for the first value that no model has."""
    _check_settings(facts.settings)
    names = [product.name for product in facts.products]
    _require(len(set(names)) == len(names), "two products have one name")
    for product in facts.products:
        _check_product(product, facts.settings)
    if facts.recogniser is not None:
        distinct = len(set(facts.recogniser)) == len(facts.recogniser) > 0
        _require(distinct and set(facts.recogniser) <= set(names), "it recognises what are none of its products")
    for example in facts.examples:
        _require(
            example.class_name in names, f"it has examples of {example.class_name!r}, which is none of its products"
        )
        _require(example.box is None or (min(example.box) >= 0 < min(example.box[2:])), "an example lies nowhere")


def _check_settings(settings: Settings) -> None:
    _check_factors((settings.detail, settings.scale, settings.memory_sigma))
    _require(settings.looks in (1, 2), f"its memory has {settings.looks} views")
    _require(0 <= settings.far_weight <= MAX_FACTOR, f"the weight of a view is {settings.far_weight}")
    _require(0 <= settings.local_contrast <= 1, f"the local contrast is {settings.local_contrast}")
    _require(settings.step > 0, f"its sizes are in steps of {settings.step} pixels")
    _check_size(settings.size, settings.detail)
    if settings.tiles is not None:
        _check_size(settings.tiles, 1.0)
        _require(min(settings.tiles) > OVERLAP, f"its tiles are {settings.tiles} pixels large")


def _check_product(product: ProductFacts, settings: Settings) -> None:
    _check_size(product.size, settings.detail)
    if product.photo_shape is not None:
        _require(min(product.photo_shape) > 0, f"photos of {product.name!r} are empty")
    _require(min(product.images, product.scales, product.views) >= 0, f"{product.name!r} has counts below zero")
    _require(product.tiles is None or settings.tiles is not None, f"{product.name!r} has tiles, its model has none")
    for fusion in (product.fusion, product.tiles):
        if fusion is not None:
            _require(all(map(math.isfinite, (*fusion.decoder, *fusion.memory))), "the weights of maps are not finite")
            _require(fusion.decoder.spread > 0 and fusion.memory.spread > 0, "the spread of a map is not positive")
    if product.fusion is not None:
        decoder, memory = product.fusion.decoder.weight > 0, product.fusion.memory.weight > 0
        known = (product.scales > 0 or not decoder) and (product.views > 0 or not memory)
        _require((decoder or memory) and known, f"the map of {product.name!r} comes from what its file lacks")
    if product.calibration is not None:
        _check_calibration(product.name, product.calibration)
    _require(all(map(math.isfinite, product.hardest)), f"scores of {product.name!r} are not finite")
    if product.taught is not None:
        _check_taught(product, product.taught)


def _check_taught(product: ProductFacts, taught: TaughtFacts) -> None:
    _check_calibration(product.name, taught.untaught)
    _require(all(math.isfinite(one.score) for one in taught.lessons), f"lessons of {product.name!r} are not finite")
    fits = len(taught.remembered) == product.views and all(count > 0 for count in taught.remembered)
    _require(fits, f"what {product.name!r} was taught does not fit its memories")
    if taught.known is not None:
        _require(all(map(math.isfinite, taught.known)) and taught.known[1] >= 0, "known defects count below nothing")


def _check_calibration(name: str, measured: Calibration) -> None:
    _require(len(measured.scores) > 0, f"{name!r} is calibrated by no scores")
    _require(all(map(math.isfinite, measured.scores)), f"scores of {name!r} are not finite")
    _require(measured.farthest is None or measured.farthest >= 0, f"distances of {name!r} are below zero")
    share = measured.max_false_reject
    _require(share is None or 0 < share < 1, f"{share} is no share of good images that may be rejected")


def _check_factors(factors: Iterable[float]) -> None:
    for factor in factors:
        _require(0 < factor <= MAX_FACTOR, f"{factor} is no scale")


def _check_size(size: Sequence[int], detail: float) -> None:
    pixels = size[0] * size[1] * detail**2
    _require(min(size) > 0 and pixels <= MAX_PIXELS, f"its images are {size[1]}x{size[0]} pixels, seen at {detail:g}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
