"""GRPO on banks of forking policies, as tasks that several sweeps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_runs import thinned
from sweep import rounded


@dataclass(frozen=True)
class BankRun:
    """One run."""

    rule: str
    seed: int
    policies: int
    vocab_size: int
    steps: int
    step_size: float
    iterations: int = 2  # updates per batch
    correct_share: float = 0.1
    samples: int = 64  # tokens per policy, to measure the trained bank


def simulate(run: BankRun) -> dict[str, Any]:
    """Simulate.

    Returns:
        ``curves``: means over neighbouring steps, by name; ``final``: entropy and expected reward of the trained bank,
        the number of distinct right tokens among ``samples`` draws from a policy, the share of tokens dropped and the
        mean |r − 1| over the run.
    """
    import torch

    from entropy_theory.dynamics import Simulation, SimulationConfig, bank
    from entropy_theory.dynamics.draws import Draw, generator

    simulation = Simulation(
        SimulationConfig(
            policies=run.policies,
            vocab_size=run.vocab_size,
            steps=run.steps,
            iterations=run.iterations,
            step_size=run.step_size,
            rule=run.rule,
            correct_share=run.correct_share,
            initialisation="forking",
            pairs=0,
            seed=run.seed,
        )
    )
    for _ in range(run.steps):
        simulation.step()
    policy = bank.policy_statistics(simulation.logits)
    uniforms = torch.rand(
        run.policies, run.samples, generator=generator(run.seed, Draw.TOKENS, run.steps), dtype=torch.float64
    )
    drawn = torch.zeros_like(simulation.correct).scatter_(-1, bank.sample_tokens(policy.probs, uniforms), True)
    columns = simulation.columns
    first = columns["iteration"] == 0
    return {
        "curves": {
            "step": thinned(columns["step"][first]),
            "entropy": thinned(columns["entropy_before"][first]),
            "reward": thinned(columns["reward"][first]),
        },
        "final": rounded(
            {
                "entropy": float(policy.entropy.mean()),
                "reward": float((policy.probs * simulation.correct).sum(dim=-1).mean()),
                "distinct_right": float((drawn & simulation.correct).sum(dim=-1).double().mean()),
                "dropped_share": float(columns["dropped_share"].mean()),
                "ratio_deviation": float(columns["ratio_deviation"].mean()),
            }
        ),
    }


LEFT_OUT: dict[type, tuple[str, ...]] = {BankRun: ("curves",)}
"""There are many bank runs; the records keep where they ended."""
