"""The file of a model: one safetensors file with a typed description as JSON metadata; nothing is unpickled.

A file is checked before memory is taken: its description against types, the shapes in its header against those that
its settings need. Files of formats 1 and 2 can still be read.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.files import sha256_of, shown, written_whole
from mambaad_cli.inspection import older_formats
from mambaad_cli.inspection.file_schema import FORMAT, ExampleFacts, Facts, ProductFacts, check, described
from mambaad_cli.inspection.lessons import Hardest, Lesson, Taught
from mambaad_cli.inspection.model_record import Example, ModelRecord
from mambaad_cli.inspection.network import Network
from mambaad_cli.inspection.product import Learnt, Product
from mambaad_cli.inspection.recognition import Recogniser
from mambaad_cli.inspection.sources import Sources
from mambaad_cli.inspection.tiles import Tiles
from mambaad_cli.model.anomaly_map import ResidualStatistics
from mambaad_cli.model.detector import Detector
from mambaad_cli.model.encoder import Encoder
from mambaad_cli.model.known_defects import KnownDefects
from mambaad_cli.model.memory import Memory
from mambaad_cli.model.outline import fitting_networks
from mambaad_cli.model.quantised import restored, stored
from mambaad_cli.model.settings import Settings

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Callable[[str], Tensor]  # of a file, by name; a KeyError where there is none


# ---- write ----


def save(record: ModelRecord, path: Path) -> None:
    """Write the model together with its encoder, so that scoring needs no network."""
    network = record.network
    tensors = {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    tensors |= {f"detector.{name}": tensor for name, tensor in network.detector.state_dict().items()}
    for i, product in enumerate(record.products.values()):
        tensors |= {f"product.{i}.{name}": tensor for name, tensor in _product_tensors(product).items()}
    if record.recogniser is not None:
        tensors |= {"recogniser.means": record.recogniser.means, "recogniser.precision": record.recogniser.precision}
    for i, example in enumerate(record.examples):
        tensors[f"example.{i}"] = example.encoded
        if example.inside is not None:
            tensors[f"example.{i}.inside"] = example.inside
    # not msgspec's own JSON: names of folders need not be Unicode, and Python's JSON keeps their bytes as surrogates
    metadata = {"mambaad": json.dumps(msgspec.to_builtins(_facts_of(record)))}
    with written_whole(path) as half:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, half, metadata)
        except SafetensorError as error:
            raise MambaADError(f"cannot write {shown(path)}: {error}") from error


def _facts_of(record: ModelRecord) -> Facts:
    return Facts(
        FORMAT,
        __version__,
        record.network.settings,
        [described(product) for product in record.products.values()],
        None if record.recogniser is None else record.recogniser.names,
        dict(record.recipe),
        [
            ExampleFacts(example.class_name, example.held_out, example.box, example.inside is not None)
            for example in record.examples
        ],
    )


def _product_tensors(product: Product) -> dict[str, Tensor]:
    learnt = product.learnt
    tensors: dict[str, Tensor] = {}
    for scale, statistics in enumerate(learnt.statistics):
        tensors |= {f"statistics.{scale}.{part}": tensor for part, tensor in statistics._asdict().items()}
    for view, memory in enumerate(learnt.memories):
        tensors |= {f"memory.{view}.{part}": tensor for part, tensor in _memory_tensors(memory).items()}
    if learnt.tiles is not None:
        tensors |= {f"tiles.{part}": tensor for part, tensor in _memory_tensors(learnt.tiles.memory).items()}
        tensors["tiles.places"] = learnt.tiles.expected
    if learnt.hardest is not None:
        for view, patches in enumerate(learnt.hardest.patches):
            integers, steps = stored(patches.flatten(0, 1))
            tensors |= {f"hardest.{view}.patches": integers.view(patches.shape), f"hardest.{view}.steps": steps}
    if learnt.known is not None:
        tensors |= {f"known.{view}": classifier for view, classifier in enumerate(learnt.known.classifiers)}
    for i, lesson in enumerate(learnt.taught.lessons if learnt.taught else ()):
        tensors |= {f"lesson.{i}.{view}": patches.half() for view, patches in enumerate(lesson.patches)}
    if learnt.sources is not None:
        tensors |= _source_tensors(learnt.sources)
    for name, mask in (("region", product.region), ("learnt_region", learnt.region)):
        if mask is not None:
            tensors[name] = torch.from_numpy(roi.encoded(mask))
    return tensors


def _source_tensors(sources: Sources) -> dict[str, Tensor]:
    """Where patches come from: places, and all pictures behind one another with the end of each."""
    tensors = {f"sources.{view}": places for view, places in enumerate(sources.places)}
    tensors["sources.ends"] = ends = torch.tensor([len(picture) for picture in sources.pictures]).cumsum(0)
    return tensors | ({"sources.pictures": torch.cat(sources.pictures)} if int(ends[-1]) > 0 else {})


def _memory_tensors(memory: Memory) -> dict[str, Tensor]:
    """The parts of a memory. Its patches are 8-bit integers, which halves a file."""
    integers, steps = stored(memory.patches)
    return memory._asdict() | {"patches": integers, "steps": steps}


# ---- read ----


def load(path: Path) -> ModelRecord:
    """Read a model. Raises MambaADError for a file that is missing, truncated, foreign or made by a newer version."""
    facts, raw = _read(path)
    with _opened(path) as file, _naming_damage(path):
        names = list(file.keys())
        today = {name: name for name in names} if facts.format == FORMAT else older_formats.names_of_today(raw, names)
        in_file = {new: old for old, new in today.items()}
        shapes = {new: tuple(file.get_slice(old).get_shape()) for new, old in in_file.items()}

        def tensor(name: str) -> Tensor:
            return _detached(file.get_tensor(in_file[name]))

        network = _network(facts, shapes, tensor)
        products = [
            _product(described, network, _Part(f"product.{i}.", shapes, tensor))
            for i, described in enumerate(facts.products)
        ]
        if facts.format < FORMAT:
            products = [older_formats.with_conditions(product) for product in products]
        return ModelRecord(
            network,
            {product.name: product for product in products},
            _recogniser(facts, network, _Part("recogniser.", shapes, tensor)),
            tuple(
                _example(i, described, _Part("example.", shapes, tensor)) for i, described in enumerate(facts.examples)
            ),
            facts.recipe,
            sha256_of(path)[:12],
        )


def read_facts(path: Path) -> Facts:
    """The description of a model file, without its tensors. Raises MambaADError as `load` does."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Facts, dict[str, Any]]:
    """The description as it is today, and as it is in the file."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if "mambaad" not in metadata:
        raise MambaADError(f"{path} was not made by mambaad: expected a file written by mambaad fit or import")
    with _naming_damage(path):
        raw = json.loads(metadata["mambaad"])
        if raw["format"] > FORMAT:
            maker = raw.get("mambaad", "unknown")
            raise MambaADError(f"{path} was made by a newer mambaad ({maker}): upgrade this one ({__version__})")
        if unknown := set(raw["settings"]) - {field.name for field in fields(Settings)}:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")  # maps would not be those of its maker
        facts = msgspec.convert(raw, Facts) if raw["format"] == FORMAT else older_formats.description(raw)
        check(facts)
    return facts, raw


# What Python, PyTorch, OpenCV and the readers of JSON and safetensors raise where a value is not what it should be
DAMAGE = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
    MemoryError, SafetensorError, msgspec.ValidationError, cv2.error,
)  # fmt: skip


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Whatever is wrong in a file becomes one line that names it."""
    try:
        yield
    except DAMAGE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[0]
        raise MambaADError(f"{path} is damaged: {reason}: fit it again") from error


