"""The package as a whole: light to import, one direction of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_theory

PACKAGE = Path(entropy_theory.__file__).parent
# What each room may import of the others; errors and records are leaves that every room may use.
ALLOWED = {
    "theory": set(),
    "vocab": set(),
    "control": {"vocab"},
    "dynamics": {"vocab", "control"},
    "testbed": set(),
    "bridge": {"vocab", "control"},
    "training": {"vocab", "control", "bridge", "testbed"},
    "audit": {"vocab", "control", "bridge", "training", "testbed"},
    "inspection": {"vocab", "control"},
    "report": set(),
}


def test_import_is_light() -> None:
    code = (
        "import entropy_theory, sys; print(*(m for m in ('torch', 'sympy', 'matplotlib', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_one_way(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "entropy_theory" and len(parts) > 1 and parts[1] in ALLOWED and parts[1] != room:
                    assert parts[1] in ALLOWED[room], f"{path.relative_to(PACKAGE)} imports {name}"


def test_theory_needs_no_torch() -> None:
    for path in sorted((PACKAGE / "theory").rglob("*.py")):
        imported = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert "torch" not in imported, path


def test_public_names_resolve() -> None:
    for name in entropy_theory.__all__:
        assert callable(getattr(entropy_theory, name)), name
    with pytest.raises(AttributeError, match="no attribute 'entropie'"):
        entropy_theory.entropie  # noqa: B018
