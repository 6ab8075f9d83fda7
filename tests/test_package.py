"""The package as a whole: light to import, one direction of imports, no circle, no reading of private names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import entropy_theory

PACKAGE = Path(entropy_theory.__file__).parent
LEAVES = {"errors", "records", "rewards", "sampling", "intervals", "ranks"}  # every room may use them
BELOW_THE_COMMANDS = {
    "theory",
    "vocab",
    "control",
    "dynamics",
    "influence",
    "bridge",
    "testbed",
    "training",
    "audit",
    "inspection",
}
# What each room and each module beside them may import of the others.
ALLOWED = {
    "errors": set(),
    "records": {"errors"},
    "rewards": set(),
    "ranks": set(),
    "program": {"errors", "ranks"},
    "sampling": {"errors", "records"},
    "intervals": {"errors"},
    "theory": set(),
    "vocab": set(),
    "control": {"vocab"},
    "dynamics": {"vocab", "control"},
    "testbed": set(),
    "influence": {"vocab", "control"},
    "bridge": {"vocab", "control", "influence"},
    "training": {"vocab", "control", "bridge", "testbed"},
    "audit": {"vocab", "control", "influence", "bridge", "training", "testbed"},
    "inspection": {"vocab", "control", "influence", "testbed"},
    "report": set(),
    "testing": {"theory"},
    "arms": set(),
    "demo": BELOW_THE_COMMANDS | {"report", "arms"},
    "llm": BELOW_THE_COMMANDS | {"report", "arms"},
    "cli": BELOW_THE_COMMANDS | {"report", "demo", "llm", "program"},
    "__init__": {"theory", "control"},
    "__main__": {"cli"},
}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
ROOMS = pytest.mark.parametrize("room", ALLOWED)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules of this package that import statements name; a name that is not a module counts as its module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when a module is imported, and those for type checkers, which show the same dependence."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_import_is_light() -> None:
    code = (
        "import entropy_theory, sys; print(*(m for m in ('torch', 'sympy', 'matplotlib', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_statistics_do_without_the_compiler_of_torch() -> None:
    """It takes as long to load as torch itself."""
    code = "import entropy_theory.vocab, entropy_theory.dynamics, sys; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_table_has_every_room() -> None:
    assert {room_of(name) for name in MODULES} == set(ALLOWED)


@ROOMS
def test_imports_go_one_way(room: str) -> None:
    for module, tree in TREES.items():
        if room_of(module) == room:
            used = {room_of(name) for name in imported(ast.walk(tree)) if name != "entropy_theory"}
            assert used <= ALLOWED[room] | LEAVES | {room}, module


def test_no_circle_of_imports() -> None:
    graph = {name: set(imported(at_import(tree))) - {name} for name, tree in TREES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # a circle raises CycleError, which shows it


@ROOMS
def test_no_module_reads_private_names_of_another(room: str) -> None:
    for module, tree in TREES.items():
        if room_of(module) != room:
            continue
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in MODULES
            for alias in node.names
        }
        private = [full for full in names.values() if is_private(full.rpartition(".")[2]) and full not in MODULES]
        private += [
            f"{names[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr)
            if names.get(node.value.id) in MODULES
        ]
        assert private == [], module


def test_theory_needs_no_torch() -> None:
    for name, tree in TREES.items():
        if room_of(name) == "theory":
            assert "torch" not in {
                (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }, name


def test_public_names_resolve() -> None:
    for name in entropy_theory.__all__:
        assert callable(getattr(entropy_theory, name)), name
    with pytest.raises(AttributeError, match="no attribute 'entropie'"):
        entropy_theory.entropie  # noqa: B018
