"""Sharded parameters change nothing: FSDP2 on two CPU ranks against two ranks with whole copies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RANKS = Path(__file__).with_name("fsdp_ranks.py")
# The first one remembers and is resumed; the second is decided before the update, the third inside the loss.
RULES = ["stare(target=2.0, adaptive=True)|kl-cov(fraction=0.05)", "clip-v(mu=0.5, max_fraction=None)", "ce-gppo"]


@pytest.fixture(scope="module")
def ended(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("fsdp")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for kind in ("whole", "sharded"):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(RANKS)]
        done = subprocess.run(
            [sys.executable, *command, str(tiny_decoder), str(out), kind, *RULES],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    found = {kind: torch.load(out / f"{kind}.pt", weights_only=True) for kind in ("whole", "sharded")}
    start = load_file(tiny_decoder / "model.safetensors")
    saved = load_file(out / "sharded-0" / "checkpoint-4" / "model.safetensors")
    found["saved"] = {name: saved[name] - weight for name, weight in start.items()}
    return found


@pytest.mark.parametrize("rule", RULES)
def test_sharded_equals_whole(ended: dict[str, dict[str, torch.Tensor]], rule: str, tiny_decoder: Path) -> None:
    whole, sharded = ended["whole"][rule], ended["sharded"][rule]
    # Sums over ranks in another order, through four steps of AdamW.
    assert torch.linalg.norm(sharded - whole) < 1e-5 * torch.linalg.norm(whole)


def test_a_resumed_sharded_run_ends_with_the_same_weights(ended: dict[str, dict[str, torch.Tensor]]) -> None:
    assert torch.equal(ended["sharded"]["resumed"], ended["sharded"][RULES[0]])


def test_the_saved_model_is_whole_and_moved(ended: dict[str, dict[str, torch.Tensor]]) -> None:
    assert all(float(change.abs().max()) > 0 for change in ended["saved"].values())
