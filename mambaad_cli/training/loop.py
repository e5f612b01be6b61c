"""The training loop over cached encoder features, which can be stopped at any step and resumed to the same weights.

Letters: n images, b batch.
"""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaad_cli import MambaADError, distributed
from mambaad_cli.data.augmentation import cut_paste
from mambaad_cli.files import written_whole
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.product import region_digest
from mambaad_cli.model.data_parallel import WholeBatchRandom, share_batch_norms
from mambaad_cli.model.detector import Detector
from mambaad_cli.model.precision import reproducible, rounding
from mambaad_cli.training.features import Features
from mambaad_cli.training.good_images import GoodFiles
from mambaad_cli.training.job import Job
from mambaad_cli.training.recipe import Recipe, RunOptions, as_dict, recipe_from

SAVE_EVERY = 30.0  # seconds between checkpoints
STEPS_A_READING = 10  # steps of a GPU between two readings of the loss, each of which makes it wait
TIMED = 5  # steps that are timed to find how many fit into the given time
OnStep = Callable[[int, int, float, int], None]  # step, steps, loss, images of the batch


class TrainingLoop:
    """One training, with all that changes from step to step, so that it can be stopped and resumed."""

    def __init__(
        self, detector: Detector, features: Features, train: Sequence[int], recipe: Recipe, run: RunOptions
    ) -> None:
        self.detector, self.features, self.run = detector, features, run
        self.fingerprint = run.fingerprint
        self.images = len(train)
        self.groups = _by_size(features, train)
        self.turns: list[tuple[int, int]] = []  # of each step so far: which group, and which of its batches
        self.done = [0] * len(self.groups)  # batches of each group so far
        self.recipe = recipe
        self.steps = recipe.steps_for(len(train), self.batch)
        self.optimizer = detector.optimizer(recipe.lr)
        if recipe.dropout:
            detector.dropout = recipe.dropout  # type: ignore[attr-defined]
        self.step = 0
        self.folds: list[dict[str, Tensor]] = []  # weights of the folds' detectors, which are trained afterwards
        self.orders: dict[int, tuple[int, Tensor]] = {}  # of each group the last epoch and its order
        if distributed.world() > self.batch:
            raise MambaADError(
                f"{distributed.world()} processes for batches of {self.batch} images: start fewer, or give --batch"
            )
        if distributed.world() > 1:
            share_batch_norms(detector, distributed.all_sum)

    @property
    def batch(self) -> int:
        """Images per step."""
        return min(self.recipe.batch, self.images)

    def train(self, on_step: OnStep) -> None:
        """Run all steps, or as many as fit into the recipe's minutes."""
        checkpoint = self.run.checkpoint
        if self.run.resume and checkpoint is not None and checkpoint.exists():
            self.restore(checkpoint)
        elif self.recipe.max_minutes is not None:
            # the folds' trainings, of half as many steps each, share the time
            self.steps = self.steps_within(60 * self.recipe.max_minutes / (1 + self.recipe.folds / 2))
        self.detector.train()
        if distributed.rank() > 0:
            checkpoint = None
        saved, loss = time.monotonic(), math.nan
        try:
            with _whole_steps() as asked_to_stop:
                while self.step < self.steps:
                    last = self.advance()
                    if distributed.anywhere(asked_to_stop()):
                        raise KeyboardInterrupt
                    save = checkpoint is not None and time.monotonic() - saved > SAVE_EVERY
                    if save or math.isnan(loss) or self._reads_loss():
                        loss = self._finite(last)
                    on_step(self.step, self.steps, loss, self.batch)
                    if checkpoint is not None and save:
                        self.save(checkpoint)
                        saved = time.monotonic()
        except KeyboardInterrupt:
            if checkpoint is not None:
                self.save(checkpoint)
            raise

    def _reads_loss(self) -> bool:
        """Whether the loss of this step is read: on a GPU that of the last, and of every few before it."""
        return self.run.device == "cpu" or self.step == self.steps or self.step % STEPS_A_READING == 0

    def _finite(self, loss: Tensor) -> float:
        """The loss of a step. Raises MambaADError where it is not finite."""
        value = float(loss)
        if not math.isfinite(value):
            raise MambaADError(f"the training diverged at step {self.step}: choose a lower --lr")
        return value

    def advance(self) -> Tensor:
        """One optimisation step; returns its loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_factor(self.recipe.schedule, self.step / self.steps)
        chosen = self.chosen(self.step)
        own, n = distributed.share(len(chosen)), len(chosen)
        seen_by_decoder = self.features.any_view(chosen)[: len(self.detector.strides)]  # the rest is for the memory
        whole = [stage.to(self.run.device) for stage in seen_by_decoder]
        corrupted = [cut_paste(whole)] if self.recipe.cut_paste else []
        batch, *seen = ([stage[own] for stage in stages] for stages in (whole, *corrupted))
        self.optimizer.zero_grad(set_to_none=True)
        with (
            WholeBatchRandom(own, n) if distributed.world() > 1 else nullcontext(),
            reproducible(self.run.device),
        ):
            with rounding(self.run.precision, self.run.device):
                loss = self.detector.loss(batch, *seen) * ((own.stop - own.start) / n)
            loss.backward()
        loss = distributed.sum_gradients(self.detector.parameters(), loss.detach())
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return loss

    def chosen(self, step: int) -> Tensor:
        """The images of a step's batch, all of one size.

        Each epoch over the images of a size has a random order of its own, and epochs follow without a gap. The sizes
        take turns in proportion to their images.
        """
        while len(self.turns) <= step:
            shares = [len(group) / self.images for group in self.groups]
            due = [share * (len(self.turns) + 1) - done for share, done in zip(shares, self.done, strict=True)]
            number = max(range(len(due)), key=due.__getitem__)
            self.turns.append((number, self.done[number]))
            self.done[number] += 1
        number, turn = self.turns[step]
        n, batch = len(self.groups[number]), self.batch
        positions = range(turn * batch, (turn + 1) * batch)
        return torch.stack([self.order_of(number, position // n)[position % n] for position in positions])

    def order_of(self, number: int, epoch: int) -> Tensor:
        """The images of one size in the order of an epoch."""
        if number not in self.orders or self.orders[number][0] != epoch:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            group = self.groups[number]
            self.orders[number] = (epoch, group[torch.randperm(len(group), generator=generator)])
        return self.orders[number][1]

    def steps_within(self, seconds: float) -> int:
        """How many steps fit, from the time that the fastest of a few takes; these are undone again."""
        before = {key: value.clone() for key, value in self.detector.state_dict().items()}
        random = _random_state(self.run.device)
        self.detector.train()
        times = []
        for _ in range(TIMED):
            start = time.perf_counter()
            float(self.advance())  # a GPU is waited for
            times.append(time.perf_counter() - start)
        self.detector.load_state_dict(before)
        self.optimizer = self.detector.optimizer(self.recipe.lr)
        self.step = 0
        _set_random_state(random, self.run.device)
        return distributed.from_first(max(1, int((seconds - sum(times)) / min(times))))

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"detector.{name}": tensor for name, tensor in self.detector.state_dict().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
        tensors |= {f"random.{name}": state for name, state in _random_state(self.run.device).items()}
        for number, weights in enumerate(self.folds):
            tensors |= {f"fold.{number}.{name}": tensor for name, tensor in weights.items()}
        facts = {
            "step": self.step,
            "steps": self.steps,
            "recipe": as_dict(self.recipe),
            "fingerprint": self.fingerprint,
            "folds": len(self.folds),
        }
        with written_whole(path) as half:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            try:
                save_file(contiguous, half, metadata={"checkpoint": json.dumps(facts)})
            except SafetensorError as error:
                raise MambaADError(f"cannot write {path}: {error}") from error

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises MambaADError for one that is damaged or of another training."""
        facts = _checkpoint_facts(path)
        if facts.get("fingerprint") != self.fingerprint:
            raise MambaADError(f"{path} is a checkpoint of other images or settings: fit without --resume")
        try:
            self.recipe = recipe_from(facts["recipe"], str(path))
            self.step, self.steps = facts["step"], facts["steps"]
            tensors = load_file(path)
            self.folds = [_below(tensors, f"fold.{number}.") for number in range(facts["folds"])]
            self.detector.load_state_dict(_below(tensors, "detector."))
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": _nested(_below(tensors, "optimizer.")), "param_groups": groups})
            _set_random_state(_below(tensors, "random."), self.run.device)
        except (KeyError, ValueError, RuntimeError, MambaADError) as error:
            reason = str(error).splitlines()[0]
            raise MambaADError(f"{path} is a checkpoint of another version ({reason}): fit without --resume") from error


