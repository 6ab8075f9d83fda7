"""Entropy under advantages that know nothing: where it falls without any signal, and where it rises.

    python simulations/noise_drift.py --quick
    python simulations/noise_drift.py --processes 2

Two parts. Single steps: policies with one likely token and an even rest, steps of both signs averaged exactly over the
sampled token; the sign of the drift against that of E_k[H''_k] (section B.10 of the theory notes). Whole runs: GRPO
with coin tosses for rewards, from several starts; the accumulated change against the predicted drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sweep

from entropy_theory.program import run_script


@dataclass(frozen=True)
class NoiseConfig(sweep.SweepOptions):
    """Measure the drift under noise.

    Attributes:
        vocab_sizes: V of the single steps.
        probs: Probabilities of the likely token.
        step: Size of the single steps.
        starts: Where the banks of the runs start.
        seeds: Seeds of the runs.
        policies: Policies in a bank.
        vocab_size: V of the runs.
        steps: GRPO steps.
        step_size: Step of the logits.
    """

    vocab_sizes: tuple[int, ...] = (2, 3, 5, 10, 100, 1_000, 10_000)
    probs: tuple[float, ...] = tuple(round(0.3 + 0.01 * i, 2) for i in range(70))
    step: float = 1e-2
    starts: tuple[str, ...] = ("uniform", "gaussian", "zipf", "forking", "peaked")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 1_000
    vocab_size: int = 50
    steps: int = 400
    step_size: float = 1.0


QUICK: dict[str, Any] = {
    "vocab_sizes": (2, 10, 100),
    "probs": (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95),
    "seeds": (0, 1),
    "policies": 200,
    "steps": 60,
}


@dataclass(frozen=True)
class NoiseSteps:
    """Exact mean change of entropy over sampled tokens and signs, one likely token and an even rest."""

    vocab_size: int
    probs: tuple[float, ...]
    step: float


@dataclass(frozen=True)
class NoiseRun:
    """GRPO on a bank with coin tosses for rewards."""

    start: str
    seed: int
    policies: int
    vocab_size: int
    steps: int
    step_size: float
    group_size: int = 16


def single_steps(task: NoiseSteps) -> dict[str, Any]:
    """Average ½ (ΔH(α) + ΔH(−α)) over the token; the rest's tokens are alike, so two kinds of token are enough."""
    import numpy as np

    import entropy_theory as et

    measured = []
    for p in task.probs:
        logits = np.zeros(task.vocab_size)
        logits[0] = np.log(p / (1 - p)) + np.log(task.vocab_size - 1)
        total = 0.0
        for token, weight in ((0, p), (1, 1 - p)):
            direction = et.grpo_direction(logits, token)
            both = [float(et.entropy_change(logits, side * task.step * direction)) for side in (1, -1)]
            total += weight * sum(both) / 2
        measured.append(total / (0.5 * task.step**2))
    return {"curvature": sweep.rounded(measured, 8)}


def random_rewards(task: NoiseRun) -> dict[str, Any]:
    """Run; the prediction of each step is made from the policies before it."""
    import numpy as np
    import torch

    from entropy_theory.dynamics import bank, grpo, starts
    from entropy_theory.dynamics.draws import Draw, generator
    from entropy_theory.theory.curvature import noise_drift

    shape = task.policies, task.vocab_size
    logits = {
        "uniform": lambda: starts.uniform_logits(*shape),
        "gaussian": lambda: starts.gaussian_logits(*shape, 1.0, task.seed),
        "zipf": lambda: starts.zipf_logits(*shape, 1.0),
        "forking": lambda: starts.forking_logits(*shape, task.seed),
        "peaked": lambda: peaked(*shape),
    }[task.start]()
    entropy, predicted = [], [0.0]
    for step in range(task.steps):
        policy = bank.policy_statistics(logits)
        entropy.append(float(policy.entropy.mean()))
        uniforms, coins = (
            torch.rand(task.policies, task.group_size, generator=generator(task.seed, kind, step), dtype=torch.float64)
            for kind in (Draw.TOKENS, Draw.ADVANTAGES)
        )
        A = grpo.group_advantages((coins < 0.5).double(), "std")
        scale = task.step_size / task.group_size
        # The second order is that of Σ_j A_j (e_k − p): its cross terms vanish, since E_k (e_k − p) = 0.
        squares = (scale**2 * A.square().sum(dim=-1)).numpy()
        predicted.append(predicted[-1] + float(np.mean(noise_drift(logits.numpy(), squares))))
        tokens = bank.sample_tokens(policy.probs, uniforms)
        logits = logits + grpo.move_of_logits(policy, tokens, A, scale)
    entropy.append(float(bank.policy_statistics(logits).entropy.mean()))
    return {
        "entropy": sweep.rounded(entropy[:: max(1, task.steps // 40)]),
        "predicted_change": sweep.rounded(predicted[:: max(1, task.steps // 40)]),
        "change": entropy[-1] - entropy[0],
        "predicted": predicted[-1],
    }


def peaked(policies: int, vocab_size: int, prob: float = 0.95) -> Any:
    """Policies with one token of probability .95 and an even rest: on the side where noise raises entropy."""
    import math

    import torch

    logits = torch.zeros(policies, vocab_size, dtype=torch.float64)
    logits[:, 0] = math.log(prob / (1 - prob)) + math.log(vocab_size - 1)
    return logits


def tasks(config: NoiseConfig) -> list[Any]:
    """Single steps by vocabulary; runs by start and seed."""
    return [
        *(NoiseSteps(size, config.probs, config.step) for size in config.vocab_sizes),
        *(
            NoiseRun(start, seed, config.policies, config.vocab_size, config.steps, config.step_size)
            for start in config.starts
            for seed in config.seeds
        ),
    ]


def work(task: Any) -> dict[str, Any]:
    """Do a task of either kind."""
    return single_steps(task) if isinstance(task, NoiseSteps) else random_rewards(task)


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the sign changes, and realised against predicted change of the runs."""
    boundaries, runs = {}, {}
    for entry in results:
        if "probs" in entry["task"]:
            falling = [p for p, c in zip(entry["task"]["probs"], entry["result"]["curvature"], strict=True) if c < 0]
            boundaries[entry["task"]["vocab_size"]] = max(falling) if falling else None
    for start in {entry["task"]["start"]: None for entry in results if "start" in entry["task"]}:
        found = [entry["result"] for entry in results if entry["task"].get("start") == start]
        runs[start] = {name: sweep.interval([entry[name] for entry in found]) for name in ("change", "predicted")}
        runs[start]["entropy_before"] = sweep.interval([entry["entropy"][0] for entry in found])
    return {"largest_falling_prob": boundaries, "runs": runs}


def main(config: NoiseConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("noise_drift", config, tasks(config), work, summarise)
    if record is not None:
        print("largest p on the grid at which noise lowers entropy, one likely token and an even rest:")
        print(", ".join(f"V = {size}: {p}" for size, p in record["summary"]["largest_falling_prob"].items()))
        print("change of mean entropy over a run with random rewards, and the predicted drift")
        for start, row in record["summary"]["runs"].items():
            words = f"from {sweep.shown(row['entropy_before'])}: {sweep.shown(row['change'], 4)}"
            print(f"{start:10}{words}, predicted {sweep.shown(row['predicted'], 4)}")
    return record


if __name__ == "__main__":
    run_script(main, NoiseConfig)
