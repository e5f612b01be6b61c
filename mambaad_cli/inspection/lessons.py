"""What people said of photos: the lessons that a product was taught, and the good patches that they are held against.

Letters: n images, p patches of each, c channels.
"""

from dataclasses import dataclass

from torch import Tensor

KEPT = 20  # patches of a photo


@dataclass(frozen=True, eq=False)
class Hardest:
    """The most unusual patches of the good images that gave a threshold: what is good, and hardest to tell from bad."""

    patches: tuple[Tensor, ...]  # (n, p, c) a view
    scores: tuple[float, ...]  # of these images, before anything was taught


@dataclass(frozen=True, eq=False)
class Lesson:
    """A photo that somebody called good or bad."""

    name: str
    digest: str  # of its file
    good: bool
    patches: tuple[Tensor, ...]  # (p, c) a view: its most unusual ones, in the mask where there is one
    score: float  # before anything was taught
    kind: str = ""  # of the defect, where a folder names it
    taught: str = ""  # when, as a date


@dataclass(frozen=True, eq=False)
class Taught:
    """What a product was taught."""

    lessons: tuple[Lesson, ...]
    remembered: tuple[int, ...]  # patches of each memory before parts that were rejected by mistake joined it
