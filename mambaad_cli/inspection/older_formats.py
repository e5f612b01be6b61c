"""Model files of formats 1 and 2 -> the description and the tensors' names of today.

Format 1 (mambaad 0.1) knows one decoder with statistics by product. Format 2 (0.2) has a table by product for each of
its facts, and keeps the size that the close view sees.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.inspection.file_schema import ExampleFacts, Facts, ProductFacts
from mambaad_cli.inspection.product import Calibration, Conditions, Product, ScoredDefect, Size
from mambaad_cli.inspection.recognition import MARGIN
from mambaad_cli.model.fusion import Fusion
from mambaad_cli.model.settings import Settings, scaled_size

FORMAT_1_PARTS = {"hard": "expected"}  # parts of the residuals' statistics that had another name


def description(facts: Mapping[str, Any]) -> Facts:
    """The description as a file of today has it. Raises msgspec.ValidationError, KeyError or TypeError for damage."""
    settings = msgspec.convert(facts["settings"], Settings)
    resized = settings.detail != 1 and not settings.own_aspect  # by calibrate --res, which wrote the close view's size
    size = _coarse(settings.size, settings) if resized else settings.size
    recogniser = facts.get("recogniser")
    return Facts(
        facts["format"],
        str(facts.get("mambaad", "")),
        msgspec.convert({**facts["settings"], "size": size}, Settings),
        [_product(facts, settings, name, size) for name in product_names(facts)],
        recogniser["names"] if recogniser else None,
        dict(facts.get("recipe", {})),
        [ExampleFacts(name, held_out, box and tuple(box)) for name, held_out, box in facts.get("examples", [])],
    )


def product_names(facts: Mapping[str, Any]) -> list[str]:
    """All products that any table of the file names."""
    tables = ("trained_on", "scores", _statistics(facts), "memories")
    return list(dict.fromkeys(name for table in tables for name in facts.get(table, ())))


def _product(facts: Mapping[str, Any], settings: Settings, name: str, size: Size) -> ProductFacts:
    sizes, photos = facts.get("sizes", {}), facts.get("photos", {})
    memories = name in facts.get("memories", ())
    return ProductFacts(
        name,
        _coarse(tuple(sizes[name]), settings) if name in sizes else size,
        facts["trained_on"].get(name, 0),
        tuple(photos[name]) if name in photos else None,
        own_masks=bool(facts.get("own_masks", False)),
        region=name in facts.get("rois", ()),
        learnt_region=name in facts.get("rois", ()),
        scales=facts.get(_statistics(facts), {}).get(name, 0),
        views=(2 if settings.two_looks else 1) if memories else 0,
        fusion=_converted(facts.get("fusion", {}).get(name), Fusion),
        tiles=_converted(facts.get("tiles", {}).get(name), Fusion),
        calibration=_calibration(facts, name, size) if facts["scores"].get(name) else None,
    )


def _calibration(facts: Mapping[str, Any], name: str, size: Size) -> Calibration:
    """The scores of a product; `with_conditions` corrects the conditions once its region of interest is read."""
    held_out = facts["held_out"]  # format 1 has one answer for all products
    limit = (facts.get("recogniser") or {}).get("limit", math.inf)
    return Calibration(
        Conditions(size),
        tuple(float(score) for score in facts["scores"][name]),
        held_out if isinstance(held_out, bool) else name in held_out,
        facts["max_false_reject"],
        tuple(_converted(row, ScoredDefect) for row in facts.get("simulated", {}).get(name, ())),
        tuple(_converted(row, PhotoStatistics) for row in facts.get("photo_statistics", {}).get(name, ())),
        limit / MARGIN if math.isfinite(limit) else None,
    )


def with_conditions(product: Product) -> Product:
    """A product whose calibration does not name its conditions, with those that its file was made for.

    Inside a region of interest it has no calibration: maps near the border of a region were others then, and so were
    the scores.
    """
    measured = product.calibration
    if measured is None or product.region is not None or product.own_masks:
        return replace(product, calibration=None)
    return replace(product, calibration=replace(measured, conditions=product.conditions()))


def names_of_today(facts: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, str]:
    """Of each tensor of a file its name today, by the name in the file."""
    places = {name: i for i, name in enumerate(product_names(facts))}
    tables = {
        "statistics": (_statistics(facts), list(facts.get(_statistics(facts), ()))),
        "memory": ("memory", list(facts.get("memories", ()))),
        "tiles": ("tiles", list(facts.get("tiles", ()))),
        "region": ("roi", list(facts.get("rois", ()))),
    }
    renamed = {}
    for tensor in tensors:
        renamed[tensor] = tensor
        for today, (before, names) in tables.items():
            head, _, rest = tensor.partition(".")
            if head == before and rest:
                number, _, part = rest.partition(".")
                renamed[tensor] = _name_today(today, places[names[int(number)]], part)
    return renamed


def _name_today(kind: str, product: int, part: str) -> str:
    """
    >>> _name_today("memory", 2, "patches"), _name_today("memory", 2, "1.patches"), _name_today("region", 0, "")
    ('product.2.memory.0.patches', 'product.2.memory.1.patches', 'product.0.region')
    """
    if kind == "memory" and not part.startswith("1."):
        part = f"0.{part}"  # the first view had no number
    if kind == "statistics":
        scale, _, name = part.partition(".")
        part = f"{scale}.{FORMAT_1_PARTS.get(name, name)}"
    return ".".join(filter(None, ("product", str(product), kind, part)))


def _statistics(facts: Mapping[str, Any]) -> str:
    """What format 1 and format 2 call the residuals' statistics."""
    return "normal" if facts["format"] == 1 else "statistics"


def _coarse(size: Size, settings: Settings) -> Size:
    """What the decoder sees where the file names the size of the larger images."""
    return size if settings.detail == 1 else scaled_size(size, 1 / settings.detail)


def _converted(value: Any, kind: Any) -> Any:
    return None if value is None else msgspec.convert(value, kind)
