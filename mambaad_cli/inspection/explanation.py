"""Why a region is anomalous: what each witness found there, and the good patches that it was compared with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mambaad_cli.inspection.regions import Region, json_object
from mambaad_cli.inspection.sources import Origin


class GoodPatch(NamedTuple):
    """A patch of the memory of good patches."""

    origin: Origin
    distance: float  # from the patch of the photo, in units of the distance between good patches there


class DefectPatch(NamedTuple):
    """The photo of a known defect that was learnt, with a patch like that of the region."""

    name: str  # of the photo
    kind: str  # of the defect; "" where no folder names it
    distance: float


class Explanation(NamedTuple):
    """Why one region is anomalous."""

    region: Region
    # what each witness adds to the region's peak: all of them add up to its value. `usual` is what the median of good
    # photos takes away
    evidence: Mapping[str, float]
    look: str | None  # of the memory, that found more: far_look, close_look or memory; None without a memory
    place: tuple[float, float]  # x, y of the patch that counts most, in shares of the photo's width and height
    patch: tuple[float, float]  # its width and height in the same shares
    distance: float | None  # of this patch from the nearest good patches, in units of the distance between those
    expected: float | None  # the distance that good photos have at this place, which it is divided by
    nearest: tuple[GoodPatch, ...] = ()  # by plain distance, one of each photo, the nearest first
    decoder_expected: GoodPatch | None = None  # the good patch that is nearest to what the decoder reconstructs there
    known_defect: DefectPatch | None = None  # the nearest of the known defects that were learnt


def explained_json(one: Explanation) -> dict[str, Any]:
    """An explanation as a JSON object: that of its region, and why."""
    why = {
        "evidence": dict(one.evidence),
        "look": one.look,
        "place": _point(*one.place),
        "distance": one.distance,
        "expected": one.expected,
        "nearest": [_good_patch(patch) for patch in one.nearest],
        "decoder_expected": None if one.decoder_expected is None else _good_patch(one.decoder_expected),
        "known_defect": None if one.known_defect is None else one.known_defect._asdict(),
    }
    return json_object(one.region) | why


def _good_patch(patch: GoodPatch) -> dict[str, Any]:
    origin = patch.origin
    return {"photo": origin.photo or None, **_point(origin.x, origin.y), "distance": patch.distance}


def _point(x: float | None, y: float | None) -> dict[str, float | None]:
    return {"x": x, "y": y}
