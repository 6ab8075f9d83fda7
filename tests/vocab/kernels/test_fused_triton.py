"""The Triton kernels: float64 eager → the interpreter on the CPU; machine code for sm_90; a GPU when there is one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from triton_scripts import run

SCRIPTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (extra: gpu)"
)


def test_float64_eager_under_the_interpreter() -> None:
    assert run(SCRIPTS / "triton_interpreted.py", TRITON_INTERPRET="1").strip() == "agrees"


def test_instructions_per_logit(tmp_path: Path) -> None:
    # An estimate for an H200: 132 · 4 · 32 lanes at 1.8 GHz issue 3e13 instructions a second, and 4.3 TB/s bring
    # 2.1e12 logits of bf16, so that 14 instructions a logit keep up with the memory.
    counts = json.loads(run(SCRIPTS / "triton_compiled.py", TRITON_CACHE_DIR=str(tmp_path)))
    assert set(counts) == {"bf16", "fp16", "fp32"}
    assert all(count <= 14 for count in counts.values()), counts


@pytest.mark.gpu
def test_float64_eager_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    import triton_interpreted

    triton_interpreted.main("cuda", 151_936)
