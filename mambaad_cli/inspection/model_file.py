"""The file of a fitted model: one safetensors file with its settings as JSON metadata; nothing is unpickled.

Format 2 (of mambaad 0.2) adds the recipe, and says for each class whether its threshold promises something.
Files of format 1 can still be read.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.data.photo_statistics import PhotoStatistics
from mambaad_cli.files import sha256_of, shown, written_whole
from mambaad_cli.inspection.fitted_model import Example, FittedModel, new_model
from mambaad_cli.inspection.recognition import Recogniser
from mambaad_cli.inspection.tiles import Tiles
from mambaad_cli.model.anomaly_map import ResidualStatistics
from mambaad_cli.model.fusion import Fusion, Witness
from mambaad_cli.model.memory import Memory, restored, stored
from mambaad_cli.model.settings import Settings

FORMAT = 2  # of the file; newer formats are refused
STATISTICS = {1: "normal", 2: "statistics"}  # what its tensors are called, by format
PARTS = {1: ("mean", "whitening", "hard", "moments"), 2: ResidualStatistics._fields}


def save(model: FittedModel, path: Path) -> None:
    """Write the model together with its encoder, so that scoring needs no network."""
    tensors = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors |= {f"detector.{name}": tensor for name, tensor in model.detector.state_dict().items()}
    for i, scales in enumerate(model.statistics.values()):
        for scale, one in enumerate(scales):
            tensors |= {f"statistics.{i}.{scale}.{part}": tensor for part, tensor in one._asdict().items()}
    for i, looks in enumerate(model.memories.values()):
        for look, memory in enumerate(looks):
            tensors |= _parts(_look(i, look), memory)
    for i, tiles in enumerate(model.tiles.values()):
        tensors |= _parts(f"tiles.{i}", tiles.memory)
        tensors[f"tiles.{i}.places"] = tiles.expected
    if model.recogniser is not None:
        tensors |= {"recogniser.means": model.recogniser.means, "recogniser.precision": model.recogniser.precision}
    tensors |= {f"example.{i}": one.encoded for i, one in enumerate(model.examples)}
    tensors |= {f"example.{i}.inside": one.inside for i, one in enumerate(model.examples) if one.inside is not None}
    tensors |= {f"roi.{i}": torch.from_numpy(roi.encoded(mask)) for i, mask in enumerate(model.rois.values())}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "mambaad": __version__,
        "settings": dataclasses.asdict(model.settings),
        "recipe": model.recipe,
        "scores": model.scores,
        "held_out": sorted(model.held_out),
        "trained_on": model.trained_on,
        "max_false_reject": model.max_false_reject,
        "sizes": model.sizes,
        "photos": model.photos,
        "simulated": model.simulated,
        "photo_statistics": {
            name: [[float(f"{value:.6g}") for value in one] for one in own]
            for name, own in model.photo_statistics.items()
        },
        "statistics": {name: len(scales) for name, scales in model.statistics.items()},
        "memories": list(model.memories),
        "fusion": model.fusion,
        "tiles": {name: own.fusion for name, own in model.tiles.items()},
        "rois": list(model.rois),
        "own_masks": model.own_masks,
        "examples": [(one.class_name, one.held_out, one.box) for one in model.examples],
    }
    if model.recogniser is not None:
        facts["recogniser"] = {"names": model.recogniser.names, "limit": model.recogniser.limit}
    with written_whole(path) as half:
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, half, metadata={"mambaad": json.dumps(facts)})
        except SafetensorError as error:
            raise MambaADError(f"cannot write {shown(path)}: {error}") from error


def load(path: Path) -> FittedModel:
    """Read a model. Raises MambaADError for a file that is missing, truncated, foreign or made by a newer version."""
    facts = read_facts(path)
    try:
        model = _described(facts)
        kept = [(str(name), bool(held_out), box and tuple(box)) for name, held_out, box in facts.get("examples", [])]
    except (KeyError, TypeError, ValueError) as error:
        raise MambaADError(f"{path} is damaged: its description does not fit ({error}): fit it anew") from error
    tensors, model.sha256 = load_file(path), sha256_of(path)[:12]
    for part, name in ((model.encoder, "encoder."), (model.detector, "detector.")):
        own = {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            raise MambaADError(f"{path} is damaged: its tensors are not those of its settings: fit it anew") from error
    model.detector.eval()
    try:
        model.statistics = _statistics(facts, tensors)
        for i, name in enumerate(facts.get("memories", [])):
            looks = range(2 if model.settings.two_looks else 1)
            model.memories[name] = tuple(_memory(_look(i, look), tensors) for look in looks)
        for i, (name, fusion) in enumerate(facts.get("tiles", {}).items()):
            both = Fusion(*(Witness(*one) for one in fusion))
            model.tiles[name] = Tiles(_memory(f"tiles.{i}", tensors), tensors[f"tiles.{i}.places"], both)
        if "recogniser" in facts:
            means, precision = tensors["recogniser.means"], tensors["recogniser.precision"]
            model.recogniser = Recogniser(facts["recogniser"]["names"], means, precision, facts["recogniser"]["limit"])
        model.examples = [
            Example(*one, tensors[f"example.{i}"], tensors.get(f"example.{i}.inside")) for i, one in enumerate(kept)
        ]
        model.rois = {name: roi.decoded(tensors[f"roi.{i}"].numpy()) for i, name in enumerate(facts.get("rois", []))}
        model.own_masks = bool(facts.get("own_masks", False))
    except (KeyError, TypeError, ValueError) as error:
        raise MambaADError(f"{path} is damaged: it lacks {error}: fit it anew") from error
    return model


def _look(i: int, look: int) -> str:
    """The prefix of the tensors of one look of the i-th product's memory; files with one look have no number for it."""
    return f"memory.{i}.{look}" if look else f"memory.{i}"


