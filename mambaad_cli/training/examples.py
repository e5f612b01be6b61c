"""Good images that a model file carries, so that products can be added later without the old photos."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.loading import Box, read_ahead
from mambaad_cli.inspection.fitted_model import Example
from mambaad_cli.model.settings import Settings
from mambaad_cli.training.splits import evenly_spread

EXAMPLES = 64  # at most, of each class, for training, and as many held-out ones


def examples_to_keep(names: Sequence[str], train: Iterable[int], held_out: Iterable[int]) -> list[int]:
    """The images that the model will carry: of each class some of both kinds, evenly spread."""
    kept: list[int] = []
    for name in dict.fromkeys(names):
        for group in (dict.fromkeys(train), sorted(held_out)):
            kept += evenly_spread([i for i in group if names[i] == name], EXAMPLES)
    return kept


def example(path: Path, class_name: str, held_out: bool, settings: Settings) -> Example | None:
    """An image as the encoder sees it, as a PNG, without loss for 8-bit images. None if the file no longer exists."""
    pixels, box = read_as_seen(path, settings)
    if pixels is None:
        return None
    png = cv2.imencode(".png", (pixels * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1])[1]
    return Example(class_name, held_out, box, torch.from_numpy(png.ravel()))


def read_as_seen(path: Path, settings: Settings) -> tuple[Tensor | None, Box | None]:
    """A file as the encoder sees it. None if it no longer exists: this must not stop a training."""
    one = next(iter(read_ahead([path], settings.size, settings.letterbox, 1)))
    return (None, None) if isinstance(one, ImageError) else (one.pixels, one.box)


def pixels_of(one: Example, size: tuple[int, int]) -> Tensor:
    """What the encoder saw, (3, H, W) in 0 … 1, scaled to `size` if the model was calibrated for another size later."""
    picture = cv2.imdecode(one.png.numpy(), cv2.IMREAD_COLOR)
    if picture is None:
        raise MambaADError(f"the model's examples of {one.class_name} are damaged: fit it anew")
    pixels = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1) / 255
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]


def box_of(one: Example, size: tuple[int, int]) -> Box | None:
    """Where the image lies in the result of `pixels_of`."""
    picture = cv2.imdecode(one.png.numpy(), cv2.IMREAD_COLOR) if one.box else None
    if one.box is None or picture is None or picture.shape[:2] == size:
        return one.box
    rows, columns = size[0] / picture.shape[0], size[1] / picture.shape[1]
    top, left, height, width = one.box
    return round(top * rows), round(left * columns), round(height * rows), round(width * columns)
