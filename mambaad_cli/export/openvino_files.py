"""An ONNX file -> the two files of OpenVINO's own format."""

import tempfile
from pathlib import Path

from mambaad_cli.inspection import runtimes
from mambaad_cli.inspection.runtimes import FACTS, sealed_xml


def openvino_files(content: bytes) -> tuple[bytes, bytes]:
    """The bytes of an exported ONNX file as those of an .xml file, sealed, and of its .bin: weights stay float32.

    Raises MambaADError where OpenVINO is not installed.
    """
    import onnx

    package = runtimes.openvino()
    facts = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}[FACTS]
    with tempfile.TemporaryDirectory() as folder:
        onnx_path, path = Path(folder, "model.onnx"), Path(folder, "model.xml")
        onnx_path.write_bytes(content)
        network = package.convert_model(str(onnx_path))
        network.set_rt_info(facts, FACTS.split("."))
        package.save_model(network, str(path), compress_to_fp16=False)
        weights = path.with_suffix(".bin").read_bytes()
        return sealed_xml(path.read_bytes(), weights), weights
