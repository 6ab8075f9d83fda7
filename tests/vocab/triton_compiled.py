"""Compile the Triton kernels for sm_90 without a GPU and count the instructions per logit on the usual path."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from entropy_theory.vocab.kernels import fused_triton

STRIDED = {"inner_rows": "i32", "outer_stride": "i32", "inner_stride": "i32", "vocab_size": "i32"}
SCALARS = {"temperature": "fp32", "log2_e_over_temperature": "fp32", "BLOCK": "constexpr"}


def binary(kernel: object, signature: dict[str, str], constants: dict[str, object]) -> bytes:
    names = list(signature)
    aligned = ("logits", "out", "sums", "outer_stride", "inner_stride", "vocab_size", "part_size")
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n in names}
    source = ASTSource(kernel, signature, constexprs=constants | {"BLOCK": fused_triton.BLOCK}, attrs=attributes)
    options = {"num_warps": fused_triton.WARPS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def forward(dtype: str, second_order: bool) -> bytes:
    signature = {"logits": f"*{dtype}", "sums": "*fp64", "rows": "i32", **STRIDED, "part_size": "i32", **SCALARS}
    return binary(fused_triton.accumulate_kernel, signature | {"SECOND": "constexpr"}, {"SECOND": second_order})


def backward(dtype: str) -> bytes:
    rows = dict.fromkeys(("tops", "levels", "slopes"), "*fp32")
    signature = {"logits": f"*{dtype}", "out": f"*{dtype}", **rows, **STRIDED, **SCALARS}
    return binary(fused_triton.gradient_kernel, signature, {})


def hot_instructions(cubin: bytes) -> int:
    """Count the machine instructions of the first loop, less what its forward branches skip."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-sass", file.name], capture_output=True, text=True, check=True).stdout
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", text)]
    branches = [(at, int(m[1], 16)) for at, op in lines if (m := re.search(r"@!?U?P\d+ BRA 0x([0-9a-f]+)", op))]
    end, start = next((at, to) for at, to in branches if to < at)
    skipped = [(at, to) for at, to in branches if start < at < to <= end]
    assert len(skipped) == 2, "two rare branches: the maximum moves; the block holds a maximum"
    inside = [at for at, _ in lines if start <= at <= end and not any(a < at < b for a, b in skipped)]
    return len(inside)


if __name__ == "__main__":
    lanes = fused_triton.BLOCK // (32 * fused_triton.WARPS)
    counts = {dtype: hot_instructions(forward(dtype, False)) / lanes for dtype in ("bf16", "fp16", "fp32")}
    assert all(len(cubin) > 0 for cubin in (forward("bf16", True), backward("bf16"), backward("fp32")))
    print(json.dumps(counts))
