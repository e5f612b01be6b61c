"""The rooms of the package, the arrows between them, and the size of what stands in them."""

import ast
from collections.abc import Iterator
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
MAX_LINES_OF_MODULE = 400
MAX_LINES_OF_FUNCTION = 60
MAX_PARAMETERS = 6  # beside self or cls
# Their parameters are those of the recurrence, or what a compiler or PyTorch asks for.
KERNELS = ("mambaad_cli.model.kernels.", "mambaad_cli.export.operators.selective_scan", "mambaad_cli.benchmark.flops._")

Arrows = dict[str, set[str]]  # from each module to those that it imports
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room(module: str) -> str:
    """Of mambaad_cli.model.encoder: model."""
    return (module.split(".") + [""])[1]


def modules(root: Path) -> dict[str, Path]:
    """The file of each module of a package, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def statements(tree: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    """All statements, also inside functions; those under `if TYPE_CHECKING` only with `for_types`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            for alternative in node.orelse:
                yield from (alternative, *statements(alternative, for_types))
            continue
        yield node
        yield from statements(node, for_types)


def imports(root: Path, for_types: bool) -> Arrows:
    """What each module of a package imports of the same package, wherever the import stands."""
    files = modules(root)
    arrows: Arrows = {name: set() for name in files}
    for module, path in files.items():
        for node in statements(ast.parse(path.read_text()), for_types):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = source(module, path, node)
                names = [
                    f"{package}.{alias.name}" if f"{package}.{alias.name}" in files else package for alias in node.names
                ]
            arrows[module] |= {name for name in names if name in files}
    return arrows


def source(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The dotted name of what an import takes names from; a relative one counts from its package."""
    if node.level == 0:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def circles(arrows: Arrows) -> list[set[str]]:
    """The groups of modules that import each other, directly or by way of others."""
    reached = {module: reachable(arrows, module) for module in arrows}
    found: list[set[str]] = []
    for module in arrows:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def reachable(arrows: Arrows, start: str) -> set[str]:
    """The modules that are imported if `start` is; `start` itself only where an import leads back to it."""
    seen: set[str] = set()
    ahead = [*arrows[start]]
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            ahead += arrows[module]
    return seen


def test_arrows_point_one_way() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    arrows = imports(ROOT, for_types=True)
    pairs = {(room(module), room(other)) for module, others in arrows.items() for other in others}
    assert len(pairs) > 15
    assert {name for pair in pairs for name in pair} <= set(floor)
    assert {(upper, lower) for upper, lower in pairs if floor[lower] > floor[upper]} - LATE == set()


def test_no_modules_import_each_other() -> None:
    """Neither in a function, which would hide it: what two modules share belongs into a third one."""
    assert circles(imports(ROOT, for_types=False)) == []


def test_each_kind_of_import_makes_an_arrow(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    code = {
        "__init__.py": "",
        "cellar.py": "import house.room.a",
        "room/__init__.py": "",
        "room/a.py": "def late():\n    from house.room import b\n",
        "room/b.py": "from .c import name",
        "room/c.py": "if True:\n    import house.cellar as below\n",
        "room/d.py": "from house.room.a import late\nfrom . import b",
        "room/e.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.room import f\n",
        "room/f.py": "from house.room import e",
    }
    for name, text in code.items():
        (package / name).write_text(text)
    arrows = imports(package, for_types=False)
    assert arrows["house.room.d"] == {"house.room.a", "house.room.b"}
    assert circles(arrows) == [{"house.cellar", "house.room.a", "house.room.b", "house.room.c"}]
    assert {"house.room.e", "house.room.f"} in circles(imports(package, for_types=True))


def test_no_module_is_long() -> None:
    lines = {name: path.read_text().count("\n") for name, path in modules(ROOT).items()}
    assert len(lines) > 100
    assert {name: number for name, number in lines.items() if number > MAX_LINES_OF_MODULE} == {}


def functions() -> Iterator[tuple[str, Function]]:
    """Each function with its place, but for declarations of a command's options."""
    for module, path in modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function) and not any("command" in ast.unparse(part) for part in node.decorator_list):
                yield f"{module}.{node.name}", node


def test_no_function_is_long() -> None:
    lines = {place: (node.end_lineno or 0) - node.lineno + 1 for place, node in functions()}
    assert len(lines) > 500
    assert {place: number for place, number in lines.items() if number > MAX_LINES_OF_FUNCTION} == {}


def test_no_function_is_crowded() -> None:
    crowded = {}
    for place, node in functions():
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        names = names[1:] if names[:1] in (["self"], ["cls"]) else names
        if len(names) > MAX_PARAMETERS and not place.startswith(KERNELS):
            crowded[place] = len(names)
    assert crowded == {}
