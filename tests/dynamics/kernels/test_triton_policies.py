"""The step in Triton: many digits and torch under the interpreter; machine code for sm_90; a GPU if there is one."""

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


def test_many_digits_and_the_torch_path_under_the_interpreter() -> None:
    assert run(SCRIPTS / "triton_steps_interpreted.py", TRITON_INTERPRET="1").strip() == "agrees"


def test_machine_code(tmp_path: Path) -> None:
    # An exponential has 20 float64 instructions and the sums 11; a move takes e^d again, e^δ − 1 and five more sums. An
    # estimate for an H100: 132 · 64 lanes at 1.7 GHz do the 31 for 4.6e11 logits a second, and 3.3 TB/s bring 8e11.
    counts = json.loads(run(SCRIPTS / "triton_steps_compiled.py", TRITON_CACHE_DIR=str(tmp_path)))
    most = {"step": 31, "read": 31, "move": 80}
    assert {name: count["spills"] for name, count in counts.items()} == dict.fromkeys(most, 0)
    assert all(counts[name]["float64"] <= most[name] for name in most), counts
    assert counts["step"]["float32"] == 0  # a literal that becomes a number of its own is float32


@pytest.mark.gpu
def test_many_digits_and_the_torch_path_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    import triton_steps_interpreted

    triton_steps_interpreted.main("cuda", 151_936)
