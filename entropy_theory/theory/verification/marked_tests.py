"""Which tests of a checkout hold a statement: those that carry `@pytest.mark.statement("its-identifier")`.

The identifier "*" stands for every statement. The files are parsed, not run; an installed package has none beside it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def holding(identifier: str) -> tuple[str, ...]:
    """Name the tests that hold a statement, as pytest nodes; those that hold all of them come last.

    Example:
        >>> [test.rpartition("::")[2] for test in holding("sign-flip-radius")][:1]
        ['test_the_flip_radius_is_the_root']
    """
    nodes = nodes_by_identifier(ROOT)
    return (*nodes.get(identifier, ()), *nodes.get("*", ()))


@cache
def nodes_by_identifier(root: Path) -> dict[str, tuple[str, ...]]:
    """Find the marked tests below a folder's `tests/`, as pytest nodes by what their marks say.

    Example:
        >>> nodes_by_identifier(Path("/nowhere"))
        {}
    """
    nodes: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        for function in ast.parse(source).body if "mark.statement(" in source else ():
            if isinstance(function, ast.FunctionDef):
                for identifier in _marks(function):
                    nodes.setdefault(identifier, []).append(f"{path.relative_to(root).as_posix()}::{function.name}")
    return {identifier: tuple(tests) for identifier, tests in nodes.items()}


def _marks(function: ast.FunctionDef) -> list[str]:
    return [
        argument.value
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.statement"
        for argument in decorator.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
