"""Corollary 3.5 along GRPO runs: the mean of S_c is zero in expectation on-policy, and is not under top-p sampling.

    python simulations/corollary_3_5.py            # the recorded run, some minutes
    python simulations/corollary_3_5.py --quick    # under a minute
    python simulations/corollary_3_5.py --task 0/4 # a share of the tasks

The mean over n tokens has the standard error √(Σ_t Var_{p_t} S)/n, computed from the policies and not from the sample
(section B.13 of the theory notes); it is a martingale's, so it holds along sequences and along the run. The same is
done on banks of softmax policies and with the small decoder in TRL's loop, where the tokens are those that it is
trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sweep
from grpo_runs import train_observed

from entropy_theory.program import run_script


@dataclass(frozen=True)
class CorollaryConfig(sweep.SweepOptions):
    """Compare the mean of S_c with zero, on-policy and under top-p sampling.

    Attributes:
        seeds: Runs of the decoder with each sampler.
        banks: Banks, with the seeds from 0 on.
        top_p: The wrong sampler's share of probability.
        steps: GRPO steps of the decoder.
        prompts: Prompts in a generation batch.
        generations: Completions per prompt.
        policies: Policies of a bank.
        tabular_steps: Steps of a bank.
        tiny: Train a decoder that is warmed up in a second.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    banks: int = 20
    top_p: float = 0.9
    steps: int = 100
    prompts: int = 16
    generations: int = 16
    policies: int = 400
    tabular_steps: int = 100
    tiny: bool = False


QUICK = {
    "seeds": (0, 1),
    "banks": 2,
    "steps": 10,
    "prompts": 8,
    "generations": 8,
    "policies": 100,
    "tabular_steps": 10,
    "tiny": True,
}


@dataclass(frozen=True)
class CenteringRun:
    """One run of the decoder."""

    top_p: float
    seed: int
    steps: int
    prompts: int
    generations: int
    tiny: bool


@dataclass(frozen=True)
class CenteringBank:
    """One bank, whose tokens are drawn by both samplers."""

    top_p: float
    seed: int
    policies: int
    steps: int


def work(task: CenteringRun | CenteringBank) -> dict[str, Any]:
    """Do one task; a list per step of n, Σ S, Σ S_c and Σ Var S for each sampler."""
    if isinstance(task, CenteringRun):
        return {_name(task.top_p): sweep.rounded(_run(task), 7)}
    from entropy_theory.dynamics import SimulationConfig, centering

    config = SimulationConfig(policies=task.policies, vocab_size=100, steps=task.steps, step_size=0.02, seed=task.seed)
    measured: dict[str, Any] = {}
    for name, entry in zip((_name(1.0), _name(task.top_p)), centering(config, top_p=task.top_p), strict=True):
        n = entry.tokens_per_step
        sums = (n * entry.mean_discriminant, n * entry.mean_centered, (n * entry.standard_error) ** 2)
        measured[name] = sweep.rounded([[float(n), *map(float, row)] for row in np.stack(sums, axis=1)], 7)
    return measured


def _name(top_p: float) -> str:
    return "on-policy" if top_p == 1 else f"top-p {top_p:g}"


def _run(task: CenteringRun) -> list[list[float]]:
    """Train the decoder with TRL and score every token that was sampled, under the policy that sampled it."""
    import torch

    from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
    from entropy_theory.dynamics import bank

    rows: list[list[float]] = []

    class Scored(EntropyControlledGRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            with torch.no_grad():
                logits = self.model(input_ids=ids, attention_mask=mask).logits
            sampled = output["completion_mask"].bool()
            length = sampled.shape[1]
            policy = bank.policy_statistics(logits[:, -length - 1 : -1][sampled])
            scores = policy.at(output["completion_ids"][sampled][:, None])
            sums = (scores.discriminant, scores.centered_discriminant, policy.discriminant_variance())
            rows.append([float(sampled.sum()), *(float(values.sum()) for values in sums)])
            return output

    train_observed(
        Scored,
        tiny=task.tiny,
        steps=task.steps,
        prompts=task.prompts,
        generations=task.generations,
        seed=task.seed,
        top_p=task.top_p,
    )
    return rows


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over all tokens of all seeds with their standard errors, by kind and sampler."""
    summary: dict[str, Any] = {}
    for kind, key in (("tabular", "policies"), ("real", "generations")):
        mine = [entry["result"] for entry in results if key in entry["task"]]
        names = dict.fromkeys(name for entry in mine for name in entry)
        summary[kind] = {
            name: means_over_tokens([row for entry in mine for row in entry.get(name, [])]) for name in names
        }
    return summary


def means_over_tokens(rows: list[list[float]]) -> dict[str, float]:
    """Mean S and S_c over all tokens with its standard error, of rows n, Σ S, Σ S_c, Σ Var S."""
    n, discriminant, centered, variance = np.array(rows).T
    tokens, error = float(n.sum()), math.sqrt(float(variance.sum()))
    each = np.abs(centered) / np.sqrt(variance)
    measured = {
        "tokens": tokens,
        "mean_discriminant": float(discriminant.sum()) / tokens,
        "mean_centered": float(centered.sum()) / tokens,
        "standard_error": error / tokens,
        "z": float(centered.sum()) / error,
        "steps_beyond_two_errors": float((each > 2).mean()),
    }
    return {name: float(f"{value:.6g}") for name, value in measured.items()}


def main(config: CorollaryConfig) -> dict[str, Any] | None:
    """Run, record and print."""
    config = sweep.with_quick_settings(config, QUICK)
    size = (config.steps, config.prompts, config.generations, config.tiny)
    tasks: list[Any] = [
        CenteringBank(config.top_p, seed, config.policies, config.tabular_steps) for seed in range(config.banks)
    ]
    tasks += [CenteringRun(top_p, seed, *size) for top_p in (1.0, config.top_p) for seed in config.seeds]
    record = sweep.run("corollary_3_5", config, tasks, work, summarise)
    if record is None:
        return None
    for kind, title in (("tabular", "banks of softmax policies"), ("real", "the decoder, GRPO in TRL")):
        for name, total in record["summary"][kind].items():
            verdict = "as good as zero" if abs(total["z"]) < 3 else "not zero"
            print(
                f"{title}, {name}, {total['tokens']:,.0f} tokens: mean S {total['mean_discriminant']:+.2e}, mean S_c "
                f"{total['mean_centered']:+.2e} ± {total['standard_error']:.0e} (z = {total['z']:+.1f}: {verdict}); "
                f"{total['steps_beyond_two_errors']:.0%} of the steps beyond two standard errors"
            )
    return record


if __name__ == "__main__":
    run_script(main, CorollaryConfig)
