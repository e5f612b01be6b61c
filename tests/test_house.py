"""The rooms of the package, the arrows between them and between modules, and how large a door or a module may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mambaad_cli

ROOT = Path(mambaad_cli.__file__).parent
FLOORS = [
    {"", "allocator", "side_by_side", "files", "distributed"},
    {"model"},
    {"data"},
    {"inspection"},
    {"line"},
    {"gauge", "report", "serving"},
    {"training"},
    {"export"},
    {"api"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
]
LATE = {
    ("", "api"),
    ("", "inspection"),
    ("", "training"),
    ("", "benchmark"),
    ("cli", "__main__"),
}  # names that are imported when used
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 6


def modules() -> dict[str, Path]:
    """Every module of the package by its name; a package by that of its folder."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("mambaad_cli", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room(module: str) -> str:
    """Of mambaad_cli.model.encoder: model."""
    return (module.split(".") + [""])[1]


def imported(path: Path, known: set[str], typing_only: bool = True) -> Iterator[str]:
    """The modules of the package that a module imports, inside functions too.

    typing_only: also those below `if TYPE_CHECKING`, which never run.
    """
    tree = ast.parse(path.read_text())
    if not typing_only:
        tree = _Running().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in known else node.module


class _Running(ast.NodeTransformer):
    """Drops what is imported for types alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return None
        self.generic_visit(node)
        return node


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972).

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    [['b', 'c']]
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            found.extend([sorted(part)] if len(part) > 1 else [])

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def test_arrows_point_one_way() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    paths = modules()
    pairs = {(room(name), room(other)) for name, path in paths.items() for other in imported(path, set(paths))}
    assert len(pairs) > 15
    assert {name for pair in pairs for name in pair} <= set(floor)
    back = {(importing, other) for importing, other in pairs if floor[other] > floor[importing]}
    assert back - LATE == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count; those for types alone do not."""
    paths = modules()
    arrows = {name: set(imported(path, set(paths), typing_only=False)) - {name} for name, path in paths.items()}
    assert sum(map(len, arrows.values())) > 300
    assert circles(arrows) == []


def test_a_circle_is_seen_whatever_way_it_is_imported(tmp_path: Path) -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "a"}, "d": {"a"}}) == [["a", "b", "c"]]
    (tmp_path / "a.py").write_text("def late():\n    import mambaad_cli.b\n    from mambaad_cli import c\n")
    known = {"mambaad_cli", "mambaad_cli.b", "mambaad_cli.c"}
    assert set(imported(tmp_path / "a.py", known, typing_only=False)) == {"mambaad_cli.b", "mambaad_cli.c"}
    (tmp_path / "a.py").write_text("if TYPE_CHECKING:\n    from mambaad_cli.b import B\n")
    assert set(imported(tmp_path / "a.py", known, typing_only=False)) == set()


def test_no_module_is_long_and_no_function_long_or_crowded() -> None:
    """But for declarations of options, and for kernels and operators whose signatures their compilers ask for."""
    kernels = (
        "plain_scan.py",
        "selective_scan.py",
        "selective_scan_cuda.py",
        "triton_scan.py",
        "linear_attention.py",
        "operators.py",
        "flops.py",
    )
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= MAX_MODULE_LINES, path
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if any("command" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            names = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
            parameters = [name for name in names if name not in ("self", "cls")]
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"
            assert len(parameters) <= MAX_PARAMETERS or path.name in kernels, f"{path}: {node.name}"
