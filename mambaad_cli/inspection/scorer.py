"""What scores images: one protocol, kept by a PyTorch model (`torch_scorer`) and by an exported file (`exported`).

Letters: H × W pixels of an anomaly map.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mambaad_cli.data import loading
from mambaad_cli.data.loading import Input
from mambaad_cli.inspection.explanation import Explanation
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Products
from mambaad_cli.inspection.recognition import Recognised
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.tiles import Tiles, TileView, photo_map


class Stated(NamedTuple):
    """What an exported graph itself says of an image, which is taken as it is."""

    threshold: float | None
    p_value: float | None
    verdict: str


class Judgement(NamedTuple):
    """What a scorer finds in one image."""

    image: Input  # as it was judged: at the size of its product, through its region of interest
    product: str  # told, or recognised; "" where the model knows none
    anomaly_map: Tensor  # (H, W), without the padding of a letterboxed image, cold outside its region of interest
    inside: Tensor | None  # (H, W) bool: that region
    recognised: Recognised | None = None  # where the product was not told
    distance: float | None = None  # squared, from what its product looks like, where that is asked for
    stated: Stated | None = None


class Scorer(Protocol):
    """Judges images that were prepared for it."""

    @property
    def preparation(self) -> Preparation:
        """How its images are read."""
        ...

    @property
    def products(self) -> Products: ...

    @property
    def sha256(self) -> str:
        """The first 12 hex digits, of the file of the model that scores."""
        ...

    @property
    def side_by_side(self) -> int:
        """How many batches it judges best at once, each in a thread of its own."""
        ...

    def expecting(self, images: int | None) -> "Scorer":
        """The same scorer, ready for so many images; None: not known, so many."""
        ...

    def judge(self, images: Sequence[Input], told: Sequence[str], distances: bool = False) -> list[Judgement]:
        """One judgement an image.

        told: the product of each; "" has it recognised. distances: how far each is from what its product looks like is
        wanted too, which a calibration at another size needs.
        """
        ...

    def explain(self, judgement: Judgement, regions: Sequence[Region]) -> tuple[Explanation, ...]:
        """Why each region of an image that it judged is anomalous. Raises MambaADError where it cannot tell."""
        ...


def with_tiles(judgement: Judgement, tiles: Tiles, view: TileView) -> Judgement:
    """The judgement with the map of its photo in tiles."""
    image = judgement.image
    if image.source is None:
        return judgement
    anomaly_map = photo_map(tiles, view, judgement.anomaly_map, image.source, image.region)
    inside = None
    if image.region is not None:
        inside = loading.at_size(torch.from_numpy(image.region), (anomaly_map.shape[0], anomaly_map.shape[1]))
    return judgement._replace(anomaly_map=anomaly_map, inside=inside)


def on_image(judgement: Judgement, anomaly_map: Tensor) -> Judgement:
    """The judgement with the part of a map (H, W) that lies on the image, and the region of interest there."""
    image = judgement.image
    inside = None
    if image.inside is not None:
        inside = loading.at_size(image.inside, (anomaly_map.shape[0], anomaly_map.shape[1]))
        inside = loading.within(inside, image.box)
    return judgement._replace(anomaly_map=loading.within(anomaly_map, image.box), inside=inside)