def _by_size(features: Features, train: Sequence[int]) -> list[Tensor]:
    """The numbers of the images that can share a batch."""
    groups: dict[int, list[int]] = {}
    for i in train:
        groups.setdefault(features.group_of.get(i, 0), []).append(i)
    return [torch.tensor(group) for group in groups.values()]


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("checkpoint", "{}")))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise MambaADError(f"{path} is a damaged checkpoint ({error}): fit without --resume") from error


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _nested(flat: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state from tensors named `parameter.key`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = tensor
    return state


def _random_state(device: str) -> dict[str, Tensor]:
    """The states of the random generators that a step uses."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.startswith("cuda") else state


def _set_random_state(state: dict[str, Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(state["cuda"], device)


def recompute_activations(detector: Detector) -> None:
    """Let the parts of a detector that can do so drop their activations and compute them again in the backward pass."""
    parts = [module for module in detector.modules() if hasattr(module, "recompute")]
    if not parts:
        raise MambaADError("--checkpoint-activations is for the detector mambaad: leave it out")
    for part in parts:
        part.recompute = True  # type: ignore[assignment]


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


@contextmanager
def _whole_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C takes effect at the end of a step, because half a step could be neither kept nor repeated."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def fingerprint(job: Job, goods: GoodFiles, known: ModelRecord | None = None) -> str:
    """Identifies a training by the names, classes and bytes of its images, its settings, encoder and recipe.

    It leaves out the choices that a resumed training takes from the stopped one, and those that may change freely.
    known: the model that products are added to, whose weights and examples the training begins with.
    """
    free = {"batch", "lr", "epochs", "max_minutes", "max_false_reject", "keep_examples"}
    choices = {name: value for name, value in as_dict(job.recipe).items() if name not in free}
    named = [[str(file.path), name] for file, name in zip(goods.files, goods.classes, strict=True)]
    digest = hashlib.sha256(json.dumps([named, asdict(job.network.settings), choices], sort_keys=True).encode())
    for file in goods.files:
        digest.update(_digest(file.path))
    for product in job.products.values():
        digest.update(region_digest(product.region, product.own_masks).encode())
    if goods.masks is not None:
        digest.update(goods.masks.digest().encode())
    tensors = [*job.network.encoder.state_dict().values()]
    if known is not None:
        tensors += [*job.network.detector.state_dict().values(), *(example.encoded for example in known.examples)]
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(path: Path) -> bytes:
    """The digest of a file's content; that of no bytes if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        pass
    return digest.digest()
