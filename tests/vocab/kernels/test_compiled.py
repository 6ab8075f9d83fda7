"""Compiled code on disk is that of the present sources; without it, or without Numba, results are the same."""

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


WARNING = "UserWarning: compiled loops are not kept on disk ("


def run(folder: Path, *, warned: bool = False) -> tuple[float, int]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "caller.py"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert (WARNING in done.stderr) == warned
    result, hits = done.stdout.split()
    return float(result), int(hits)


def test_a_change_in_another_file_is_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "inner.py").write_text(INNER.format(2.0))
    assert run(tmp_path) == (2.0, 0)
    assert run(tmp_path) == (2.0, 1)
    (tmp_path / "inner.py").write_text(INNER.format(3.0))
    assert run(tmp_path) == (3.0, 0)


def test_a_broken_or_full_cache_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "inner.py").write_text(INNER.format(2.0))
    assert run(tmp_path) == (2.0, 0)
    (code,) = (tmp_path / "__pycache__").glob("*.nbc")
    code.write_bytes(code.read_bytes()[:100])
    assert run(tmp_path, warned=True) == (2.0, 0)
    code.unlink()
    index = next((tmp_path / "__pycache__").glob("*.nbi"))
    index.unlink()
    index.mkdir()  # what cannot be written to
    assert run(tmp_path, warned=True) == (2.0, 0)


def test_without_numba_torch_takes_its_place_with_a_warning() -> None:
    """A compiler that misses a library of its own raises OSError."""
    code = """
import builtins, warnings, torch
original = builtins.__import__
def without(name, *rest):
    if name.split(".")[0] in ("numba", "llvmlite"):
        raise OSError("no shared library")
    return original(name, *rest)
builtins.__import__ = without
from entropy_theory.vocab import token_statistics
logits, tokens = torch.zeros(8, 151_936), torch.zeros(8, dtype=torch.int64)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(token_statistics(logits, tokens).impl, *[w.message for w in caught], sep="|")
try:
    token_statistics(logits, tokens, impl="fused-cpu")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    problem = "OSError: no shared library"
    assert first == f"eager|token statistics run on torch, several times slower: Numba cannot be loaded ({problem})"
    assert second == f"impl: expected Numba for 'fused-cpu', received {problem}"
