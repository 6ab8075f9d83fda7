"""Ranks end well, however late the threads of their process group are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A device mesh holds the group beyond its end, so that its threads outlive it; what they free last are tensors that
# Python knows. Without `leave_ranks` two of twelve such runs were aborted on one busy processor.
CODE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from entropy_theory.ranks import leave_ranks

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for _ in range(200):
    tensors = [torch.ones(64) for _ in range(8)]
    work = [dist.all_reduce(tensor, group=mesh.get_group(), async_op=True) for tensor in tensors]
    for part in work:
        part.wait()
leave_ranks()
assert not dist.is_initialized()
print("left")
"""


def run_ranks(folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "rank.py"
    script.write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    one_processor = {0} if hasattr(os, "sched_setaffinity") else None
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=one_processor and (lambda: os.sched_setaffinity(0, one_processor)),
    )


@pytest.mark.parametrize("repeat", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 30))])
def test_no_rank_is_aborted_at_its_end(tmp_path: Path, repeat: int) -> None:
    done = run_ranks(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("left") == 2


def test_leaving_without_ranks_is_nothing() -> None:
    code = "import sys; from entropy_theory.ranks import leave_ranks; leave_ranks(); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"
