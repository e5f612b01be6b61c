"""The training loop over cached encoder features: good images in, a calibrated model out.

Letters: b batch, n images, c channels, h × w positions of a stage.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.augmentation import cut_paste, nudged, with_moved
from mambaad_cli.data.images import ImageError, ImageFile
from mambaad_cli.files import written_whole
from mambaad_cli.inspection import calibration, recognition
from mambaad_cli.inspection.model_file import Example, Model, Settings, new_model, read_state_dict, rounding
from mambaad_cli.inspection.predict import WORKERS, Box, read_ahead, within
from mambaad_cli.model import DETECTORS
from mambaad_cli.model.anomaly_map import Normal, normal_of
from mambaad_cli.model.data_parallel import WholeBatchRandom, share_batch_norms
from mambaad_cli.model.encoder import for_inference, pretrained_encoder

LEAST_IMAGES = 3
HELD_OUT = 5  # one image of so many is kept for the threshold
CACHE_MEMORY = 4 * 10**9  # bytes of features kept in memory; more go to a memory-mapped file
SAVE_EVERY = 30.0  # seconds between checkpoints
MOST_STEPS = 2000  # unless told otherwise
ENCODED = 8  # images that go through the encoder together
LOOKED_AT = 160  # good images of a class, nudged views among them, that tell what is normal
EXAMPLES = 64  # to train on, and as many held-out ones, that a model carries of each class for `add`, at most
ADDING_STEPS, ADDING_LR = 100, 0.5  # steps, and the share of the preset's learning rate, when a product is added
ADDING_VIEWS = 2  # times the preset's moved views, which old and new images share
Pixels = Callable[[int], Tensor | None]  # of an image, (3, H, W) in 0 … 1, by its number; None where it is gone
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """How a detector is trained. `steps` counts optimisation steps, each on one batch."""

    steps: int
    batch: int
    lr: float
    schedule: str  # "constant"; "step": × 0.1 at 80 %, as in the paper; "cosine": a short warm-up, then to nothing
    clip: float = 5.0
    seed: int = 42
    cut_paste: bool = False  # learn to rebuild good features from spoilt ones, see augment.py


# Ours for minutes on a laptop, the choices of section 4.1 of the paper, and the baselines' as they are published.
# `steps` and `steps_per_image` add up, unless there are `epochs`; small sets are extended by moved views to `views`.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "detector": "mambaad",
        "encoder": "efficientnet_lite0",
        "options": {"depths": (2, 2, 2, 2), "directions": 2, "drop_path": 0.0, "loss": "hard-cosine"},
        "batch": 8,
        "lr": 0.004,
        "schedule": "cosine",
        "steps": 300,
        "steps_per_image": 1.75,
        "views": 500,
        "cut_paste": True,
        "normalise": True,
        "forgive": True,
    },
    "paper": {
        "detector": "mambaad",
        "encoder": "resnet34",
        "options": {"depths": (3, 4, 6, 3), "directions": 8, "drop_path": 0.2, "loss": "mse"},
        "batch": 16,
        "lr": 0.005,
        "schedule": "step",
        "epochs": 1000,
        "normalise": False,
    },
    "rd4ad": {
        "detector": "rd4ad",
        "encoder": "wide_resnet50_2",
        "options": {"bottleneck_width": 64},
        "batch": 16,
        "lr": 0.005,
        "schedule": "constant",
        "epochs": 200,
        "normalise": False,
    },
    "uniad": {
        "detector": "uniad",
        "encoder": "efficientnet_b4",
        "options": {},
        "batch": 8,
        "lr": 0.0001,
        "schedule": "step",
        "epochs": 1000,
        "normalise": False,
    },
}


class Features:
    """The encoder's features of n images, in memory or in a file, fp32 or bf16.

    stages   (n · views, h, w, c) each: of each image itself, then of its moved views
    """

    def __init__(self, stages: list[Tensor], boxes: list[Box | None], views: int = 1) -> None:
        self.stages = stages
        self.boxes = boxes
        self.views = views

    def __getitem__(self, chosen: Tensor) -> list[Tensor]:
        """Those of some images: one (b, c, h, w) a stage, channels last in memory, float32."""
        return self._rows(chosen * self.views)

    def any_view(self, chosen: Tensor) -> list[Tensor]:
        """The same, of a view of each at random."""
        first = chosen * self.views
        return self._rows(first if self.views == 1 else first + torch.randint(self.views, first.shape))

    def _rows(self, rows: Tensor) -> list[Tensor]:
        return [_as_maps(stage[rows]) for stage in self.stages]


def _as_maps(stage: Tensor) -> Tensor:
    """(b, h, w, c) as it is kept to (b, c, h, w) as detectors take it, float32."""
    return stage.float().permute(0, 3, 1, 2)


def fit(
    files: Sequence[ImageFile],
    classes: Sequence[str],
    settings: Settings,
    *,
    preset: str = "small",
    changed: Mapping[str, Any] = MappingProxyType({}),
    encoder_weights: Path | None = None,
    epochs: int | None = None,
    max_minutes: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int = 42,
    device: str = "cpu",
    precision: str = "fp32",
    cache_dtype: str = "fp32",
    cache_memory: int | None = None,
    checkpoint_activations: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    max_false_reject: float = 0.01,
    keep_examples: bool = True,
    flips: bool = False,
    folds: int = 0,
    on_image: Callable[[], None] = lambda: None,
    on_unreadable: Callable[[ImageError], None] = lambda error: None,
    on_step: Callable[[int, int, float, int], None] = lambda step, steps, loss, images: None,
) -> Model:
    """Train one model on good images, one class name a file, by the recipe PRESETS[preset] but for what is `changed`.

    `checkpoint` is written every half minute, for the caller to remove once the model is safe; with `resume` training
    goes on from it and ends with the weights of a run that was never stopped. `on_step` is told step, steps, loss and
    images of the batch.

    With `folds` no image is lost to the threshold: it comes from that many short trainings, each of which scores the
    images that it did not see, and the model itself learns from all (cross-conformal prediction: Vovk, Annals of
    Mathematics and Artificial Intelligence 2015). Its promise is then only nearly exact.

    With `flips` good parts may also lie mirrored: their mirrored images are learnt as well.

    Features are cached as `cache_dtype` (fp32 or bf16, half as large), in memory up to `cache_memory` bytes, else in a
    temporary file. With `checkpoint_activations` the backward pass computes again what else it would find in memory.

    Under torchrun each process trains on its share of each batch, as one process would on the whole but for rounding;
    the first alone writes checkpoints and calibrates, the others' models have no scores.

    Raises MambaADError for fewer than three readable images, for a checkpoint of another run, and where the temporary
    folder is too small for the features.
    """
    choices = PRESETS[preset] | dict(changed)
    state = None if encoder_weights is None else read_state_dict(encoder_weights)
    torch.manual_seed(seed)
    model = new_model(settings, pretrained_encoder(settings.encoder, DETECTORS[settings.detector].strides, state)).to(
        device
    )
    model.precision = precision
    if checkpoint_activations:
        recompute_activations(model.detector)
    features, readable = cache_features(
        model,
        files,
        device,
        on_image,
        on_unreadable,
        dtype=DTYPES[cache_dtype],
        memory=cache_memory,
        views=max(2 if flips else 1, choices.get("views", 0) // max(1, len(files))),
        flips=flips,
    )
    names = [classes[i] for i in readable]
    if len(names) < LEAST_IMAGES:
        raise MambaADError(f"{len(names)} readable images: at least {LEAST_IMAGES} good images are needed to fit")
    train, held_out = (list(range(len(names))), []) if folds else split(names, seed)

    batch = min(batch or choices["batch"], len(train))
    if epochs is None and "epochs" in choices:
        epochs = choices["epochs"]
    training = Training(
        steps=_steps(choices, len(train)) if epochs is None else math.ceil(epochs * len(train) / batch),
        batch=batch,
        lr=lr or choices["lr"],
        schedule=choices["schedule"],
        seed=seed,
        cut_paste=choices.get("cut_paste", False),
    )
    data = _fingerprint(files, model, seed, flips)
    run = Run(model.detector, features, train, training, device, data, precision)
    with distributed.joined(device):
        run.train(max_minutes, checkpoint, resume, on_step)

    if distributed.rank() > 0:
        return model

    def pixels(i: int) -> Tensor | None:
        return _seen_in(files[readable[i]].path, settings)[0]

    model.max_false_reject = max_false_reject
    model.trained_on = dict(Counter(names[i] for i in train))
    _describe_good(model, features, names, train, held_out, choices, pixels, device)
    if folds:
        short = replace(run.training, steps=math.ceil(run.training.steps / 2))
        model.scores = _cross_fitted_scores(model, features, names, folds, short, choices, pixels, on_step)
        model.held_out = True
    if keep_examples:
        kept = _kept(names, train, set(held_out))
        facts = [(files[readable[i]].path, names[i], i in held_out) for i in kept]
        model.examples = [one for one in (example(*fact, settings) for fact in facts) if one]
    return model


def _cross_fitted_scores(
    model: Model,
    features: Features,
    names: Sequence[str],
    folds: int,
    training: Training,
    choices: Mapping[str, Any],
    pixels: Pixels,
    on_step: Callable[[int, int, float, int], None],
) -> dict[str, list[float]]:
    """Scores of all images, by class, each from a model that was trained on the other folds alone."""
    device = str(next(model.detector.parameters()).device)
    scores: dict[str, list[float]] = {}
    for fold, unseen in enumerate(folds_of(names, folds, training.seed)):
        torch.manual_seed(training.seed + 1 + fold)
        train = sorted(set(range(len(names))) - set(unseen))
        other = replace(model, detector=new_model(model.settings, model.encoder).detector.to(device))
        batch = min(training.batch, len(train))
        run = Run(other.detector, features, train, replace(training, batch=batch), device, "", model.precision)
        run.train(None, None, False, on_step)
        _describe_good(other, features, names, train, unseen, choices, pixels, device)
        for name, own in other.scores.items():
            scores.setdefault(name, []).extend(own)
    return scores


def folds_of(classes: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """Indices in `folds` parts of nearly the same size, each class spread over all of them.

    >>> [len(part) for part in folds_of(["nut"] * 10 + ["bolt"] * 4, 4, seed=0)]
    [4, 4, 3, 3]
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator).tolist()
    by_class = sorted(order, key=lambda i: classes[i])
    return [sorted(by_class[fold::folds]) for fold in range(folds)]


