"""How a region is explained: the map of each witness, which all add up to the anomaly map, and the nearest patches.

Letters: b = 1 image, c channels, h × w positions of a view, H × W pixels of the map of the whole photo, u × v values
of the map that was judged, m patches of a memory.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaad_cli.data.loading import at_size, within
from mambaad_cli.inspection.explanation import DefectPatch, Explanation, GoodPatch
from mambaad_cli.inspection.network import Network, compared, expected_at
from mambaad_cli.inspection.product import Learnt, Products, Size
from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.scorer import Judgement
from mambaad_cli.inspection.sources import UNKNOWN, Origin, grid_places, on_photo
from mambaad_cli.inspection.teaching import JOINING, white_patches
from mambaad_cli.inspection.tiles import enlarged
from mambaad_cli.model.anomaly_map import weights_at
from mambaad_cli.model.memory import Memory, distances, patches_of
from mambaad_cli.model.precision import exact_float32

NEAREST = 3  # good patches that are shown
LOOKS = {1: ("memory",), 2: ("far_look", "close_look")}  # of the memory, by their number
DECODER, DEFECTS, TILES, USUAL = "decoder", "learnt_defects", "tiles", "usual"


def what_is_missing(products: Products) -> list[str]:
    """A line for each product of which explanations can say less, and why."""
    lines = []
    for product in products.values():
        if not product.learnt.memories:
            lines.append(f"{product.name}: the model has no memory of good patches: only the evidence is explained")
        elif product.learnt.sources is None:
            lines.append(
                f"{product.name}: the model does not keep where its good patches come from (an earlier version made "
                "it, or --no-examples): only the evidence is explained: fit it anew"
            )
    return lines


def explained(
    network: Network, learnt: Learnt, judgement: Judgement, regions: Sequence[Region]
) -> tuple[Explanation, ...]:
    """Why each region of an image is anomalous. learnt: of the product that it was judged as."""
    seen = _seen(network, learnt, judgement)
    return tuple(_explanation(seen, judgement, region) for region in regions)


# ---- the maps of the witnesses ----


def witness_maps(
    network: Network, features: Sequence[Tensor], size: Size, learnt: Learnt, inside: Tensor | None = None
) -> dict[str, Tensor]:
    """What each witness adds to the anomaly map of the whole photo: (b, *size) each, in double precision.

    Inside regions of interest they add up to `Network.anomaly_maps`: every step from the distances to the map is
    linear, but for what known defects add, which is the rest.
    """
    fusion = learnt.fusion
    decides = learnt.statistics and (fusion is None or fusion.decoder.weight > 0)
    remembers = learnt.memories and (not decides if fusion is None else fusion.memory.weight > 0)
    maps: dict[str, Tensor] = {}
    if decides:
        maps[DECODER] = network.decoder_maps(network.residuals(features), size, learnt.statistics, inside)
    elif not remembers:
        maps[DECODER] = network.cold(network.published_maps(features, size), inside)
    if remembers:
        maps |= _look_maps(network, unusual_patches(network, features, learnt, inside), size, inside)
    maps = {name: part.double() for name, part in maps.items()}
    if fusion is not None:
        pairs = {name: fusion.decoder if name == DECODER else fusion.memory for name in maps}
        maps = {name: part * pairs[name].weight / pairs[name].spread for name, part in maps.items()}
        present = ([fusion.decoder] if decides else []) + ([fusion.memory] if remembers else [])
        usual = -sum(one.weight * one.centre / one.spread for one in present)
        maps[USUAL] = torch.full_like(next(iter(maps.values())), usual)
    if learnt.known is not None:
        judged = network.anomaly_maps(features, size, learnt, inside).double()
        maps[DEFECTS] = judged - network.unusual_maps(features, size, learnt, inside).double()
    return maps


def unusual_patches(
    network: Network, features: Sequence[Tensor], learnt: Learnt, inside: Tensor | None = None
) -> list[Tensor]:
    """How unusual the patches of each view are for its memory: (b, h, w) each."""
    views = zip(learnt.memories, network.patches(features), strict=True)
    return [compared(memory, patches, inside) for memory, patches in views]


def _look_maps(network: Network, unusual: Sequence[Tensor], size: Size, inside: Tensor | None) -> dict[str, Tensor]:
    """The memory's map of each look: that of all looks where the others find nothing."""
    maps = {}
    for number, name in enumerate(LOOKS[len(unusual)]):
        alone = [one if view == number else torch.zeros_like(one) for view, one in enumerate(unusual)]
        maps[name] = network.memory_maps(alone, size, inside)
    return maps


