"""A fitted model -> one ONNX file, whole: encoder, decoder, memory, fusion, recognition, thresholds and verdicts."""

import base64
import contextlib
import hashlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.export.judgement import Found
from mambaad_cli.export.network import TileNetwork, WholeModel, products
from mambaad_cli.inspection.exported_model import FORMAT, VERDICTS
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.runtimes import FACTS, INSTALL, sealed_onnx
from mambaad_cli.inspection.tiles import MARGIN, OVERLAP, PIXELS_A_VALUE, SIGMA, STRIDE, Tiles

OPSET = 18  # that ONNX Runtime ≥ 1.14 and OpenVINO ≥ 2023 read


def onnx_bytes(model: FittedModel, source: Path, class_name: str | None = None, image: str = "uint8") -> bytes:
    """The ONNX file of a model, sealed. Of a model with tiles: of the whole photo's map, which has no verdict yet.

    source: the model's own file, whose hash goes into the metadata.
    class_name: the only product that the images show; None: any of the model's, which must all have one size.
    image: the type of the input, uint8 or float32; both are RGB in 0 … 255.

    Raises MambaADError where the extra `export` is not installed, and for a model that cannot be exported.
    """
    check_installed()
    judging = replace(model, scores={}, held_out=set()) if model.tiles else model
    whole = WholeModel(judging.for_inference(), size_of(model, class_name), class_name).eval()
    height, width = whole.size
    given = {"image": torch.zeros(2, height, width, 3, dtype=getattr(torch, image))}
    if whole.takes_told:
        given["told"] = torch.full((2,), -1)
    if whole.letterbox:
        given["box"] = torch.tensor([[0, 0, *whole.map_size]]).expand(2, -1).contiguous()
    if whole.takes_inside:
        given["inside"] = torch.ones(2, height, width, dtype=torch.bool)
    return _sealed(_traced(whole, given, Found._fields), facts_of(model, whole, source, image))


def tile_onnx_bytes(model: FittedModel, source: Path, class_name: str | None = None, image: str = "uint8") -> bytes:
    """The ONNX file of the network that looks at the tiles of one product, sealed. Arguments as for `onnx_bytes`."""
    check_installed()
    network = TileNetwork(model.for_inference(), class_name or products(model)[0]).eval()
    given = {"tile": torch.zeros(2, *network.size, 3, dtype=getattr(torch, image))}
    facts = _origin(source) | {"products": network.products, "image": image, "tile": network.size}
    return _sealed(_traced(network, given, ["distances"]), facts)


def _sealed(program: Any, facts: dict[str, Any]) -> bytes:
    import onnx_ir

    program.metadata_props.update({FACTS: json.dumps(facts)})
    program.producer_name, program.producer_version = "mambaad", __version__
    return sealed_onnx(onnx_ir.to_proto(program).SerializeToString())


def size_of(model: FittedModel, class_name: str | None) -> tuple[int, int]:
    """(height, width) of the images of one file. Raises MambaADError where the products have several sizes."""
    if class_name is not None:
        return model.size_of(class_name)
    sizes = {model.size_of(name) for name in model.trained_on} or {model.settings.size}
    if len(sizes) > 1:
        raise MambaADError(f"the products have {len(sizes)} sizes, a file has one: export each with --class NAME")
    return sizes.pop()


def check_installed() -> None:
    """Raises MambaADError where a package of the extra is missing."""
    for package in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MambaADError(f"export needs {package}, which is not installed: {INSTALL}") from error


def _traced(network: nn.Module, given: dict[str, Tensor], outputs: Sequence[str]) -> Any:
    """The network as an onnx_ir.Model. Its tables that are made on first use are made before, on real tensors."""
    from mambaad_cli.export.operators import TRANSLATIONS

    batch = torch.export.Dim("n", min=1)
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        network(**given)
        try:
            program = torch.onnx.export(
                network,
                (),
                kwargs=given,
                dynamo=True,
                dynamic_shapes={name: {0: batch} for name in given},
                input_names=list(given),
                output_names=list(outputs),
                custom_translation_table=TRANSLATIONS,
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # of many kinds, its own, with pages of advice
            line = next((line for line in reversed(str(error.__cause__ or error).splitlines()) if line.strip()), "")
            raise MambaADError(f"PyTorch {torch.__version__} cannot export this model: {line.strip()}") from error
    assert program is not None
    return program.model


def facts_of(model: FittedModel, whole: WholeModel, source: Path, image: str) -> dict[str, Any]:
    """What the file says of itself: enough to run it, and to know where it comes from."""
    own = set(whole.products)
    trained = sum(one.numel() for one in model.detector.parameters())
    settings = replace(model.settings, size=whole.size, own_aspect=False)
    return _origin(source) | {
        "products": whole.products,
        "verdicts": VERDICTS,
        "image": image,
        "settings": asdict(settings),
        "scores": {name: scores for name, scores in model.scores.items() if name in own},
        "held_out": sorted(model.held_out & own),
        "trained_on": {name: count for name, count in model.trained_on.items() if name in own},
        "max_false_reject": model.max_false_reject,
        "regions": {
            name: base64.b64encode(roi.encoded(mask).tobytes()).decode()
            for name, mask in model.rois.items()
            if name in own
        },
        "own_masks": model.own_masks,
        "tiles": {name: _tiles(tiles) for name, tiles in model.tiles.items() if name in own},
        "parameters": [trained + sum(one.numel() for one in model.encoder.parameters()), trained],
    }


def _tiles(own: Tiles) -> dict[str, Any]:
    """How the maps of a photo's tiles become one, and join that of the whole photo: see inspection.tiles."""
    return {
        "expected": [[float(f"{value:.9g}") for value in row] for row in own.expected.tolist()],
        "fusion": own.fusion,
        "stride": STRIDE,
        "overlap": OVERLAP,
        "margin": MARGIN,
        "pixels_a_value": PIXELS_A_VALUE,
        "sigma": SIGMA,
    }


def _origin(source: Path) -> dict[str, Any]:
    """Which model a file comes from; the files of one model say the same."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return {"format": FORMAT, "mambaad": __version__, "model_sha256": digest, "torch": torch.__version__}