def _steps(choices: dict[str, Any], images: int) -> int:
    """More images take more steps, up to a quarter of an hour or so of them; few are seen more often."""
    return min(MOST_STEPS, choices.get("steps", 0) + round(choices.get("steps_per_image", 0) * images))


def add(
    model: Model,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    *,
    epochs: int | None = None,
    max_minutes: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int = 42,
    device: str = "cpu",
    precision: str = "fp32",
    cache_dtype: str = "fp32",
    cache_memory: int | None = None,
    checkpoint_activations: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_image: Callable[[], None] = lambda: None,
    on_unreadable: Callable[[ImageError], None] = lambda error: None,
    on_step: Callable[[int, int, float, int], None] = lambda step, steps, loss, images: None,
) -> Model:
    """Teach a fitted model new products, or more images of those it knows.

    Half of what it trains on are the images of the other products that it carries, so that these are not forgotten
    (rehearsal: Robins, Connection Science 1995); their thresholds are set anew.

    Raises MambaADError for a model without examples, and for fewer than three readable images.
    """
    if not model.examples:
        raise MambaADError("the model carries no examples of what it knows (--no-examples): fit all products anew")
    if distributed.world() > 1:
        raise MambaADError("--add runs in one process: leave out torchrun")
    choices = next(one for one in PRESETS.values() if one["detector"] == model.settings.detector)
    torch.manual_seed(seed)
    model.precision = precision
    if checkpoint_activations:
        recompute_activations(model.detector)
    data = _fingerprint(files, model.to(device), seed)
    views = max(1, ADDING_VIEWS * choices.get("views", 0) // (len(model.examples) + max(1, len(files))))
    new, readable = cache_features(
        model, files, device, on_image, on_unreadable, dtype=DTYPES[cache_dtype], memory=cache_memory, views=views
    )
    if len(readable) < LEAST_IMAGES:
        raise MambaADError(f"{len(readable)} readable images: at least {LEAST_IMAGES} good images are needed to fit")
    old = rehearsed_features(model, device, views)
    stages = [torch.cat([a.to(b.dtype), b]) for a, b in zip(old.stages, new.stages, strict=True)]
    features = Features(stages, [*old.boxes, *new.boxes], views)
    names = [one.class_name for one in model.examples] + [classes[i] for i in readable]
    first = len(model.examples)
    known = [i for i, one in enumerate(model.examples) if not one.held_out]
    held_out = [i for i, one in enumerate(model.examples) if one.held_out]
    tested = {names[i] for i in held_out}
    untested = [i for i in known if names[i] not in tested]  # of a model that was fitted with folds
    held_out += [untested[i] for i in split([names[i] for i in untested], seed)[1]]
    known = [i for i in known if i not in set(held_out)]
    own, own_held_out = split(names[first:], seed)
    added = [first + i for i in own]
    held_out += [first + i for i in own_held_out]
    longest = max(len(known), len(added))  # the shorter list is walked through more often
    train = [group[i % len(group)] for group in (known, added) for i in range(longest)]

    batch = min(batch or choices["batch"], len(train))
    training = Training(
        steps=ADDING_STEPS if epochs is None else math.ceil(epochs * len(train) / batch),
        batch=batch,
        lr=lr or ADDING_LR * choices["lr"],
        schedule=choices["schedule"],
        seed=seed,
        cut_paste=choices.get("cut_paste", False),
    )
    run = Run(model.detector, features, train, training, device, data, precision)
    run.train(max_minutes, checkpoint, resume, on_step)

    def pixels(i: int) -> Tensor | None:
        return seen(model.examples[i]) if i < first else _seen_in(files[readable[i - first]].path, model.settings)[0]

    model.trained_on = dict(Counter(model.trained_on) + Counter(names[i] for i in added))
    _describe_good(
        model, features, names, known + added, held_out, choices | {"normalise": bool(model.normal)}, pixels, device
    )
    kept = [i - first for i in _kept(names, known + added, set(held_out)) if i >= first]
    facts = [(files[readable[i]].path, names[first + i], first + i in held_out) for i in kept]
    model.examples += [one for one in (example(*fact, model.settings) for fact in facts) if one]
    return model


@torch.inference_mode()
def _describe_good(
    model: Model,
    features: Features,
    names: Sequence[str],
    train: list[int],
    held_out: list[int],
    choices: Mapping[str, Any],
    pixels: Pixels,
    device: str,
) -> None:
    """What good images tell once the training is over: what is normal, how products differ, scores for thresholds."""
    model.detector.eval()
    model.normal = {}
    for name in dict.fromkeys(names) if choices["normalise"] else ():
        own = [i for i in train if names[i] == name]
        model.normal[name] = normal_residuals(model, features, own, pixels, device, choices.get("forgive", False))
    if len(set(names)) > 1:
        everything = range(len(names))
        signatures = [recognition.signature(batch).cpu() for batch in _batches(features, everything, device)]
        unseen = held_out or split(names, seed=0)[1]
        model.recogniser = recognition.learn(torch.cat(signatures), names, unseen)
    model.held_out = bool(held_out)
    good = held_out or train
    model.scores = {}
    for i, score in zip(good, scores_of(model, features, names, good, device), strict=True):
        model.scores.setdefault(names[i], []).append(score)


def _kept(names: Sequence[str], train: Sequence[int], held_out: set[int]) -> list[int]:
    """The images that the model carries with it: of each class a few of both kinds, evenly spread."""
    kept: list[int] = []
    for name in dict.fromkeys(names):
        for group in (train, sorted(held_out)):
            own = [i for i in dict.fromkeys(group) if names[i] == name]
            most = min(len(own), EXAMPLES)
            kept += [own[i * len(own) // most] for i in range(most)]
    return kept


def example(path: Path, class_name: str, held_out: bool, settings: Settings) -> Example | None:
    """An image as the encoder sees it, as a PNG: nothing is lost of 8-bit images. None where it is gone meanwhile."""
    pixels, box = _seen_in(path, settings)
    if pixels is None:
        return None
    png = cv2.imencode(".png", (pixels * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1])[1]
    return Example(class_name, held_out, box, torch.from_numpy(png.ravel()))


def _seen_in(path: Path, settings: Settings) -> tuple[Tensor | None, Box | None]:
    """A file as the encoder sees it; None where it is gone meanwhile: the training is worth more than that."""
    one = next(iter(read_ahead([path], settings.size, settings.letterbox, 1)))
    return (None, None) if isinstance(one, ImageError) else (one.pixels, one.box)


def seen(one: Example) -> Tensor:
    """What the encoder saw, (3, H, W) in 0 … 1."""
    picture = cv2.imdecode(one.png.numpy(), cv2.IMREAD_COLOR)
    if picture is None:
        raise MambaADError(f"the model's examples of {one.class_name} are damaged: fit it anew")
    return torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1) / 255


@torch.inference_mode()
def rehearsed_features(model: Model, device: str, views: int = 1) -> Features:
    """The encoder's features of the images that the model carries, and of `views` less one moved views of each."""
    pixels = (view for i, one in enumerate(model.examples) for view in with_moved(seen(one), views, i))
    stages = [torch.cat(stage).float().cpu() for stage in zip(*_encoded(model, pixels, device), strict=True)]
    return Features(stages, [one.box for one in model.examples], views)


def _encoded(model: Model, pictures: Iterable[Tensor], device: str) -> Iterator[list[Tensor]]:
    """The encoder's features of (3, H, W) each, (b, h, w, c) a stage, a batch at a time."""
    encoder, pictures = for_inference(model.encoder), iter(pictures)
    while some := list(itertools.islice(pictures, ENCODED)):
        with rounding(model.precision, device):
            maps = encoder(torch.stack(some).to(device))
        yield [stage.permute(0, 2, 3, 1) for stage in maps]


def split(classes: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: of each class with five images or more a fifth, chosen by the seed.

    >>> train, held_out = split(["nut"] * 10 + ["bolt"] * 4, seed=0)
    >>> len(train), len(held_out), max(held_out) < 10
    (12, 2, True)
    """
    generator = torch.Generator().manual_seed(seed)
    held_out: list[int] = []
    for name in dict.fromkeys(classes):
        own = [i for i, other in enumerate(classes) if other == name]
        order = torch.randperm(len(own), generator=generator).tolist()
        held_out += [own[j] for j in order[: len(own) // HELD_OUT]]
    left = set(range(len(classes))) - set(held_out)
    return sorted(left), sorted(held_out)


@torch.inference_mode()
def cache_features(
    model: Model,
    files: Sequence[ImageFile],
    device: str,
    on_image: Callable[[], None] = lambda: None,
    on_unreadable: Callable[[ImageError], None] = lambda error: None,
    *,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    views: int = 1,
    flips: bool = False,
) -> tuple[Features, list[int]]:
    """Run the encoder once over the files: its features and the indices of the files that could be read.

    With `views` also over so many less one moved views of each, with `flips` mirrored ones.
    """
    memory = CACHE_MEMORY if memory is None else memory
    stages: list[Tensor] = []
    boxes: list[Box | None] = []
    readable: list[int] = []

    def pictures() -> Iterator[Tensor]:
        size, letterbox = model.settings.size, model.settings.letterbox
        for i, one in enumerate(read_ahead([file.path for file in files], size, letterbox, WORKERS)):
            on_image()
            if isinstance(one, ImageError):
                on_unreadable(one)
                continue
            readable.append(i)
            boxes.append(one.box)
            yield from with_moved(one.pixels, views, len(readable), flips)

    done = 0
    for maps in _encoded(model, pictures(), device):
        if not stages:
            stages = _room(views * len(files), [tuple(found.shape[1:]) for found in maps], dtype, memory)
        for stage, found in zip(stages, maps, strict=True):
            stage[done : done + len(found)] = found
        done += len(maps[0])
    return Features([stage[:done] for stage in stages], boxes, views), readable


def _room(n: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, memory: int) -> list[Tensor]:
    """Uninitialised (n, h, w, c) tensors: in memory, or in an unnamed temporary file where they are large."""
    sizes = [n * math.prod(shape) for shape in shapes]
    needed = dtype.itemsize * sum(sizes)
    if needed <= memory:
        return [torch.empty(n, *shape, dtype=dtype) for shape in shapes]
    folder = tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):  # a disk that fills under a mapping kills the process
        raise MambaADError(
            f"the features take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: set TMPDIR to "
            "a larger disk, or give --cache-dtype bf16 or --cache-memory"
        )
    room = []
    for size, shape in zip(sizes, shapes, strict=True):
        handle, path = tempfile.mkstemp(prefix="mambaad-")
        os.close(handle)
        try:
            room.append(torch.from_file(path, shared=True, size=size, dtype=dtype).view(n, *shape))
        finally:
            Path(path).unlink()  # the mapping keeps it until we end, however we end
    return room


def recompute_activations(detector: nn.Module) -> None:
    """Let those parts of a detector that can forget what they computed until the backward pass asks for it."""
    parts = [module for module in detector.modules() if hasattr(module, "recompute")]
    if not parts:
        raise MambaADError("--checkpoint-activations is for the detector mambaad: leave it out")
    for part in parts:
        part.recompute = True  # type: ignore[assignment]


class Run:
    """One training: everything that changes from step to step, so that it can stop and go on."""

    def __init__(
        self,
        detector: Any,
        features: Features,
        train: list[int],
        training: Training,
        device: str,
        data: str,
        precision: str = "fp32",
    ) -> None:
        self.detector, self.features, self.device, self.data = detector, features, device, data
        self.precision = precision
        self.images = torch.tensor(train)
        self.training = training
        self.optimizer: torch.optim.Optimizer = detector.optimizer(training.lr)
        self.step = 0
        self.order: tuple[int, Tensor] = (-1, self.images)  # of one epoch
        if distributed.world() > training.batch:
            raise MambaADError(
                f"{distributed.world()} processes for batches of {training.batch} images: start fewer, or give --batch"
            )
        if distributed.world() > 1:
            share_batch_norms(detector, distributed.all_sum)

    def train(
        self,
        max_minutes: float | None,
        checkpoint: Path | None,
        resume: bool,
        on_step: Callable[[int, int, float, int], None],
    ) -> None:
        """Run to the last step, or as many as fit into `max_minutes`."""
        if resume and checkpoint is not None and checkpoint.exists():
            self.restore(checkpoint)
        elif max_minutes is not None:
            self.training = Training(**(asdict(self.training) | {"steps": self.steps_within(60 * max_minutes)}))
        self.detector.train()
        if distributed.rank() > 0:
            checkpoint = None
        saved = time.monotonic()
        try:
            with _whole_steps() as asked_to_stop:
                while self.step < self.training.steps:
                    loss = self.advance()
                    if distributed.anywhere(asked_to_stop()):
                        raise KeyboardInterrupt
                    if not math.isfinite(loss):
                        raise MambaADError(f"the training diverged at step {self.step}: choose a lower --lr")
                    on_step(self.step, self.training.steps, loss, self.training.batch)
                    if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                        self.save(checkpoint)
                        saved = time.monotonic()
        except KeyboardInterrupt:
            if checkpoint is not None:
                self.save(checkpoint)
            raise

    def advance(self) -> float:
        """One optimisation step; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * lr_factor(self.training.schedule, self.step / self.training.steps)
        chosen = self.chosen(self.step)
        own, n = distributed.share(len(chosen)), len(chosen)
        whole = self.features.any_view(chosen)
        spoilt = [cut_paste(whole)] if self.training.cut_paste else []
        batch, *seen = ([stage[own].to(self.device) for stage in stages] for stages in (whole, *spoilt))
        self.optimizer.zero_grad(set_to_none=True)
        with WholeBatchRandom(own, n) if distributed.world() > 1 else nullcontext():
            with rounding(self.precision, self.device):
                loss = self.detector.loss(batch, *seen) * ((own.stop - own.start) / n)
            loss.backward()
        loss = distributed.sum_gradients(self.detector, loss.detach())
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.training.clip)
        self.optimizer.step()
        self.step += 1
        return float(loss)

    def chosen(self, step: int) -> Tensor:
        """The images of a step's batch: each epoch in an order of its own, one after the other without a gap."""
        n, batch = len(self.images), self.training.batch
        positions = range(step * batch, (step + 1) * batch)
        return torch.stack([self.order_of(position // n)[position % n] for position in positions])

    def order_of(self, epoch: int) -> Tensor:
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + epoch)
            self.order = (epoch, self.images[torch.randperm(len(self.images), generator=generator)])
        return self.order[1]

    def steps_within(self, seconds: float) -> int:
        """How many steps fit, from the time that the fastest of a few takes; these are undone again."""
        before = {key: value.clone() for key, value in self.detector.state_dict().items()}
        random = torch.get_rng_state()
        self.detector.train()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self.advance()
            times.append(time.perf_counter() - start)
        self.detector.load_state_dict(before)
        self.optimizer = self.detector.optimizer(self.training.lr)
        self.step = 0
        torch.set_rng_state(random)
        return distributed.from_first(max(1, int((seconds - sum(times)) / min(times))))

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        tensors = {f"detector.{name}": tensor for name, tensor in self.detector.state_dict().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
        tensors["random"] = torch.get_rng_state()
        facts = {"step": self.step, "training": asdict(self.training), "data": self.data}
        with written_whole(path) as half:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            try:
                save_file(contiguous, half, metadata={"checkpoint": json.dumps(facts)})
            except SafetensorError as error:
                raise MambaADError(f"cannot write {path}: {error}") from error

    def restore(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise MambaADError(f"{path} is a damaged checkpoint ({error}): fit without --resume") from error
        if facts.get("data") != self.data:
            raise MambaADError(f"{path} is a checkpoint of other images or settings: fit without --resume")
        tensors = load_file(path)
        self.training, self.step = Training(**facts["training"]), facts["step"]
        named = {name: tensor for name, tensor in tensors.items() if name.startswith("detector.")}
        self.detector.load_state_dict({name.removeprefix("detector."): tensor for name, tensor in named.items()})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                state.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["random"])


def lr_factor(schedule: str, progress: float) -> float:
    """The share of the learning rate at `progress` 0 … 1 of the training.

    >>> lr_factor("step", 0.79), lr_factor("step", 0.8), lr_factor("cosine", 0.05), round(lr_factor("cosine", 1), 3)
    (1.0, 0.1, 0.5, 0.0)
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if progress < 0.8 else 0.1
    warm_up = 0.1
    if progress < warm_up:
        return progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


@torch.inference_mode()
def normal_residuals(
    model: Model, features: Features, chosen: Sequence[int], pixels: Pixels, device: str, forgive: bool = True
) -> list[Normal]:
    """What the decoder leaves over of good images of one class, a Normal a scale; of LOOKED_AT of them or so.

    Where there are fewer, nudged views of their `pixels` join them: not trained on, as the next photo is not.
    """
    chosen = chosen[:: math.ceil(len(chosen) / LOOKED_AT)]
    views = (nudged(own, i) for i in chosen[: LOOKED_AT - len(chosen)] if (own := pixels(i)) is not None)
    unseen = ([_as_maps(stage) for stage in stages] for stages in _encoded(model, views, device))
    batches = itertools.chain(_batches(features, chosen, device), unseen)
    return normal_of((model.residuals(batch) for batch in batches), forgive)


@torch.inference_mode()
def scores_of(
    model: Model, features: Features, names: Sequence[str], chosen: Sequence[int], device: str
) -> list[float]:
    """Image scores of cached images, each as one of its class."""
    scores: list[float] = []
    for batch in _batches(features, chosen, device):
        classes = [names[i] for i in chosen[len(scores) : len(scores) + len(batch[0])]]
        maps = model.maps_of(batch, model.settings.size, classes)
        boxes = [features.boxes[i] for i in chosen[len(scores) : len(scores) + len(maps)]]
        scores += [float(within(one, box).max()) for one, box in zip(maps, boxes, strict=True)]
    return scores


def _batches(features: Features, chosen: Sequence[int], device: str) -> Iterator[list[Tensor]]:
    for start in range(0, len(chosen), ENCODED):
        yield [stage.to(device) for stage in features[torch.tensor(chosen[start : start + ENCODED])]]


def above_threshold(model: Model) -> tuple[int, int]:
    """How many of the good images that the threshold comes from lie above it, and how many there are."""
    above = sum(score > (model.threshold(name) or 0) for name, scores in model.scores.items() for score in scores)
    return above, sum(len(scores) for scores in model.scores.values())


def promises(model: Model) -> dict[str, float]:
    """For each class the share of false rejects that its threshold can promise."""
    return {name: calibration.promise(len(s), model.max_false_reject) for name, s in model.scores.items()}


@contextmanager
def _whole_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits to be asked for at the end of a step: half of one could be neither kept nor repeated."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _fingerprint(files: Sequence[ImageFile], model: Model, seed: int, *choices: object) -> str:
    """Tells one run's images, settings, seed and encoder weights from another's."""
    facts = [[str(file.path), file.path.stat().st_size if file.path.exists() else 0] for file in files]
    digest = hashlib.sha256(json.dumps([facts, asdict(model.settings), seed, *choices]).encode())
    for tensor in model.encoder.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
