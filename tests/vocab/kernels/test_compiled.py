"""Compiled code on disk is that of the present sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs Numba")

CALLER = """
from numba import njit
import inner
from entropy_theory.vocab.kernels.compiled import cached

@cached
def twice(x):
    return inner.scaled(x)

result = twice(1.0)
print(result, sum(twice.stats.cache_hits.values()))
"""
INNER = """
from numba import njit

@njit
def scaled(x):
    return {} * x
"""


def run(folder: Path) -> tuple[float, int]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "caller.py"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    result, hits = done.stdout.split()
    return float(result), int(hits)


def test_a_change_in_another_file_is_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "inner.py").write_text(INNER.format(2.0))
    assert run(tmp_path) == (2.0, 0)
    assert run(tmp_path) == (2.0, 1)
    (tmp_path / "inner.py").write_text(INNER.format(3.0))
    assert run(tmp_path) == (3.0, 0)
