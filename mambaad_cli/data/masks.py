"""Masks of defects: read one, scale one to a model's size."""

from pathlib import Path

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import shown


def read_mask(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool, True where defective (any channel > 0); `shape` is the image's (h, w). Zeros for a good sample.

    Ask `sample.mask is None` first: an anomalous sample without a mask has no pixels to compare with.
    Raises MambaADError for such a sample, for a file that cannot be read and for a mask of another size than its image.
    """
    if not sample.anomalous:
        return np.zeros(shape, bool)
    if sample.mask is None:
        raise MambaADError(f"{shown(sample.path)} is anomalous and has no mask: leave it out of pixel metrics")
    mask = _decode(sample.mask)
    if mask.shape != shape:
        (h, w), (image_h, image_w) = mask.shape, shape
        raise MambaADError(
            f"mask {shown(sample.mask)} is {w}×{h} px, its image {shown(sample.path)} {image_w}×{image_h}: "
            "they must be of one size"
        )
    return mask


def _decode(file: Path) -> np.ndarray:
    """A mask file as (h, w) bool; an alpha channel is ignored."""
    try:
        pixels = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise MambaADError(f"cannot read mask {shown(file)}: {error}") from error
    if pixels is None:
        raise MambaADError(f"cannot read mask {shown(file)}: not an image, or damaged")
    return np.any(np.atleast_3d(pixels)[..., :3] > 0, axis=2)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask (H, W) bool to (h, w) bool: nearest neighbour, but no defect is lost.

    Nearest neighbour (the pixel under each new pixel's centre, as in Pillow) is what the field does and keeps areas
    unbiased, so that pixel metrics compare with published ones; "any pixel" would widen every defect. But it may drop
    a whole defect that is smaller than its step: such a connected region, and only such, marks every new pixel that it
    touches.

    >>> mask = np.zeros((8, 8), bool)
    >>> mask[0, 0] = mask[4:, 4:] = True
    >>> resize_mask(mask, (2, 2)).astype(int).tolist()
    [[1, 0], [0, 1]]
    """
    (H, W), (h, w) = mask.shape, size
    rows = (2 * np.arange(h) + 1) * H // (2 * h)
    columns = (2 * np.arange(w) + 1) * W // (2 * w)
    regions = cv2.connectedComponents(mask.astype(np.uint8))[1]
    kept = regions[np.ix_(rows, columns)]
    resized = kept > 0
    y, x = np.nonzero(mask & ~np.isin(regions, kept))
    resized[y * h // H, x * w // W] = True
    return resized