def _opened(path: Path) -> Any:
    if path.is_dir():
        raise MambaADError(f"{path} is a folder: --model takes a model file")
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise MambaADError(f"no model {path}: make one with mambaad fit GOOD_DIR, or name it with --model") from None
    except (SafetensorError, OSError) as error:
        raise MambaADError(f"{path} is no model file, or a truncated one ({error}): fit it again") from error


def _detached(tensor: Tensor) -> Tensor:
    """A tensor that lets its file be replaced: Windows refuses that while tensors are mapped from the file."""
    return tensor.clone() if sys.platform == "win32" else tensor


def _network(facts: Facts, shapes: Shapes, tensor: Tensors) -> Network:
    """The network of the settings: built without memory, compared with the file's header, and only then filled."""
    try:
        encoder, detector = fitting_networks(facts.settings, shapes)
    except MambaADError as error:
        raise ValueError(str(error)) from error
    parts: tuple[tuple[str, Encoder | Detector], ...] = (("encoder.", encoder), ("detector.", detector))
    for prefix, module in parts:
        own = {name: _alike(value, prefix + name, tensor) for name, value in module.state_dict().items()}
        module.load_state_dict(own, assign=True)
    if facts.settings.step != encoder.step:
        raise ValueError(f"its sizes are in steps of {facts.settings.step}, those of its encoder are {encoder.step}")
    encoder.requires_grad_(False)
    detector.eval()
    return Network(facts.settings, encoder, detector)


