"""Compile the Triton steps for sm_90 without a GPU; count float64 instructions and spills in their passes."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from entropy_theory.control.group_advantages import STD_OFFSET
from entropy_theory.dynamics import SimulationConfig
from entropy_theory.dynamics.fused_triton import TritonPolicies
from entropy_theory.dynamics.kernels import triton_steps

INTEGERS = {"tokens": "*i64", "likeliest": "*i32", "correct": "*u8", "key": "i64"}
NUMBERS = dict.fromkeys(("step", "first", "vocab_size", "group_size"), "i32")
FLAGS = {"DIVIDE": True, "OFFSET": STD_OFFSET, "SAMPLE": True, "SQUARES": True, "MEASURE": True}


def passes_of(kernel: Any, dtype: str, vocab_size: int) -> dict[str, float]:
    """Compile a kernel as a run of this size launches it and look at its passes, the innermost loops that read logits.

    Returns:
        Float64 instructions per logit, in the one that has most; instructions that spill registers, in all of them; and
        how often the kernel's intermediate code speaks of float32.
    """
    config = SimulationConfig(policies=1, vocab_size=vocab_size)
    constants = FLAGS | TritonPolicies(config, range(1), torch.device("cpu")).sizes
    warps = constants.pop("num_warps")
    types = INTEGERS | NUMBERS | {"logits": f"*{dtype}"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp64") for name in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([str(tool), "-sass", file.name], capture_output=True, text=True, check=True).stdout
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", text)]
    loops = [(int(m[1], 16), at) for at, op in lines if (m := re.search(r"\bBRA .*?0x([0-9a-f]+)", op))]
    loops = [(start, end) for start, end in loops if start < end]
    inner = [(start, end) for start, end in loops if not any(start <= s and e < end for s, e in loops)]
    bodies = [[op for at, op in lines if start <= at <= end] for start, end in inner]
    bodies = [body for body in bodies if any(re.search(r"\bLDG\b", op) for op in body)]
    lanes = constants["TILES"] * constants["TILE"] // (32 * warps)
    return {
        "float64": max(sum(bool(re.search(r"\bD(FMA|MUL|ADD)\b", op)) for op in body) for body in bodies) / lanes,
        "spills": sum(bool(re.search(r"\b(LDL|STL)\b", op)) for body in bodies for op in body),
        "float32": compiled.asm["ttir"].count("f32"),
    }


if __name__ == "__main__":
    step, read, move = triton_steps.step_kernel, triton_steps.read_kernel, triton_steps.move_kernel
    sizes = [("step", step, "fp64", 100), ("read", read, "fp32", 151_936), ("move", move, "fp32", 151_936)]
    print(json.dumps({name: passes_of(kernel, dtype, size) for name, kernel, dtype, size in sizes}))
