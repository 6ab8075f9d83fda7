"""The Triton kernels: float64 eager → the interpreter on the CPU; machine code for sm_90; a GPU when there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (extra: gpu)"
)


def run(script: str, **environment: str) -> str:
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / script)],
        env=kept | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_float64_eager_under_the_interpreter() -> None:
    assert run("triton_interpreted.py", TRITON_INTERPRET="1").strip() == "agrees"


def test_instructions_per_logit(tmp_path: Path) -> None:
    # An estimate for an H200: 132 · 4 · 32 lanes at 1.8 GHz issue 3e13 instructions a second, and 4.3 TB/s bring
    # 2.1e12 logits of bf16, so that 14 instructions a logit keep up with the memory.
    counts = json.loads(run("triton_compiled.py", TRITON_CACHE_DIR=str(tmp_path)))
    assert set(counts) == {"bf16", "fp16", "fp32"}
    assert all(count <= 14 for count in counts.values()), counts


@pytest.mark.gpu
def test_float64_eager_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    import triton_interpreted

    triton_interpreted.main("cuda", 151_936)
