"""Good images that a model file carries, so that products can be added later without the old photos.

They are kept as the decoder sees them, without loss: a lossy image has less grain than a photo, and what is learnt of
it would call the grain of new photos unusual.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import roi
from mambaad_cli.data.images import ImageError, decoded_bytes
from mambaad_cli.data.loading import Box, Input, Wanted, at_size, blank_outside, read_ahead
from mambaad_cli.inspection.model_record import Example
from mambaad_cli.inspection.product import Size
from mambaad_cli.training.splits import evenly_spread

MAX_EXAMPLES = 20  # of each class, for training, and as many held-out ones
LOSSLESS = 101  # OpenCV's quality of a WebP image without loss


def examples_to_keep(names: Sequence[str], train: Iterable[int], held_out: Iterable[int]) -> list[int]:
    """The images that the model will carry: of each class some of both kinds, evenly spread."""
    kept: list[int] = []
    for name in dict.fromkeys(names):
        for group in (dict.fromkeys(train), sorted(held_out)):
            kept += evenly_spread([i for i in group if names[i] == name], MAX_EXAMPLES)
    return kept


def example(path: Path, class_name: str, held_out: bool, wanted: Wanted) -> Example | None:
    """An image as `wanted`. None if its file has disappeared since."""
    image = read_as_seen(path, wanted)
    if image is None:
        return None
    picture = (image.pixels * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
    encoded = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS])[1]
    inside = None if image.inside is None else torch.from_numpy(roi.encoded(image.inside.numpy()))
    return Example(class_name, held_out, image.box, torch.from_numpy(encoded.ravel()), inside)


def read_as_seen(path: Path, wanted: Wanted) -> Input | None:
    """A file as the encoder sees it. None if it no longer exists: this must not stop a training."""
    image = next(iter(read_ahead([path], wanted, 1)))
    return None if isinstance(image, ImageError) else image


def inside_of(example: Example, size: Size) -> Tensor | None:
    """The region of interest in an example at a size, (H, W) of bool; None where all of it counts."""
    return None if example.inside is None else at_size(torch.from_numpy(roi.decoded(example.inside.numpy())), size)


def pixels_of(example: Example, size: Size) -> Tensor:
    """An example (3, H, W) in 0 … 1, scaled to `size`."""
    picture = _picture(example)
    pixels = torch.from_numpy(picture).permute(2, 0, 1) / 255
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    inside = inside_of(example, size)
    return pixels if inside is None else blank_outside(pixels, inside)


def box_of(example: Example, size: Size) -> Box | None:
    """Where the image lies in the result of `pixels_of`."""
    if example.box is None:
        return None
    height, width = _picture(example).shape[:2]
    if (height, width) == size:
        return example.box
    rows, columns = size[0] / height, size[1] / width
    top, left, box_height, box_width = example.box
    return round(top * rows), round(left * columns), round(box_height * rows), round(box_width * columns)


def _picture(example: Example) -> np.ndarray:
    try:
        return decoded_bytes(example.encoded.numpy())
    except ValueError as error:
        raise MambaADError(f"the model's examples of {example.class_name} are damaged ({error}): fit it anew") from None
