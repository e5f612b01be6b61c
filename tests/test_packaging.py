"""What pip installs: all rooms of the package, and all packages that its code imports."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mambaad_cli

ROOT = Path(mambaad_cli.__file__).parent
PROJECT = ROOT.parent / "pyproject.toml"
# where a package on PyPI is not called as the module that it brings
PYPI_NAMES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "PIL": "pillow"}
# brought by another one, or by whoever compares with it: triton by torch, onnx_ir by onnxscript
NOT_DECLARED = {"mambaad_cli", "triton", "onnx_ir", "anomalib"}

pytestmark = pytest.mark.skipif(not PROJECT.exists(), reason="not in a checkout")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Names of all dependencies, of the package and of its extras."""
    return {normal(name) for name in re.findall(r'"([A-Za-z0-9_.-]+)(?:>=|")', PROJECT.read_text())}


def imported() -> set[str]:
    modules: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    return {module.split(".")[0] for module in modules} - sys.stdlib_module_names


def test_each_package_that_the_code_imports_is_declared() -> None:
    third_party = imported() - NOT_DECLARED
    assert {"torch", "cv2", "timm"} <= third_party
    assert {name for name in third_party if normal(PYPI_NAMES.get(name, name)) not in declared()} == set()


def test_every_room_is_packaged() -> None:
    setuptools = pytest.importorskip("setuptools")
    packaged = set(setuptools.find_packages(str(ROOT.parent), include=["mambaad_cli*"]))
    rooms = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("*.py")}
    assert packaged == rooms
    assert '[tool.setuptools.packages.find]\ninclude = ["mambaad_cli*"]\nnamespaces = false' in PROJECT.read_text()
