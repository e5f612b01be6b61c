"""What pip installs: all rooms of the package, and all packages that its code imports."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import mambaad_cli

ROOT = Path(mambaad_cli.__file__).parent
PROJECT = ROOT.parent / "pyproject.toml"
# where a package on PyPI is not called as the module that it brings
PYPI_NAMES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "PIL": "pillow"}
# triton is brought by torch where a GPU can use it; anomalib by whoever compares with it
NOT_DECLARED = {"mambaad_cli", "tests", "triton", "anomalib"}

pytestmark = pytest.mark.skipif(not PROJECT.exists(), reason="not in a checkout")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Names of all dependencies, of the package and of its extras."""
    return {normal(name) for name in re.findall(r'"([A-Za-z0-9_.-]+)(?:>=|")', PROJECT.read_text())}


def packages(nodes: Iterable[ast.AST]) -> set[str]:
    """PyPI's names of what import statements among these take from other packages than ours and Python's own."""
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    names = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - NOT_DECLARED
    return {normal(PYPI_NAMES.get(name, name)) for name in names}


def test_each_package_that_the_code_imports_is_declared() -> None:
    imported = {name for path in ROOT.rglob("*.py") for name in packages(ast.walk(ast.parse(path.read_text())))}
    assert {"torch", "opencv-python-headless", "timm"} <= imported
    assert imported - declared() == set()


def test_what_is_imported_with_a_module_needs_no_extra() -> None:
    """But for the modules of an extra, which are imported themselves when they are needed."""
    of_extras = {"_build.py": {"setuptools"}, "export/operators.py": {"onnx-ir", "onnxscript"}}
    of_extras |= {f"serving/{name}.py": {"starlette"} for name in ("app", "asked", "guard")}
    of_extras["serving/server.py"] = {"starlette", "uvicorn"}
    required = PROJECT.read_text().split("\ndependencies = [")[1].split("]")[0]
    names = {normal(name) for name in re.findall(r'"([A-Za-z0-9_.-]+)>=', required)}
    assert {"torch", "numpy"} <= names
    for path in ROOT.rglob("*.py"):
        extra = of_extras.get(path.relative_to(ROOT).as_posix(), set())
        assert packages(ast.parse(path.read_text()).body) - names == extra, path


def test_each_package_that_the_tests_import_is_declared() -> None:
    paths = Path(__file__).parent.rglob("*.py")
    imported = {name for path in paths for name in packages(ast.walk(ast.parse(path.read_text())))}
    assert {"pytest", "hypothesis", "pillow"} <= imported
    assert imported - declared() == set()


def test_every_room_is_packaged() -> None:
    setuptools = pytest.importorskip("setuptools")
    packaged = set(setuptools.find_packages(str(ROOT.parent), include=["mambaad_cli*"]))
    rooms = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("*.py")}
    assert packaged == rooms
    assert '[tool.setuptools.packages.find]\ninclude = ["mambaad_cli*"]\nnamespaces = false' in PROJECT.read_text()


def test_the_oldest_versions_are_read_from_the_dependencies() -> None:
    """A dependency may be one of some versions of Python alone."""
    script = PROJECT.parent / ".ci" / "versions"
    if not script.exists():
        pytest.skip("not in a checkout")
    program = script.read_text().split("<<'EOF'\n")[1].split("\nEOF\n")[0]
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, cwd=PROJECT.parent)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert {"torch==2.12.*", "tomli==2.*"} <= set(lines)
    assert all(re.fullmatch(r"[\w-]+==[\w.]+\.\*", line) for line in lines)
