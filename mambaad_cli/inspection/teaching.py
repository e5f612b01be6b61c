"""What a product is taught by photos that somebody called good or bad, without training: in, lessons; out, a product.

Known defects become a classifier of patches for each view. Parts that were rejected by mistake join the memory and the
scores of good images. All is computed from the patches that lessons and model keep, so that it can be undone.

Letters: n images, p patches, c channels, q patches of a memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.files import shown
from mambaad_cli.inspection.calibration import exceeds
from mambaad_cli.inspection.lessons import Hardest, Lesson, Taught
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import Learnt, Product
from mambaad_cli.model.known_defects import KnownDefects, classifier_of, of_raw_patches
from mambaad_cli.model.memory import Memory, k_centre, spacing_of
from mambaad_cli.model.quantised import restored, stored

BAD_PATCHES = 12  # of a lesson, that the classifier learns from
MEMORY_PATCHES = 1000  # of a memory, that it is held against
FOLDS = 4  # of the good images: each is judged by a classifier that does not know it
WEIGHTS = (0.5, 0.25, 1.0, 0.0)  # of known defects beside what is unusual: the first of those that are as good
AS_GOOD = 0.002  # difference of the area under a curve that tells nothing
MAY_LOSE = 0.01  # of the area under the curve, that kinds of defects that are not known may lose
TAIL = 0.95  # the share of good images that spans a unit of scores, from their median
JOINING = 16  # patches of a part rejected by mistake that join a memory: whole blocks of vectors are compared faster


class Judged(NamedTuple):
    """A known defect, judged as if it were not known."""

    lesson: Lesson
    before: float  # score
    after: float


@dataclass(frozen=True)
class Lectured:
    """A product that was taught, and what that did."""

    product: Product
    judged: tuple[Judged, ...]
    weight: float  # of known defects beside what is unusual

    def found(self, before: bool) -> int:
        """How many known defects lie above the threshold, each judged without itself."""
        measured = self.product.untaught if before else self.product.calibration
        assert measured is not None
        return sum(exceeds(row.before if before else row.after, measured.threshold) for row in self.judged)


def untaught(product: Product) -> Product:
    """The product as it was before it was taught anything."""
    learnt = product.learnt
    if learnt.taught is None:
        return product
    memories = tuple(
        _first(memory, count) for memory, count in zip(learnt.memories, learnt.taught.remembered, strict=True)
    )
    plain = replace(learnt, memories=memories, known=None, taught=None)
    return replace(product, learnt=plain, calibration=product.untaught, untaught=None)


def taught(product: Product, lessons: Sequence[Lesson], far_weight: float) -> Lectured:
    """The product that knows these lessons, and none that it may have been taught before.

    far_weight: see Settings.

    Raises MambaADError for a product with tiles, and for one that keeps nothing that lessons could be held against.
    """
    plain = untaught(product)
    if not lessons:
        return Lectured(plain, (), 0.0)
    if plain.learnt.tiles is not None:  # lessons are scored by the map of the whole photo, the threshold by both maps
        raise MambaADError(f"{shown(product.name)}: a model with tiles learns no verdicts: fit without --tiles")
    hardest, measured = plain.learnt.hardest, plain.calibration
    if hardest is None or measured is None or not plain.learnt.memories:
        raise MambaADError(
            f"{shown(product.name)}: the model keeps no good patches that a verdict could be held against: "
            "fit it anew, with a memory and a threshold"
        )
    good, bad = [one for one in lessons if one.good], [one for one in lessons if not one.good]
    memories = tuple(_joined(memory, view, good) for view, memory in enumerate(plain.learnt.memories))
    learnt = replace(
        plain.learnt,
        memories=memories,
        taught=Taught(tuple(lessons), tuple(len(memory.patches) for memory in plain.learnt.memories)),
    )
    base = (*hardest.scores, *(one.score for one in good))
    if not bad:
        calibration = replace(measured, scores=base, new_photos=False)
        return Lectured(replace(plain, learnt=learnt, calibration=calibration, untaught=measured), (), 0.0)
    lecture = _Lecture(plain.learnt, hardest, good, bad, far_weight)
    weight, known, rises = lecture.chosen(base)
    calibration = replace(measured, scores=tuple(b + r for b, r in zip(base, rises, strict=True)), new_photos=False)
    learnt = replace(learnt, known=known)
    result = replace(plain, learnt=learnt, calibration=calibration, untaught=measured)
    judged = tuple(
        Judged(one, one.score, one.score + known.gain * max(0.0, peak - known.centre))
        for one, peak in zip(bad, lecture.left_out, strict=True)
    )
    return Lectured(result, judged, weight)


def taught_record(
    record: ModelRecord, lessons: Mapping[str, Sequence[Lesson]], forgotten: Sequence[str] = ()
) -> tuple[ModelRecord, dict[str, Lectured]]:
    """The record that knows these lessons as well, but for those of forgotten names, and what that did by product.

    A photo that is taught again takes the place of what was taught before. Raises MambaADError for a photo that is both
    good and bad, and for a name that was never taught.
    """
    known = {name: _lessons_of(product) for name, product in record.products.items()}
    missing = [name for name in forgotten if not any(one.name == name for some in known.values() for one in some)]
    if missing:
        raise MambaADError(f"{shown(missing[0])} was never taught: mambaad learn MODEL --list names what was")
    lectured = {}
    for name, product in record.products.items():
        kept = {one.digest: one for one in known[name] if one.name not in forgotten}
        for one in lessons.get(name, ()):
            other = kept.get(one.digest)
            if other is not None and other.good != one.good:
                raise MambaADError(f"{shown(one.name)} is both good and bad: as {shown(other.name)} it was the other")
            kept[one.digest] = one
        if lessons.get(name) or len(kept) < len(known[name]):
            lectured[name] = taught(product, list(kept.values()), record.network.settings.far_weight)
    return record.with_products(*(one.product for one in lectured.values())), lectured


def _lessons_of(product: Product) -> tuple[Lesson, ...]:
    return product.learnt.taught.lessons if product.learnt.taught else ()


def _first(memory: Memory, count: int) -> Memory:
    patches = memory.patches[:count]
    return memory if count == len(memory.patches) else memory._replace(patches=patches, spacing=spacing_of(patches))


def _joined(memory: Memory, view: int, good: Sequence[Lesson]) -> Memory:
    """The memory with patches of parts that were rejected by mistake."""
    if not good:
        return memory
    more = []
    for lesson in good:
        white = white_patches(memory, lesson.patches[view])
        more.append(restored(*stored(white[k_centre(white, JOINING, seed=0)])))
    patches = torch.cat([memory.patches, *more])
    return memory._replace(patches=patches, spacing=spacing_of(patches))


class _Lecture:
    """The patches of known defects and of good images, whitened, and classifiers between them."""

    def __init__(
        self, learnt: Learnt, hardest: Hardest, good: Sequence[Lesson], bad: Sequence[Lesson], far_weight: float
    ) -> None:
        self.memories, self.bad = learnt.memories, bad
        self.shares = (far_weight, 1.0) if len(learnt.memories) > 1 else (1.0,)  # as in fuse_looks
        self.all: list[Tensor] | None = None
        self.good_images = [
            [white_patches(memory, image) for image in (*patches.float(), *(one.patches[view] for one in good))]
            for view, (memory, patches) in enumerate(zip(learnt.memories, hardest.patches, strict=True))
        ]
        self.bad_images = [
            [white_patches(memory, one.patches[view]) for one in bad] for view, memory in enumerate(learnt.memories)
        ]
        everything = range(len(self.good_images[0]))
        self.all = self._classifiers(range(len(bad)), everything)
        self.good_peaks = [0.0] * len(everything)
        for fold in range(FOLDS):
            held_out = list(everything)[fold::FOLDS]
            others = [i for i in everything if i not in set(held_out)]
            classifiers = self._classifiers(range(len(bad)), others or everything)
            for i in held_out:
                self.good_peaks[i] = self._peak(classifiers, [view[i] for view in self.good_images])
        self.left_out = self._each_without([{i for i, other in enumerate(bad) if _same(one, other)} for one in bad])
        kinds = {one.kind for one in bad}
        self.kind_left_out = None
        if len(kinds) > 1 and all(kinds):
            of_kind = [{i for i, other in enumerate(bad) if other.kind == one.kind} for one in bad]
            self.kind_left_out = self._each_without(of_kind)

    def chosen(self, base: Sequence[float]) -> tuple[float, KnownDefects, list[float]]:
        """The weight of known defects, what is known by it, and by how much it raises the scores of good images."""
        before = [one.score for one in self.bad]
        centre, unit = _centre_and_unit(self.good_peaks)
        base_unit = _centre_and_unit(base)[1]

        def raised(peaks: Sequence[float], weight: float) -> np.ndarray:
            return weight * base_unit / unit * np.clip(np.asarray(peaks) - centre, 0, None)

        areas, plain = {}, _area(before, base)
        for weight in WEIGHTS:
            good = np.asarray(base) + raised(self.good_peaks, weight)
            areas[weight] = _area(np.asarray(before) + raised(self.left_out, weight), good)
            if self.kind_left_out is not None:
                unseen = _area(np.asarray(before) + raised(self.kind_left_out, weight), good)
                if unseen < plain - MAY_LOSE:
                    areas[weight] = -1.0
        best = max(areas.values())
        weight = next(weight for weight in WEIGHTS if areas[weight] >= best - AS_GOOD)
        assert self.all is not None
        raw = zip(self.all, self.memories, strict=True)
        classifiers = tuple(of_raw_patches(one, memory.mean, memory.whitening) for one, memory in raw)
        known = KnownDefects(classifiers, centre, weight * base_unit / unit)
        return weight, known, raised(self.good_peaks, weight).tolist()

    def _each_without(self, groups: Sequence[set[int]]) -> list[float]:
        """The peak of each known defect by classifiers that do not know some of them, itself among these."""
        known: dict[frozenset[int], list[Tensor] | None] = {}
        peaks = []
        for i, group in enumerate(groups):
            others = [j for j in range(len(self.bad)) if j not in group]
            if frozenset(group) not in known:
                everything = range(len(self.good_images[0]))
                known[frozenset(group)] = self._classifiers(others, everything) if others else None
            classifiers = known[frozenset(group)]
            image = [view[i] for view in self.bad_images]
            peaks.append(-np.inf if classifiers is None else self._peak(classifiers, image))
        return peaks

    def _classifiers(self, bad: Sequence[int], good: Sequence[int]) -> list[Tensor]:
        classifiers = []
        for view, memory in enumerate(self.memories):
            positives = torch.cat([self.bad_images[view][i][:BAD_PATCHES] for i in bad])
            negatives = torch.cat([memory.patches[:MEMORY_PATCHES], *(self.good_images[view][i] for i in good)])
            classifiers.append(classifier_of(positives, negatives, None if self.all is None else self.all[view]))
        return classifiers

    def _peak(self, classifiers: Sequence[Tensor], image: Sequence[Tensor]) -> float:
        """The highest value of an image's patches (p, c) of each view, as the classifiers' map has them."""
        parts = zip(self.shares, classifiers, image, strict=True)
        values = [share * (patches.double() @ one[:-1] + one[-1]) for share, one, patches in parts]
        return float(torch.stack(values).sum(0).max())


def white_patches(memory: Memory, patches: Tensor) -> Tensor:
    """Patches (p, c), whitened as those of a memory."""
    return (patches.float() - memory.mean) @ memory.whitening


def _same(one: Lesson, other: Lesson) -> bool:
    return one.digest == other.digest


def _centre_and_unit(values: Sequence[float]) -> tuple[float, float]:
    centre, upper = np.quantile(values, (0.5, TAIL))
    return float(centre), max(float(upper - centre), 1e-6)


def _area(bad: Sequence[float] | np.ndarray, good: Sequence[float] | np.ndarray) -> float:
    """How often a known defect scores higher than a good image: the area under the ROC curve."""
    above = np.asarray(bad)[:, None] - np.asarray(good)[None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())
