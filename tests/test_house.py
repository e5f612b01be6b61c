"""The rooms of the package and the arrows between them."""

import ast
from pathlib import Path

import mambaad_cli

ROOT = Path(mambaad_cli.__file__).parent
FLOORS = [
    {"", "allocator", "files", "distributed"},
    {"model"},
    {"data"},
    {"inspection"},
    {"line"},
    {"gauge", "report"},
    {"training"},
    {"export"},
    {"api"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
]
LATE = {("", "api"), ("", "inspection"), ("", "training"), ("cli", "__main__")}  # names that are imported when used


def room(module: str) -> str:
    """Of mambaad_cli.model.encoder: model."""
    return (module.split(".") + [""])[1]


def imports() -> set[tuple[str, str]]:
    """(importing room, imported room) of every import in the package."""
    found = set()
    for path in ROOT.rglob("*.py"):
        parts = ("mambaad_cli", *path.relative_to(ROOT).with_suffix("").parts)
        own = room(".".join(part for part in parts if part != "__init__"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mambaad_cli"):
                for one in node.names:
                    module = node.module or ""
                    inside = (ROOT / one.name).is_dir() or (ROOT / f"{one.name}.py").exists()
                    found.add((own, room(f"{module}.{one.name}" if module == "mambaad_cli" and inside else module)))
    return found


def test_arrows_point_one_way() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    found = imports()
    assert len(found) > 15
    assert {name for pair in found for name in pair} <= set(floor)
    back = {(own, other) for own, other in found if floor[other] > floor[own]}
    assert back - LATE == set()


def test_no_module_is_long_and_no_function_long_or_crowded() -> None:
    """But for declarations of options, and for kernels whose signatures their compilers ask for."""
    kernels = ("selective_scan.py", "selective_scan_cuda.py")
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if any("command" in ast.unparse(one) for one in node.decorator_list):
                continue
            parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
            assert len(parameters) <= 8 or path.name in kernels, f"{path}: {node.name}"
