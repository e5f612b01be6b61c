"""A fitted model -> one ONNX file, whole: encoder, decoder, memory, fusion, recognition, thresholds and verdicts."""

import base64
import contextlib
import hashlib
import importlib
import io
import json
import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mambaad_cli import MambaADError, __version__
from mambaad_cli.data import roi
from mambaad_cli.export.judgement import Found
from mambaad_cli.export.network import WholeModel
from mambaad_cli.inspection.exported_model import FORMAT, VERDICTS
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.inspection.runtimes import FACTS, INSTALL, sealed_onnx

OPSET = 18  # that ONNX Runtime ≥ 1.14 and OpenVINO ≥ 2023 read


def onnx_bytes(model: FittedModel, source: Path, class_name: str | None = None, image: str = "uint8") -> bytes:
    """The ONNX file of a model, sealed.

    source: the model's own file, whose hash goes into the metadata.
    class_name: the only product that the images show; None: any of the model's, which must all have one size.
    image: the type of the input, uint8 or float32; both are RGB in 0 … 255.

    Raises MambaADError where the extra `export` is not installed, and for a model that cannot be exported.
    """
    check_installed()
    import onnx_ir

    size = size_of(model, class_name)
    whole = WholeModel(model.for_inference(), size, class_name).eval()
    program = _traced(whole, image)
    facts = facts_of(model, whole, source, image)
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


def _traced(whole: WholeModel, image: str) -> Any:
    """The network as an onnx_ir.Model. Its tables that are made on first use are made before, on real tensors."""
    from mambaad_cli.export.operators import TRANSLATIONS

    height, width = whole.size
    given = {"image": torch.zeros(2, height, width, 3, dtype=getattr(torch, image))}
    if whole.takes_told:
        given["told"] = torch.full((2,), -1)
    if whole.letterbox:
        given["box"] = torch.tensor([[0, 0, *whole.map_size]]).expand(2, -1).contiguous()
    batch = torch.export.Dim("n", min=1)
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        whole(**given)
        try:
            program = torch.onnx.export(
                whole,
                (),
                kwargs=given,
                dynamo=True,
                dynamic_shapes={name: {0: batch} for name in given},
                input_names=list(given),
                output_names=list(Found._fields),
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
    return {
        "format": FORMAT,
        "mambaad": __version__,
        "model_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
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
        "parameters": [trained + sum(one.numel() for one in model.encoder.parameters()), trained],
        "torch": torch.__version__,
    }
