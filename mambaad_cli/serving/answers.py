"""A scored photo -> the bytes of an answer: its row, its overlay, its anomaly map."""

import base64
import io
from typing import Any

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.inspection.overlays import framed_overlay
from mambaad_cli.inspection.prediction import Prediction
from mambaad_cli.inspection.product import Products
from mambaad_cli.inspection.rows import json_row
from mambaad_cli.serving.batching import Scored

MAP_TYPES = {"png": "image/png", "npy": "application/octet-stream"}


def row_of(scored: Scored, name: str, regions: bool) -> dict[str, Any]:
    """The row that `mambaad score --json` writes; its path is the name that the client gave."""
    return json_row(scored.prediction, scored.model, regions) | {"path": name}


def map_of(prediction: Prediction, kind: str) -> bytes:
    """The overlay as PNG, with a frame around each region, or the anomaly map as NumPy's .npy, float32.

    Raises MambaADError where there is none: the photo could not be read, or its verdict has no threshold.
    """
    if prediction.anomaly_map is None:
        raise MambaADError(f"there is no map: {prediction.error}")
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, prediction.anomaly_map)
        return file.getvalue()
    if prediction.colour_scale is None:
        raise MambaADError(f"an overlay needs a threshold, and a photo with the verdict {prediction.verdict} has none")
    picture = framed_overlay(prediction, prediction.colour_scale)
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def row_with_map(scored: Scored, name: str, regions: bool, kind: str) -> dict[str, Any]:
    """The row with a field `map` that holds the overlay or the map in Base64; None where there is none."""
    try:
        encoded = base64.b64encode(map_of(scored.prediction, kind)).decode()
    except MambaADError:
        encoded = None
    return row_of(scored, name, regions) | {"map": encoded}


def facts_of(products: Products) -> dict[str, Any]:
    """What is known of each product: what /model tells."""
    return {
        name: {
            "threshold": product.threshold,
            "good_images": product.images,
            "calibration_images": len(product.scores),
            "promising": product.promising,
            "width": product.size[1],
            "height": product.size[0],
        }
        for name, product in products.items()
    }