# ---- one image ----


class _Seen(NamedTuple):
    """An image as its regions are explained."""

    network: Network
    learnt: Learnt
    features: list[Tensor]
    size: Size  # of the map of the whole photo
    input_size: Size
    maps: dict[str, np.ndarray]  # (u, v) of each witness, as those that were judged
    unusual: list[Tensor]  # (h, w) of each view
    patches: list[Tensor]  # (h, w, c) of each view


def _seen(network: Network, learnt: Learnt, judgement: Judgement) -> _Seen:
    image = judgement.image
    pixels = image.pixels[None].to(network.device)
    input_size = (pixels.shape[2], pixels.shape[3])
    size = network.map_size(input_size)
    inside = None if image.inside is None else at_size(image.inside[None], size)
    features = network.features(pixels)
    whole = witness_maps(network, features, size, learnt, inside)
    maps = {name: within(part[0].cpu(), image.box) for name, part in whole.items()}
    if learnt.tiles is not None and image.source is not None:
        maps = _with_tiles(learnt, maps, judgement.anomaly_map.double())
    unusual = unusual_patches(network, features, learnt, inside) if learnt.memories else []
    patches = network.patches(features) if learnt.memories else []
    return _Seen(
        network, learnt, features, size, input_size, {name: part.numpy() for name, part in maps.items()},
        [view[0].cpu() for view in unusual], [view[0] for view in patches],
    )  # fmt: skip


def _with_tiles(learnt: Learnt, maps: dict[str, Tensor], judged: Tensor) -> dict[str, Tensor]:
    """The maps of the whole photo's witnesses as they count beside tiles, and what the tiles add: the rest."""
    assert learnt.tiles is not None
    size = (judged.shape[0], judged.shape[1])
    whole, tiles = learnt.tiles.fusion.decoder, learnt.tiles.fusion.memory
    maps = {name: enlarged(part, size) * whole.weight / whole.spread for name, part in maps.items()}
    usual = maps.get(USUAL, torch.zeros_like(judged))
    maps[USUAL] = usual - whole.weight * whole.centre / whole.spread - tiles.weight * tiles.centre / tiles.spread
    return maps | {TILES: judged - sum(maps.values())}


def _explanation(seen: _Seen, judgement: Judgement, region: Region) -> Explanation:
    row, column = _pixel_of(judgement.anomaly_map.numpy(), region, judgement.image.shape)
    evidence = {name: float(values[row, column]) for name, values in seen.maps.items()}
    at = _on_whole(seen, judgement, (row, column))
    looks = LOOKS.get(len(seen.unusual), ())
    if not looks:
        share = (column + 0.5) / judgement.anomaly_map.shape[1], (row + 0.5) / judgement.anomaly_map.shape[0]
        return Explanation(region, evidence, None, share, (0.0, 0.0), None, None)
    view = max(range(len(looks)), key=lambda number: evidence.get(looks[number], 0.0))
    grid = (seen.unusual[view].shape[0], seen.unusual[view].shape[1])
    place = _counting_most(seen, view, at)
    memory, patch = seen.learnt.memories[view], seen.patches[view][place]
    x, y, wide, high = _share_of(place, grid, judgement, seen.input_size)
    return Explanation(
        region,
        evidence,
        looks[view],
        (x, y),
        (wide, high),
        float(distances(memory, patch[None, None, None])),
        float(expected_at(memory.expected, grid)[place]),
        tuple(_nearest(seen.learnt, view, patch)),
        _expected_by_decoder(seen, at),
        _nearest_defect(seen.learnt, view, patch),
    )


def _pixel_of(anomaly_map: np.ndarray, region: Region, shape: Size) -> tuple[int, int]:
    """Row and column of a region's peak in the map (u, v) that it was found in."""
    rows, columns = np.nonzero(anomaly_map == np.float32(region.peak))
    x, y = region.peak_at
    away = np.abs((rows + 0.5) * shape[0] / anomaly_map.shape[0] - y - 0.5)
    away += np.abs((columns + 0.5) * shape[1] / anomaly_map.shape[1] - x - 0.5)
    nearest = int(away.argmin())
    return int(rows[nearest]), int(columns[nearest])


