"""One map from two witnesses: what the decoder cannot reconstruct, and what the memory of good patches never held.

Letters: b batch, H × W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TAIL = 0.99  # the share of good values that spans one unit of a witness's map, from their median
MAX_VALUES = 400_000  # of good maps that centre and spread are computed from


class Witness(NamedTuple):
    """How the map of one witness counts."""

    centre: float = 0.0  # median of its values on good images
    spread: float = 1.0  # from there to the value that few of them exceed
    weight: float = 1.0  # share of the fused map, 0 … 1


class Fusion(NamedTuple):
    """How the maps of the two witnesses make one, for one product."""

    decoder: Witness
    memory: Witness


def witness_of(good: Tensor, weight: float = 1.0) -> Witness:
    """Centre and spread of a witness's maps of good images, of any shape.

    >>> witness_of(torch.arange(101.0))
    Witness(centre=50.0, spread=49.0, weight=1.0)
    """
    values = good.flatten().float()
    if len(values) > MAX_VALUES:
        chosen = torch.randint(len(values), (MAX_VALUES,), generator=torch.Generator().manual_seed(0))
        values = values[chosen.to(values.device)]
    centre = float(values.median())
    return Witness(centre, max(float(values.quantile(TAIL)) - centre, 1e-6), weight)


def fuse_witnesses(fusion: Fusion, decoder_map: Tensor | None, memory_map: Tensor | None) -> Tensor:
    """The weighted sum of the maps (b, H, W), each from its centre in units of its spread; one may be missing."""
    pairs = ((fusion.decoder, decoder_map), (fusion.memory, memory_map))
    parts = [witness.weight * (maps - witness.centre) / witness.spread for witness, maps in pairs if maps is not None]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