def _alike(wanted: Tensor, name: str, tensor: Tensors) -> Tensor:
    """A tensor of the file in the type of the one that it is for: weights may be stored in another precision."""
    stored_tensor = tensor(name)
    if stored_tensor.is_floating_point() != wanted.is_floating_point():
        raise ValueError(f"{name} has numbers of the type {stored_tensor.dtype}")
    return _finite(stored_tensor.to(wanted.dtype), name)


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(f"{name} has numbers that are not finite")
    return values


def _product(facts: ProductFacts, network: Network, part: "_Part") -> Product:
    channels = network.encoder.channels
    patch = sum(channels[-2:])
    scales = network.detector.scales
    if facts.scales not in (0, scales):
        raise ValueError(f"{facts.name} has statistics of {facts.scales} scales, its detector has {scales}")
    if facts.views not in (0, 2 if network.settings.two_looks else 1):
        raise ValueError(f"{facts.name} has {facts.views} memories")
    tiles = None
    if facts.tiles is not None:
        tiles = Tiles(part.memory("tiles", patch), part.floats("tiles.places", None, None), facts.tiles)
    region = part.mask("region") if facts.region else None
    learnt = Learnt(
        tuple(
            part.statistics(f"statistics.{i}", width)
            for i, width in enumerate(channels[len(channels) - facts.scales :])
        ),
        tuple(part.memory(f"memory.{view}", patch) for view in range(facts.views)),
        facts.fusion,
        tiles,
        part.hardest(facts, patch) if facts.hardest else None,
        *_taught(facts, part, patch),
        # earlier files have one region
        (part.mask("learnt_region") if part.has("learnt_region") else region) if facts.learnt_region else None,
        part.sources(facts) if facts.sources else None,
    )
    return replace(facts.product(), region=region, learnt=learnt)


def _taught(facts: ProductFacts, part: "_Part", patch: int) -> tuple[KnownDefects | None, Taught | None]:
    """Known defects, and the lessons that they come from."""
    taught = facts.taught
    if taught is None:
        return None, None
    views = range(facts.views)
    lessons = tuple(
        Lesson(
            one.name, one.digest, one.good, tuple(part.floats(f"lesson.{i}.{view}", None, patch) for view in views),
            one.score, one.kind, one.taught,
        )
        for i, one in enumerate(taught.lessons)
    )  # fmt: skip
    known = None
    if taught.known is not None:
        known = KnownDefects(tuple(part.floats(f"known.{view}", patch + 1) for view in views), *taught.known)
    return known, Taught(lessons, tuple(taught.remembered))


