"""A model -> one ONNX file, whole: encoder, decoder, memory, fusion, recognition, thresholds and verdicts."""

import base64
import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.export.judgement import GraphOutputs
from mambaad_cli.export.network import TileNetwork, WholeModel, names_of
from mambaad_cli.files import sha256_of
from mambaad_cli.inspection.exported_scorer import FORMAT, VERDICTS
from mambaad_cli.inspection.file_schema import described
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.runtimes import FACTS, INSTALL, sealed_onnx
from mambaad_cli.inspection.tiles import MARGIN, OVERLAP, PIXELS_A_VALUE, SIGMA, STRIDE, Tiles
from mambaad_cli.model.encoder import for_inference

OPSET = 18  # that ONNX Runtime ≥ 1.14 and OpenVINO ≥ 2023 read


def onnx_bytes(record: ModelRecord, source: Path, class_name: str | None = None, image: str = "uint8") -> bytes:
    """The ONNX file of a model, sealed. Of a model with tiles: of the whole photo's map, which has no verdict yet.

    source: the model's own file, whose hash goes into the metadata.
    class_name: the only product that the images show; None: any of the model's, which must all have one size.
    image: the type of the input, uint8 or float32; both are RGB in 0 … 255.

    Raises MambaADError where the extra `export` is not installed, and for a model that cannot be exported.
    """
    check_installed()
    judging = record if record.network.settings.tiles is None else _uncalibrated(record)
    whole = WholeModel(_for_inference(judging), class_name).eval()
    height, width = whole.size
    inputs = {"image": torch.zeros(2, height, width, 3, dtype=getattr(torch, image))}
    if whole.takes_told:
        inputs["told"] = torch.full((2,), -1)
    if whole.takes_box:
        inputs["box"] = torch.tensor([[0, 0, *whole.map_size]]).expand(2, -1).contiguous()
    if whole.takes_inside:
        inputs["inside"] = torch.ones(2, height, width, dtype=torch.bool)
    return _sealed(_traced(whole, inputs, GraphOutputs._fields), facts_of(record, whole, source, image))


def tile_onnx_bytes(record: ModelRecord, source: Path, class_name: str | None = None, image: str = "uint8") -> bytes:
    """The ONNX file of the network that looks at the tiles of one product, sealed. Arguments as for `onnx_bytes`."""
    check_installed()
    network = TileNetwork(_for_inference(record), names_of(record, class_name)[0]).eval()
    inputs = {"tile": torch.zeros(2, *network.size, 3, dtype=getattr(torch, image))}
    facts = _origin(source) | {"products": network.products, "image": image, "tile": network.size}
    return _sealed(_traced(network, inputs, ["distances"]), facts)


def _for_inference(record: ModelRecord) -> ModelRecord:
    return replace(record, network=record.network.with_encoder(for_inference(record.network.encoder)))


def _uncalibrated(record: ModelRecord) -> ModelRecord:
    return record.with_products(*(replace(product, calibration=None) for product in record.products.values()))


def _sealed(program: Any, facts: dict[str, Any]) -> bytes:
    import onnx_ir

    program.metadata_props.update({FACTS: json.dumps(facts)})
    program.producer_name, program.producer_version = "mambaad", __version__
    return sealed_onnx(onnx_ir.to_proto(program).SerializeToString())


def check_installed() -> None:
    """Raises MambaADError where a package of the extra is missing."""
    for package in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MambaADError(f"export needs {package}, which is not installed: {INSTALL}") from error


def _traced(network: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> Any:
    """The network as an onnx_ir.Model. Its tables that are made on first use are made before, on real tensors."""
    from mambaad_cli.export.operators import TRANSLATIONS

    batch = torch.export.Dim("n", min=1)
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        network(**inputs)
        try:
            program = torch.onnx.export(
                network,
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes={name: {0: batch} for name in inputs},
                input_names=list(inputs),
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


def facts_of(record: ModelRecord, whole: WholeModel, source: Path, image: str) -> dict[str, Any]:
    """What the file says of itself: enough to run it, and to know where it comes from."""
    products = [record.products[name] for name in whole.products if name in record.products]
    network = record.network  # as it is trained, before batch norms are folded into the convolutions
    detector, encoder = (sum(part.numel() for part in net.parameters()) for net in (network.detector, network.encoder))
    return _origin(source) | {
        "products": whole.products,
        "verdicts": VERDICTS,
        "image": image,
        "settings": asdict(replace(whole.settings, size=whole.map_size, own_aspect=False)),
        "described": msgspec.to_builtins([described(product) for product in products]),
        "regions": {
            product.name: base64.b64encode(roi.encoded(product.region).tobytes()).decode()
            for product in products
            if product.region is not None
        },
        "tiles": {product.name: _tiles(product.learnt.tiles) for product in products if product.learnt.tiles},
        "parameters": [detector + encoder, detector],
    }


def _tiles(tiles: Tiles) -> dict[str, Any]:
    """How the maps of a photo's tiles become one, and join that of the whole photo: see inspection.tiles."""
    return {
        "expected": [[float(f"{value:.9g}") for value in row] for row in tiles.expected.tolist()],
        "fusion": tiles.fusion,
        "stride": STRIDE,
        "overlap": OVERLAP,
        "margin": MARGIN,
        "pixels_a_value": PIXELS_A_VALUE,
        "sigma": SIGMA,
    }


def _origin(source: Path) -> dict[str, Any]:
    """Which model a file comes from; the files of one model say the same."""
    return {
        "format": FORMAT,
        "mambaad": __version__,
        "model_sha256": sha256_of(source),
        "torch": torch.__version__,
    }
