"""Masks of defects: read one, scale one to a model's size."""

from pathlib import Path

import cv2
import numpy as np

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.samples import Sample
from mambaad_cli.files import shown


def read_mask(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool, True where defective; `shape` is the image's (h, w). Zeros for a good sample.

    Any value but 0 marks a defect, in any channel: datasets use 1, 255 or a value for each kind of defect. In a file of
    lossy compression, such as a JPEG, it counts above half of the largest value, because small values surround every
    edge. A folder of masks (MVTec LOCO) marks all that any of them marks.

    Ask `sample.mask is None` first: an anomalous sample without a mask has no pixels to compare with.
    Raises MambaADError for such a sample, for a file that cannot be read and for a mask of another size than its image.
    """
    if not sample.anomalous:
        return np.zeros(shape, bool)
    if sample.mask is None:
        raise MambaADError(f"{shown(sample.path)} is anomalous and has no mask: leave it out of pixel metrics")
    mask = np.zeros(shape, bool)
    for file in mask_files(sample):
        part = _defective(file)
        if part.shape != shape:
            (h, w), (image_h, image_w) = part.shape, shape
            raise MambaADError(
                f"mask {shown(file)} is {w}×{h} px, its image {shown(sample.path)} {image_w}×{image_h}: "
                "they must be of one size"
            )
        mask |= part
    return mask


def mask_files(sample: Sample) -> list[Path]:
    """The mask files of a sample: none, one, or those in its folder of masks."""
    return [] if sample.mask is None else [file.path for file in images.find([sample.mask])]


def _defective(file: Path) -> np.ndarray:
    """A mask file as (h, w) bool; an alpha channel is ignored."""
    try:
        opened = images.opened(file)
        channels = np.atleast_3d(opened.stored_pixels())
    except images.ImageError as error:
        raise MambaADError(f"cannot read mask {shown(file)}: {error.reason}") from error
    pixels = channels[..., : 1 if channels.shape[2] == 2 else 3]
    above = pixels.max() / 2 if opened.header.lossy else 0
    return np.any(pixels > above, axis=2)


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
