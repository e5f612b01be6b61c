"""Photos that somebody judged -> lessons: their most unusual patches, as the model sees them.

Letters: H × W pixels of a map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.data.loading import Input, at_size, within
from mambaad_cli.data.masks import read_mask, resize_mask
from mambaad_cli.data.photo_statistics import photo_statistics
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import sha256_of, shown
from mambaad_cli.inspection.lessons import KEPT, Lesson
from mambaad_cli.inspection.predict import check_class, product_of
from mambaad_cli.inspection.product import Product, Size
from mambaad_cli.inspection.teaching import untaught
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.known_defects import hardest_patches

OnLeftOut = Callable[[ImageFile, str], None]
Lessons = dict[str, list[Lesson]]  # by product


@dataclass(frozen=True)
class Judging:
    """Makes lessons of photos."""

    scorer: TorchScorer
    class_name: str | None = None  # of all photos; None: told by a folder, or recognised
    masks: MaskFolder | None = None  # of the defects
    on_left_out: OnLeftOut = field(default=lambda file, why: None)

    @torch.inference_mode()
    def lessons(self, bad: Sequence[ImageFile] = (), good: Sequence[ImageFile] = ()) -> Lessons:
        """The lessons of each product. Photos that teach nothing are reported to `on_left_out`.

        Raises MambaADError for a product that the model does not know.
        """
        check_class(self.scorer.products, self.class_name)
        ready = self.scorer.expecting(None)
        lessons: Lessons = {}
        for file, is_good in [*((file, False) for file in bad), *((file, True) for file in good)]:
            try:
                name, lesson = self._lesson(ready, file, is_good)
            except ImageError as error:
                self.on_left_out(file, error.reason)
            except MambaADError as error:
                self.on_left_out(file, str(error))
            else:
                lessons.setdefault(name, []).append(lesson)
        return lessons

    def _lesson(self, scorer: TorchScorer, file: ImageFile, good: bool) -> tuple[str, Lesson]:
        """Raises MambaADError for a photo that teaches nothing, and says why."""
        told = self.class_name or product_of(file, scorer.products)
        image = scorer.preparation.wanted(told).of_file(0, file.path)[0]
        judgement = scorer.judge([image], [told])[0]
        if judgement.recognised is not None and not judgement.recognised.known:
            raise MambaADError("looks like no product of the model: name it with --class")
        product = untaught(scorer.products[judgement.product])
        network = scorer.network or scorer.record.network
        image = judgement.image
        features = network.features(image.pixels[None].to(network.device))
        size = network.map_size((image.pixels.shape[1], image.pixels.shape[2]))
        inside = None if image.inside is None else at_size(image.inside[None], size)
        anomaly_map = network.unusual_maps(features, size, product.learnt, inside)[0].float().cpu()
        score = float(within(anomaly_map, image.box).max())
        mask = self._mask(file, image, size) if self.masks is not None and not good else None
        _check(product, image, score, good, mask)
        views = [view[0].float().cpu() for view in network.patches(features)]
        patches = hardest_patches(anomaly_map, views, KEPT, mask)
        kinds = [part for part in file.relative.parts[:-1] if part not in scorer.products]
        kind = shown(kinds[-1]) if kinds and not good else ""
        digest = sha256_of(file.path)[:16]
        lesson = Lesson(shown(file.relative), digest, good, patches, score, kind, date.today().isoformat())
        return product.name, lesson

    def _mask(self, file: ImageFile, image: Input, size: Size) -> Tensor:
        """The mask (H, W) of a defect in the map. Raises MambaADError where there is none, or nothing in it."""
        assert self.masks is not None
        mask = read_mask(Sample(file.path, "", "test", "bad", self.masks.mask_of(file.path)), image.shape)
        if not mask.any():
            raise MambaADError("its mask marks nothing")
        return mask_in_map(mask, image, size)


def mask_in_map(mask: np.ndarray, image: Input, size: Size) -> Tensor:
    """The mask (h, w) of a defect in a photo as it lies in the photo's map: (H, W) bool. No defect is lost."""
    whole = torch.zeros(image.pixels.shape[1:], dtype=torch.bool)
    part = within(whole, image.box)
    part |= torch.from_numpy(resize_mask(mask, (part.shape[0], part.shape[1])))
    return at_size(whole[None], size)[0]


def _check(product: Product, image: Input, score: float, good: bool, mask: Tensor | None) -> None:
    """Raises MambaADError for a photo that teaches nothing, or contradicts what was learnt."""
    measured = product.calibration
    taken = photo_statistics(within(image.pixels, image.box))
    if measured is not None and taken[:3] in {photo[:3] for photo in measured.photos}:
        raise MambaADError(
            "the model learnt from it already" if good else "the model learnt it as good: fit anew without it"
        )
    if not good and mask is None and measured is not None and score <= measured.cold:
        raise MambaADError("shows nothing unusual: mark its defect, with --masks")
