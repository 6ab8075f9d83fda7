"""One rank of the simulator's tests; run by ``torch.distributed.run``, it ends with an error if anything differs.

    simulation_ranks.py RANKS FOLDER TASK IMPL

FOLDER holds, from one process, `whole.npz`: the records of every configuration of CASES.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from entropy_theory.dynamics import (
    Simulation,
    SimulationConfig,
    SimulationResult,
    implementations,
    run,
    simulate,
    torchrun_ranks,
)

SMALL = SimulationConfig(policies=70, vocab_size=11, steps=6, iterations=2, checkpoint_every=2, pairs=50)
CASES = {
    "none": SMALL,
    "one sweep": SimulationConfig(policies=11, vocab_size=20, steps=6, pairs=50),  # η n / (n G) rounds by n: 6 and 5 do
    "three sweeps": SimulationConfig(policies=11, vocab_size=20, steps=6, pairs=50, rule="clip-b(mu=0.1)"),
    "a share of one": replace(SMALL, policies=5, initialisation="forking", optimizer="natural", dtype="float32"),
    "adam": replace(SMALL, optimizer="adam", initialisation="zipf", rule="random-mask(fraction=0.2)"),
    "batch": replace(SMALL, rule="clip-b(mu=0.5)|random-mask(fraction=0.1)", block_elements=40),
    "live": replace(SMALL, rule="clip-v(mu=0.5, max_fraction=0.02)|ppo-clip", step_size=3.0, record_every=4),
    "vocabulary": replace(SMALL, policies=4, vocab_size=151_936, steps=2, iterations=1, dtype="float32"),
}
RESUMED = {"eager": "adam", "fused-cpu": "batch"}
SMALLEST = {"eager": 1 << 62, "fused-cpu": 0}


def arrays_of(result: SimulationResult) -> dict[str, np.ndarray]:
    return {**result.steps, **{f"pair.{name}": values for name, values in result.pairs.items()}}


def stop_after(step: int) -> None:
    original = Simulation.step

    def stopping(self: Simulation) -> None:
        if self.completed == step:
            os._exit(9)  # as SIGKILL leaves it: nothing is tidied
        original(self)

    Simulation.step = stopping  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    folder, task = Path(sys.argv[2]), sys.argv[3]
    implementations.SMALL = SMALLEST[sys.argv[4]]
    with torchrun_ranks() as ranks:
        assert ranks.world_size == int(sys.argv[1])
        expected = np.load(folder / "whole.npz", allow_pickle=False)
        for case, config in CASES.items():
            for name, values in arrays_of(simulate(config, None, ranks)).items():
                assert np.array_equal(values, expected[f"{case}/{name}"]), (case, name)
        if task == "stop":
            print("equal", flush=True)
            stop_after(5)
        resumed = run(replace(CASES[RESUMED[sys.argv[4]]], out=folder / "run"), None, ranks)
        for name, values in arrays_of(resumed).items():
            assert np.array_equal(values, expected[f"{RESUMED[sys.argv[4]]}/{name}"]), name
        ranks.sum(torch.zeros(()))
        end = load_file(folder / "run" / "checkpoint.safetensors")
        assert np.array_equal(end["logits"].numpy(), expected["end"])


if __name__ == "__main__":
    main()
