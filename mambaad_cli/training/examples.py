"""Good images that a model file carries, so that products can be added later without the old photos."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data import roi
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import Box, Input, Wanted, at_size, blank_outside, read_ahead
from mambaad_cli.inspection.fitted_model import Example, FittedModel
from mambaad_cli.training.splits import evenly_spread

EXAMPLES = 20  # at most, of each class, for training, and as many held-out ones
QUALITY = 82  # of their JPEGs


def examples_to_keep(names: Sequence[str], train: Iterable[int], held_out: Iterable[int]) -> list[int]:
    """The images that the model will carry: of each class some of both kinds, evenly spread."""
    kept: list[int] = []
    for name in dict.fromkeys(names):
        for group in (dict.fromkeys(train), sorted(held_out)):
            kept += evenly_spread([i for i in group if names[i] == name], EXAMPLES)
    return kept


def example(path: Path, class_name: str, held_out: bool, wanted: Wanted) -> Example | None:
    """An image as the encoder sees it, as a JPEG. None if its file has disappeared since."""
    one = read_as_seen(path, wanted)
    if one is None:
        return None
    picture = (one.pixels * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    inside = None if one.inside is None else torch.from_numpy(roi.encoded(one.inside.numpy()))
    return Example(class_name, held_out, one.box, torch.from_numpy(encoded.ravel()), inside)


def read_as_seen(path: Path, wanted: Wanted) -> Input | None:
    """A file as the encoder sees it. None if it no longer exists: this must not stop a training."""
    one = next(iter(read_ahead([path], wanted, 1)))
    return None if isinstance(one, ImageError) else one


def inside_of(one: Example, model: FittedModel) -> Tensor | None:
    """The region of interest in the maps of an example, (H, W) of bool; None where all of it counts."""
    if one.inside is None:
        return None
    inside = torch.from_numpy(roi.decoded(one.inside.numpy()))
    return at_size(inside, model.map_size(model.size_of(one.class_name)))


def pixels_of(one: Example, size: tuple[int, int]) -> Tensor:
    """What the encoder saw, (3, H, W) in 0 … 1, scaled to `size` if the model was calibrated for another size later."""
    picture = cv2.imdecode(one.encoded.numpy(), cv2.IMREAD_COLOR)
    if picture is None:
        raise MambaADError(f"the model's examples of {one.class_name} are damaged: fit it anew")
    pixels = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1) / 255
    if pixels.shape[1:] != size:
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    if one.inside is None:
        return pixels
    return blank_outside(pixels, at_size(torch.from_numpy(roi.decoded(one.inside.numpy())), size))


def box_of(one: Example, size: tuple[int, int]) -> Box | None:
    """Where the image lies in the result of `pixels_of`."""
    picture = cv2.imdecode(one.encoded.numpy(), cv2.IMREAD_COLOR) if one.box else None
    if one.box is None or picture is None or picture.shape[:2] == size:
        return one.box
    rows, columns = size[0] / picture.shape[0], size[1] / picture.shape[1]
    top, left, height, width = one.box
    return round(top * rows), round(left * columns), round(height * rows), round(width * columns)
