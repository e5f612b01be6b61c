"""Which images are learnt from and which are held out for the threshold."""

from collections.abc import Sequence

import torch

HELD_OUT = 5  # one image in this many is kept for the threshold


def split(classes: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: a fifth of each class with at least five images, chosen by the seed.

    >>> train, held_out = split(["nut"] * 10 + ["bolt"] * 4, seed=0)
    >>> len(train), len(held_out), max(held_out) < 10
    (12, 2, True)
    """
    generator = torch.Generator().manual_seed(seed)
    held_out: list[int] = []
    for name in dict.fromkeys(classes):
        of_class = [i for i, other in enumerate(classes) if other == name]
        order = torch.randperm(len(of_class), generator=generator).tolist()
        held_out += [of_class[j] for j in order[: len(of_class) // HELD_OUT]]
    left = set(range(len(classes))) - set(held_out)
    return sorted(left), sorted(held_out)


def folds_of(classes: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """Indices in `folds` parts of nearly the same size, each class spread over all of them.

    >>> [len(part) for part in folds_of(["nut"] * 10 + ["bolt"] * 4, 4, seed=0)]
    [4, 4, 3, 3]
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator).tolist()
    by_class = sorted(order, key=lambda i: classes[i])
    return [sorted(by_class[fold::folds]) for fold in range(folds)]


def evenly_spread(chosen: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly spread.

    >>> evenly_spread([2, 3, 5, 7, 11, 13], 3)
    [2, 5, 11]
    """
    count = min(len(chosen), most)
    return [chosen[i * len(chosen) // count] for i in range(count)]
