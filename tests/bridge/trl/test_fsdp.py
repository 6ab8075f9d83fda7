"""Sharded parameters change nothing: FSDP2 on two CPU ranks against two ranks with whole copies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RANKS = Path(__file__).with_name("fsdp_ranks.py")
FEW = ["clip-v(mu=0.5, max_fraction=None)"]  # in the default run: decided before the update
# The first one remembers and is resumed; the others are decided before the update and inside the loss.
RULES = ["stare(target=2.0, adaptive=True)|kl-cov(fraction=0.05)", *FEW, "ce-gppo"]

Ended = dict[str, dict[str, torch.Tensor]]


def trained(model: Path, out: Path, rules: list[str]) -> Ended:
    """Train with every rule on two ranks, with whole and with sharded parameters; the first rule is also resumed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for kind in ("whole", "sharded"):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(RANKS)]
        done = subprocess.run(
            [sys.executable, *command, str(model), str(out), kind, *rules],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {kind: torch.load(out / f"{kind}.pt", weights_only=True) for kind in ("whole", "sharded")}


def assert_equal_to_rounding(ended: Ended, rule: str) -> None:
    whole, sharded = ended["whole"][rule], ended["sharded"][rule]
    # Sums over ranks in another order, through four steps of AdamW.
    assert torch.linalg.norm(sharded - whole) < 1e-5 * torch.linalg.norm(whole)


def test_one_rule_sharded_equals_whole(tiny_decoder: Path, tmp_path: Path) -> None:
    ended = trained(tiny_decoder, tmp_path, FEW)
    assert_equal_to_rounding(ended, FEW[0])
    assert torch.equal(ended["sharded"]["resumed"], ended["sharded"][FEW[0]])


@pytest.fixture(scope="module")
def ended(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    out = tmp_path_factory.mktemp("fsdp")
    ended = trained(tiny_decoder, out, RULES)
    start = load_file(tiny_decoder / "model.safetensors")
    saved = load_file(out / "sharded-0" / "checkpoint-4" / "model.safetensors")
    return ended | {"saved": {name: saved[name] - weight for name, weight in start.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_sharded_equals_whole(ended: Ended, rule: str) -> None:
    assert_equal_to_rounding(ended, rule)


@pytest.mark.slow
def test_a_resumed_sharded_run_ends_with_the_same_weights(ended: Ended) -> None:
    assert torch.equal(ended["sharded"]["resumed"], ended["sharded"][RULES[0]])


@pytest.mark.slow
def test_the_saved_model_is_whole_and_moved(ended: Ended) -> None:
    assert all(float(change.abs().max()) > 0 for change in ended["saved"].values())
