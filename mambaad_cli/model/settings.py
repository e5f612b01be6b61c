"""Settings describe a detector with its encoder; they travel in the model file."""

from dataclasses import dataclass, field, replace
from typing import Any

LOCAL_CONTRAST = 0.5  # of the presets that have a memory; 0.3 to 0.6 do as well in the mean over eight products
STEP = 16  # own sizes are multiples of it with all encoders but some transformers: their coarsest stage has this stride


@dataclass(frozen=True)
class Settings:
    """A detector on an encoder, and the size that images are scaled to."""

    detector: str = "mambaad"  # a key of DETECTORS
    encoder: str = "efficientnet_lite0"
    size: tuple[int, int] = (256, 256)  # height, width in pixels of what the encoder sees
    letterbox: bool = False  # keep each image's aspect; else it is stretched to `size`
    options: dict[str, Any] = field(default_factory=dict)  # the detector's keyword arguments
    detail: float = 1.0  # the memory sees images so many times as large as `size`, along a side
    tiles: tuple[int, int] | None = None  # height, width of tiles in which photos are looked at beside the whole
    scale: float = 1.0  # of the photos, before tiles are cut from them
    looks: int = 1  # of the memory: 2 where it looks both at what the decoder sees and at the larger images
    far_weight: float = 1.0  # of what the look at what the decoder sees finds, beside the close look
    binomial: bool = False  # a close look averages 3×3 positions with binomial weights, else evenly
    memory_sigma: float = 4.0  # pixels of the map: the Gaussian that smooths what the memory finds
    local_contrast: float = 0.0  # share of its wider surroundings that is taken off a value, see anomaly_map
    own_aspect: bool = False  # each product has a size of its own, with as many pixels as `size` in its images' aspect
    step: int = STEP  # own sizes are multiples of it: 16, or the patch of the encoder, see Encoder.step

    @property
    def two_looks(self) -> bool:
        """Whether the memory looks twice: there are no larger images where the detail is 1."""
        return self.looks > 1 and self.detail != 1


def scaled_size(size: tuple[int, int], factor: float, step: int = STEP) -> tuple[int, int]:
    """Height and width times a factor, in whole multiples of a step.

    >>> scaled_size((256, 208), 1.5), scaled_size((384, 320), 1 / 1.5), scaled_size((256, 256), 1, 14)
    ((384, 320), (256, 208), (252, 252))
    """
    height, width = (max(step, step * round(factor * side / step)) for side in size)
    return height, width


def in_steps(settings: Settings, step: int) -> Settings:
    """The settings for an encoder of this step; where products have sizes of their own, their budget is in whole steps.

    >>> in_steps(PRESETS["small"], 14).size, in_steps(PRESETS["paper"], 14).size
    ((252, 252), (256, 256))
    """
    if step == settings.step:
        return settings
    size = scaled_size(settings.size, 1, step) if settings.own_aspect else settings.size
    return replace(settings, size=size, step=step)


def seen_by(settings: Settings, evidence: str) -> Settings:
    """The settings for a model whose map shows `evidence`: the decoder alone needs no larger images.

    The decoder alone gains nothing from local contrast.

    >>> seen_by(PRESETS["small"], "memory").detail, seen_by(PRESETS["small"], "decoder").detail
    (2.5, 1.0)
    """
    return replace(settings, local_contrast=0.0, detail=1.0) if evidence == "decoder" else settings


SMALL = Settings(
    own_aspect=True,
    detail=2.5,
    looks=2,
    far_weight=0.5,
    binomial=True,
    memory_sigma=2.5,
    local_contrast=LOCAL_CONTRAST,
    options={"depths": (2, 2, 2), "directions": 2, "drop_path": 0.0, "loss": "hard-cosine"},
)
# Ours for a laptop and for fast lines, the paper's (section 4.1), and the baselines as published
PRESETS = {
    "small": SMALL,
    "fast": replace(SMALL, detector="memory", detail=2.0, options={}),
    "paper": Settings(
        encoder="resnet34", options={"depths": (3, 4, 6, 3), "directions": 8, "drop_path": 0.2, "loss": "mse"}
    ),
    "memory": Settings("memory", size=(384, 384), own_aspect=True, local_contrast=LOCAL_CONTRAST),
    "rd4ad": Settings("rd4ad", "wide_resnet50_2", options={"bottleneck_width": 64}),
    "uniad": Settings("uniad", "efficientnet_b4"),
}