def _on_whole(seen: _Seen, judgement: Judgement, at: tuple[int, int]) -> tuple[int, int]:
    """The pixel of the whole photo's map (H, W), padding included, at one of the map that was judged."""
    top, left, height, width = judgement.image.box or (0, 0, *seen.size)
    rows, columns = judgement.anomaly_map.shape
    return top + int((at[0] + 0.5) * height / rows), left + int((at[1] + 0.5) * width / columns)


def _counting_most(seen: _Seen, view: int, at: tuple[int, int]) -> tuple[int, int]:
    """The position of a view that adds most to a pixel of the map."""
    unusual = seen.unusual[view]
    rows, columns = unusual.shape
    shares = unusual * weights_at(at, seen.size, (rows, columns), seen.network.settings.memory_sigma)
    row, column = divmod(int(shares.argmax()), columns)
    if min(rows, columns) >= 3:  # the outermost positions have the values of their neighbours
        row, column = min(max(row, 1), rows - 2), min(max(column, 1), columns - 2)
    return row, column


def _share_of(
    place: tuple[int, int], grid: tuple[int, int], judgement: Judgement, size: Size
) -> tuple[float, float, float, float]:
    """x, y, width and height of a position of a grid, in shares of the photo's width and height."""
    box = judgement.image.box
    x, y = on_photo(grid_places(grid)[place], box, size).tolist()
    height, width = size if box is None else box[2:]
    return x, y, size[1] / grid[1] / width, size[0] / grid[0] / height


# ---- the nearest patches ----


def _nearest(learnt: Learnt, view: int, patch: Tensor, most: int = NEAREST) -> Iterator[GoodPatch]:
    """The nearest good patches of a patch (c,), one of each photo."""
    if learnt.sources is None:
        return
    memory, photos = learnt.memories[view], set()
    away = _away(memory, patch)
    for number in away.argsort().tolist():
        origin = _origin(learnt, view, number)
        if origin.photo not in photos:
            photos.add(origin.photo)
            yield GoodPatch(origin, float(away[number] / memory.spacing[number]))
        if len(photos) == most:
            return


def _away(memory: Memory, patch: Tensor) -> Tensor:
    """The distance (m,) of each patch of a memory from a patch (c,)."""
    with exact_float32(patch.device):
        return (memory.patches - white_patches(memory, patch)).square().sum(1).sqrt()


def _origin(learnt: Learnt, view: int, number: int) -> Origin:
    """Where a patch of a memory comes from: from a photo of the fit, or from a part that was rejected by mistake."""
    assert learnt.sources is not None
    taught = learnt.taught
    if taught is None or number < taught.remembered[view]:
        return learnt.sources.origin(view, number)
    end = taught.remembered[view]
    for lesson in taught.lessons:
        end += min(JOINING, len(lesson.patches[view])) if lesson.good else 0
        if number < end:
            return Origin(lesson.name, None, None, None)
    return UNKNOWN


def _expected_by_decoder(seen: _Seen, at: tuple[int, int]) -> GoodPatch | None:
    """The good patch of the far look that is nearest to what the decoder reconstructs at a pixel of the map.

    The decoder reconstructs directions; their lengths are those of the photo's own features.
    """
    if DECODER not in seen.maps:
        return None
    residuals = seen.network.residuals(seen.features)[-2:]
    stages = seen.features[: len(seen.network.detector.strides)][-2:]
    memory = seen.learnt.memories[0]
    if len(residuals) < 2 or sum(one.reconstructed.shape[-1] for one in residuals) != len(memory.mean):
        return None
    expected = [
        one.reconstructed.permute(0, 3, 1, 2) * stage.float().norm(dim=1, keepdim=True)
        for one, stage in zip(residuals, stages, strict=True)
    ]
    patches = patches_of(expected)[0]
    place = tuple(at[axis] * patches.shape[axis] // seen.size[axis] for axis in (0, 1))
    return next(_nearest(seen.learnt, 0, patches[place], 1), None)


def _nearest_defect(learnt: Learnt, view: int, patch: Tensor) -> DefectPatch | None:
    """The known defect with the patch that is nearest to a patch (c,)."""
    bad = (
        [] if learnt.known is None or learnt.taught is None else [one for one in learnt.taught.lessons if not one.good]
    )
    memory = learnt.memories[view]
    found = []
    for one in bad:
        kept = memory._replace(patches=white_patches(memory, one.patches[view].to(patch.device)))
        found.append(DefectPatch(one.name, one.kind, float(_away(kept, patch).min())))
    return min(found, key=lambda one: one.distance, default=None)
