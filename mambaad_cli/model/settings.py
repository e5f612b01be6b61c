"""Settings describe a detector with its encoder; they travel in the model file."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """A detector on an encoder, and the size that images are scaled to."""

    detector: str = "mambaad"  # a key of DETECTORS
    encoder: str = "efficientnet_lite0"
    size: tuple[int, int] = (256, 256)  # height, width in pixels of what the encoder sees
    letterbox: bool = False  # keep each image's aspect; else it is stretched to `size`
    options: dict[str, Any] = field(default_factory=dict)  # the detector's keyword arguments


# Ours for a laptop, the paper's (section 4.1), and the baselines as published
PRESETS = {
    "small": Settings(options={"depths": (2, 2, 2, 2), "directions": 2, "drop_path": 0.0, "loss": "hard-cosine"}),
    "paper": Settings(
        encoder="resnet34", options={"depths": (3, 4, 6, 3), "directions": 8, "drop_path": 0.2, "loss": "mse"}
    ),
    "rd4ad": Settings("rd4ad", "wide_resnet50_2", options={"bottleneck_width": 64}),
    "uniad": Settings("uniad", "efficientnet_b4"),
}