@dataclass(frozen=True)
class _Part:
    """The tensors of a file whose names begin alike, each checked against the shape that is needed."""

    prefix: str
    shapes: Shapes
    read: Tensors

    def has(self, name: str) -> bool:
        return self.prefix + name in self.shapes

    def floats(self, name: str, *shape: int | None) -> Tensor:
        """Numbers in single precision."""
        values = self.tensor(name, *shape)
        if not values.is_floating_point():
            raise ValueError(f"{self.prefix}{name} has numbers of the type {values.dtype}")
        return _finite(values.float(), self.prefix + name)

    def file_bytes(self, name: str) -> Tensor:
        """The bytes of an image file."""
        values = self.tensor(name, None)
        if values.dtype != torch.uint8:
            raise ValueError(f"{self.prefix}{name} has numbers of the type {values.dtype}")
        return values

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of this shape; None: any length but zero."""
        held = self.shapes[self.prefix + name]
        fits = len(held) == len(shape) and all(
            length > 0 if side is None else length == side for side, length in zip(shape, held, strict=True)
        )
        if not fits:
            raise ValueError(f"{self.prefix}{name} has the shape {held}")
        return self.read(self.prefix + name)

    def memory(self, name: str, channels: int) -> Memory:
        if self.has(f"{name}.steps"):
            integers = self.tensor(f"{name}.patches", None, channels)
            if integers.dtype != torch.int8:
                raise ValueError(f"{self.prefix}{name}.patches has numbers of the type {integers.dtype}")
            patches = restored(integers, self.floats(f"{name}.steps", len(integers), 1))
        else:
            patches = self.floats(f"{name}.patches", None, channels)  # earlier files keep them in half precision
        return Memory(
            self.floats(f"{name}.mean", channels),
            self.floats(f"{name}.whitening", channels, channels),
            patches,
            self.floats(f"{name}.spacing", len(patches)),
            self.floats(f"{name}.expected", None, None),
        )

    def hardest(self, facts: ProductFacts, channels: int) -> Hardest:
        images, views = len(facts.hardest), []
        for view in range(facts.views):
            integers = self.tensor(f"hardest.{view}.patches", images, None, channels)
            count = integers.shape[1]
            steps = self.floats(f"hardest.{view}.steps", images * count, 1)
            views.append(restored(integers.flatten(0, 1), steps).view(integers.shape))
        return Hardest(tuple(views), tuple(facts.hardest))

    def sources(self, facts: ProductFacts) -> Sources:
        photos, views = len(facts.sources), []
        for view in range(facts.views):
            places = self.tensor(f"sources.{view}", None, 3)
            known = places.dtype == torch.int32 and int(places[:, 0].min()) >= -1 and int(places[:, 0].max()) < photos
            if not known:
                raise ValueError(f"{self.prefix}sources.{view} names photos that are not there")
            views.append(places)
        ends = self.tensor("sources.ends", photos)
        pictures = self.file_bytes("sources.pictures") if int(ends[-1]) > 0 else torch.empty(0, dtype=torch.uint8)
        lengths = ends.diff(prepend=torch.zeros(1, dtype=ends.dtype))
        if ends.dtype != torch.int64 or int(lengths.min()) < 0 or int(ends[-1]) != len(pictures):
            raise ValueError(f"{self.prefix}sources.ends does not fit the pictures")
        return Sources(tuple(facts.sources), tuple(views), pictures.split(lengths.tolist()))

    def statistics(self, name: str, channels: int) -> ResidualStatistics:
        return ResidualStatistics(
            self.floats(f"{name}.mean", channels),
            self.floats(f"{name}.whitening", channels, channels),
            self.floats(f"{name}.expected", channels + 1),
            self.floats(f"{name}.moments", 2),
        )

    def mask(self, name: str) -> np.ndarray:
        return roi.decoded(self.file_bytes(name).numpy())


def _recogniser(facts: Facts, network: Network, part: _Part) -> Recogniser | None:
    if facts.recogniser is None:
        return None
    count, length = len(facts.recogniser), 2 * sum(network.encoder.channels[-2:])
    means, precision = part.floats("means", count, length), part.floats("precision", length, length)
    return Recogniser(facts.recogniser, means, precision)


def _example(i: int, facts: ExampleFacts, part: _Part) -> Example:
    inside = part.file_bytes(f"{i}.inside") if part.has(f"{i}.inside") else None
    return Example(facts.class_name, facts.held_out, facts.box, part.file_bytes(str(i)), inside)