def _described(facts: dict[str, Any]) -> FittedModel:
    """A model as its file describes it; its tensors are still to be loaded."""
    settings = facts["settings"] | {"size": tuple(facts["settings"]["size"])}
    tiles = settings.get("tiles")
    model = new_model(Settings(**(settings | {"tiles": tiles and tuple(tiles)})))
    for name in ("scores", "trained_on", "max_false_reject"):
        setattr(model, name, facts[name])
    if facts["format"] == 1:  # format 1 has one answer for all classes
        model.held_out = set(facts["scores"]) if facts["held_out"] else set()
    else:
        model.held_out, model.recipe = set(facts["held_out"]), dict(facts["recipe"])
        model.fusion = {name: Fusion(*(Witness(*one) for one in own)) for name, own in facts["fusion"].items()}
        model.sizes, model.photos = (
            {name: (int(height), int(width)) for name, (height, width) in facts[sizes].items()}
            for sizes in ("sizes", "photos")
        )
        model.simulated = {
            name: [(str(k), float(l), float(s)) for k, l, s in rows] for name, rows in facts["simulated"].items()
        }
        model.photo_statistics = {
            name: [PhotoStatistics(*map(float, one)) for one in own]
            for name, own in facts.get("photo_statistics", {}).items()  # not in files of mambaad 0.2.0
        }
    return model


def _parts(name: str, memory: Memory) -> dict[str, Tensor]:
    """The tensors of a memory. Its patches are 8-bit integers, which halves a file."""
    integers, steps = stored(memory.patches)
    parts = memory._asdict() | {"patches": integers, "steps": steps}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _memory(name: str, tensors: dict[str, Tensor]) -> Memory:
    memory = Memory(*(tensors[f"{name}.{part}"] for part in Memory._fields))
    steps = tensors.get(f"{name}.steps")  # earlier files keep patches in half precision
    return memory._replace(patches=memory.patches.float() if steps is None else restored(memory.patches, steps))


def _statistics(facts: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, list[ResidualStatistics]]:
    name, parts = STATISTICS[facts["format"]], PARTS[facts["format"]]
    found = {}
    for i, (class_name, scales) in enumerate(facts.get(name, {}).items()):
        found[class_name] = [
            ResidualStatistics(*(tensors[f"{name}.{i}.{scale}.{part}"] for part in parts)) for scale in range(scales)
        ]
    return found


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON that describes a model file, without its tensors."""
    if path.is_dir():
        raise MambaADError(f"{path} is a folder: --model takes a model file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise MambaADError(f"no model {path}: make one with mambaad fit GOOD_DIR, or name it with --model") from None
    except (SafetensorError, OSError) as error:
        raise MambaADError(f"{path} is no model file, or a truncated one ({error}): fit it anew") from error
    if "mambaad" not in metadata:
        raise MambaADError(f"{path} was not made by mambaad: expected a file written by mambaad fit or import")
    try:
        facts = json.loads(metadata["mambaad"])
        newer = facts["format"] > FORMAT
    except (KeyError, TypeError, ValueError) as error:
        raise MambaADError(f"{path} is damaged: its description does not fit ({error}): fit it anew") from error
    if newer:
        maker = facts.get("mambaad", "unknown")
        raise MambaADError(f"{path} was made by a newer mambaad ({maker}): upgrade this one ({__version__})")
    return facts
