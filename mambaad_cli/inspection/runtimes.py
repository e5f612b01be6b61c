"""Other programs than PyTorch that run an exported model, each behind the same small interface.

Both files carry a seal, the SHA-256 of their bytes, so that a file that was edited or cut off is noticed: an ONNX file
as one more entry of its metadata, at its end; OpenVINO's .xml as a comment behind its last line, which covers the
weights in the .bin beside it as well.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mambaad_cli import MambaADError
from mambaad_cli.files import shown

INSTALL = "pip install 'mambaad[export]'"
INSTALL_OPENVINO = "pip install 'mambaad[openvino]'"
OLDEST = (1, 17)  # ONNX Runtime
FACTS = "mambaad.json"  # the entry of the metadata that describes the model
SUFFIXES = (".onnx", ".xml")
_ENTRY = b"\x0a\x0emambaad.sha256\x12\x40"  # an entry of an ONNX file's metadata: its name, and the length of its value
_COMMENT = b"\n<!-- mambaad.sha256 %s -->\n"

Arrays = dict[str, np.ndarray]


class Runtime(NamedTuple):
    """A network that is ready to run."""

    name: str  # with its version
    inputs: list[str]
    facts: str  # JSON: what mambaad wrote into the file
    run: Callable[[Arrays], Arrays]  # inputs to outputs, by name


def opened(path: Path) -> Runtime:
    """Read an exported file. Raises MambaADError where it is missing, foreign or edited, or its runtime is."""
    return _openvino(path) if path.suffix.lower() == ".xml" else _onnx_runtime(path)


def onnxruntime() -> Any:
    """The package. Raises MambaADError where it is missing or too old."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MambaADError(f"an exported model needs ONNX Runtime: {INSTALL}") from error
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MambaADError(f"ONNX Runtime {onnxruntime.__version__} is too old, {oldest} is needed: {INSTALL}")
    return onnxruntime


def openvino() -> Any:
    """The package. Raises MambaADError where it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise MambaADError(f"an .xml model needs OpenVINO: {INSTALL_OPENVINO}") from error
    return openvino


def _onnx_runtime(path: Path) -> Runtime:
    content = _bytes_of(path)
    _check(content, content[: -len(sealed_onnx(b""))], sealed_onnx, path)
    package = onnxruntime()
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are for those who make graphs
    try:
        session = package.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, its own
        line = str(error).strip().splitlines()[0]
        raise MambaADError(f"ONNX Runtime {package.__version__} cannot run {shown(path)}: {line}") from error
    outputs = [one.name for one in session.get_outputs()]
    return Runtime(
        f"ONNX Runtime {package.__version__}",
        [one.name for one in session.get_inputs()],
        session.get_modelmeta().custom_metadata_map[FACTS],
        lambda given: dict(zip(outputs, session.run(outputs, given), strict=True)),
    )


def _openvino(path: Path) -> Runtime:
    """The weights are in the .bin file beside it."""
    content, weights = _bytes_of(path), _bytes_of(path.with_suffix(".bin"))
    cut = len(sealed_xml(b"", b""))
    _check(content, content[:-cut], lambda inner: sealed_xml(inner, weights), path)
    package = openvino()
    core = package.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    version = package.__version__.partition("-")[0]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else some CPUs round to bf16
    try:
        network = core.read_model(str(path))
        compiled = core.compile_model(network, "CPU", exact)
    except RuntimeError as error:
        line = [line for line in str(error).splitlines() if line.strip()][-1]
        raise MambaADError(f"OpenVINO {version} cannot run {shown(path)}: {line}") from error
    return Runtime(
        f"OpenVINO {version}",
        [one.get_any_name() for one in network.inputs],
        str(network.get_rt_info(FACTS.split(".")).astype(str)),
        lambda given: {key.get_any_name(): value for key, value in compiled(given).items()},
    )


def sealed_onnx(content: bytes) -> bytes:
    """An ONNX file with the SHA-256 of its bytes behind them. Two protobuf messages in a row are one message."""
    entry = _ENTRY + hashlib.sha256(content).hexdigest().encode()
    return content + bytes([0x72, len(entry)]) + entry  # field 14 of ModelProto, metadata_props


def sealed_xml(content: bytes, weights: bytes) -> bytes:
    """OpenVINO's .xml with a comment behind it: the SHA-256 of its bytes and its weights."""
    return content + _COMMENT % hashlib.sha256(content + weights).hexdigest().encode()


def _check(content: bytes, inner: bytes, sealed: Callable[[bytes], bytes], path: Path) -> None:
    if b"mambaad.sha256" not in content:
        raise MambaADError(f"{shown(path)} was not made by mambaad export, or is truncated: export the model again")
    if sealed(inner) != content:
        raise MambaADError(f"{shown(path)} was changed after mambaad export wrote it: export the model again")


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise MambaADError(f"{shown(path)} is a folder: --model takes a model file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MambaADError(f"no model {shown(path)}: make one with mambaad export MODEL -o {shown(path)}") from None
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
