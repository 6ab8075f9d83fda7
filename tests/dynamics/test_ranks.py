"""Policies shared out over processes: the bits of one process, from two ranks and four; gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulation_ranks import CASES, RESUMED, SMALLEST, arrays_of

from entropy_theory.control.reducers import LOCAL
from entropy_theory.dynamics import Simulation, SimulationConfig, ranks, run, simulate


def torchrun(count: int, folder: Path, task: str, impl: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
            *(str(here / "simulation_ranks.py"), str(count), str(folder), task, impl),
        ],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("impl", [pytest.param("eager", marks=pytest.mark.slow), "fused-cpu"])
def test_one_two_and_four_ranks_have_the_same_bits(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is stopped with two ranks in the middle and goes on with four; every case runs with both besides."""
    monkeypatch.setattr("entropy_theory.dynamics.implementations.SMALL", SMALLEST[impl])
    arrays = {f"{case}/{k}": v for case, config in CASES.items() for k, v in arrays_of(simulate(config)).items()}
    one = Simulation(CASES[RESUMED[impl]])
    for _ in range(one.config.steps):
        one.step()
    np.savez(tmp_path / "whole.npz", allow_pickle=False, **arrays, end=one.logits.numpy())
    stopped = torchrun(2, tmp_path, "stop", impl)
    assert stopped.returncode != 0
    assert stopped.stdout.count("equal") == 2, stopped.stderr[-4000:]
    assert (tmp_path / "run" / "checkpoint.safetensors").exists(), stopped.stderr[-4000:]
    assert not (tmp_path / "run" / "result.json").exists()
    four = torchrun(4, tmp_path, "go on", impl)
    assert four.returncode == 0, four.stderr[-4000:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((5, 0), r"out: expected a folder that every rank sees, received ranks that resume after \[0, 5\] steps"),
        ((0, 1), "impl: expected the same implementation on every rank, received eager, fused-cpu"),
    ],
)
def test_ranks_that_would_part_are_refused(other: tuple[int, int], message: str, tmp_path: Path) -> None:
    """As where a rank sees another folder, or lacks the compiler."""

    class First:
        rank, world_size = 0, 2

        def sum(self, values: torch.Tensor) -> torch.Tensor:
            return values

        def gather(self, values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, values + torch.tensor(other, dtype=values.dtype)])

    with pytest.raises(ValueError, match=message):
        run(SimulationConfig(policies=4, vocab_size=5, steps=2, out=tmp_path / "run"), None, First())


def test_shares_cover_the_bank() -> None:
    for policies in (4, 7, 64, 1000):
        shares = [ranks.share_of(rank, policies, 4) for rank in range(4)]
        assert [place for share in shares for place in share] == list(range(policies))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="policies: expected at least one for each of 4 ranks, received 3"):
        ranks.share_of(0, 3, 4)


class Recorded:
    """Ranks whose shares are held by this process, for `collect` alone: gather joins what each would send."""

    world_size = 3

    def __init__(self, rank: int, whole: torch.Tensor) -> None:
        self.rank, self.whole, self.start = rank, whole, 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        shares = [self.whole[s.start : s.stop] for s in (ranks.share_of(r, len(self.whole), 3) for r in range(3))]
        at_once = max(1, ranks.CHUNK // self.whole.shape[1])
        parts = [share[self.start : self.start + at_once].reshape(-1) for share in shares]
        assert parts[self.rank].equal(values)
        self.start += at_once
        return torch.cat(parts)


def test_collect_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(44.0).view(11, 4)
    for chunk in (1, 8, 1000):
        monkeypatch.setattr(ranks, "CHUNK", chunk)
        for rank in range(3):
            share = ranks.share_of(rank, 11, 3)
            found = ranks.collect(whole[share.start : share.stop], 11, Recorded(rank, whole))
            assert (found is None) == (rank != 0)
            if found is not None:
                assert found.equal(whole)


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.torchrun_ranks() as reducer:
        assert reducer is LOCAL
    assert Simulation(replace(SimulationConfig(), policies=3)).share == range(3)
