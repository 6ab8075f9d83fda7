"""The thresholds of Clip_B and Clip_V: what they do to entropy, reward and diversity, and from which size on anything.

    python simulations/hyperparameter_sweep.py --quick
    python simulations/hyperparameter_sweep.py --processes 2

Three parts: a bank of forking policies trained under each threshold; the real GRPO loop under a few of them; and single
batches of growing size, in which the tokens that each threshold drops are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpo_runs
import sweep
from bank_runs import LEFT_OUT, BankRun, simulate

from entropy_theory.program import run_script

OFFICIAL = ("clip-b(mu=2.5)", "clip-v(mu=8.5)")
REAL_RULES = (
    "none",
    "clip-b(mu=0.5)",
    "clip-b(mu=1)",
    "clip-v(mu=1, max_fraction=None)",
    "clip-v(mu=2, max_fraction=None)",
)


@dataclass(frozen=True)
class ThresholdConfig(sweep.SweepOptions):
    """Sweep the thresholds.

    Attributes:
        clip_b: Thresholds μ of Clip_B.
        clip_v: Thresholds μ of Clip_V, without its cap.
        seeds: Seeds of the banks and of the single batches.
        policies: Policies in a bank.
        vocab_size: Tokens per policy.
        steps: Sampled batches.
        step_size: Step of the logits.
        batches: Sizes of the single batches, as vocabulary × tokens.
        real_rules: Rules in the real loop, besides the official thresholds, which the first seed alone tries.
        real_seeds: Seeds of the real loop.
        real_steps: Its optimizer steps.
        tiny: Real loop with the decoder that is warmed up in a second.
    """

    clip_b: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    clip_v: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 6.0, 8.5)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 500
    vocab_size: int = 100
    steps: int = 200
    step_size: float = 0.5
    batches: tuple[tuple[int, int], ...] = (
        (100, 1_024),
        (100, 10_240),
        (100, 102_400),
        (1_000, 1_024),
        (1_000, 10_240),
    )
    real_rules: tuple[str, ...] = REAL_RULES
    real_seeds: tuple[int, ...] = (0, 1)
    real_steps: int = 200
    tiny: bool = False


QUICK: dict[str, Any] = {
    "clip_b": (0.5, 1.0, 2.5),
    "clip_v": (1.0, 8.5),
    "seeds": (0, 1),
    "policies": 100,
    "vocab_size": 50,
    "steps": 40,
    "batches": ((50, 1_024), (50, 10_240)),
    "real_rules": ("none", "clip-b(mu=1)"),
    "real_seeds": (0,),
    "real_steps": 5,
    "tiny": True,
}


@dataclass(frozen=True)
class BatchDrops:
    """Which tokens with A < 0 each threshold drops from one batch of an untrained bank of forking policies."""

    vocab_size: int
    tokens: int
    clip_b: tuple[float, ...]
    clip_v: tuple[float, ...]
    seed: int


def count_drops(task: BatchDrops) -> dict[str, Any]:
    """Sample, ask the rules, count."""
    import torch

    from entropy_theory.control import TokenBatch, rule
    from entropy_theory.dynamics import bank, grpo, starts
    from entropy_theory.dynamics.draws import Draw, generator

    group = 16
    policies, size = task.tokens // group, task.vocab_size
    uniforms = torch.rand(policies, group, generator=generator(task.seed, Draw.TOKENS, 0), dtype=torch.float64)
    scores, entropy, baseline, rewards = [], [], [], []
    rows = 64 * max(1, (1 << 15) // (64 * size))  # blocks that fit the cache
    for first in range(0, policies, rows):
        count = min(rows, policies - first)
        policy = bank.policy_statistics(starts.forking_logits(count, size, task.seed, first))
        tokens = bank.sample_tokens(policy.probs, uniforms[first : first + count])
        right = starts.correct_tokens(count, size, 0.1, task.seed, first)
        scores.append(policy.at(tokens))
        rewards.append(right.gather(-1, tokens).double())
        entropy.append(policy.entropy)
        baseline.append(policy.baseline)
    joined = bank.TokenScores.cat(scores)
    shape = joined.log_probs.shape
    batch = TokenBatch(
        log_probs=joined.log_probs,
        entropy=torch.cat(entropy).unsqueeze(-1).expand(shape),
        advantages=grpo.group_advantages(torch.cat(rewards), "std"),
        completion_mask=torch.ones(shape, dtype=torch.bool),
        baseline=torch.cat(baseline).unsqueeze(-1).expand(shape),
        discriminant=joined.discriminant,
        centered_discriminant=joined.centered_discriminant,
    )
    rules = [f"clip-b(mu={mu:g})" for mu in task.clip_b]
    rules += [f"clip-v(mu={mu:g}, max_fraction=None)" for mu in task.clip_v]
    negative = int((batch.advantages < 0).sum())
    metrics = {spec: rule(spec).apply(batch).metrics for spec in dict.fromkeys((*rules, *OFFICIAL))}
    return {
        # Clip_V also masks tokens with A = 0, which have no gradient to lose.
        "dropped": {spec: round(measured["dropped_share_negative"] * negative) for spec, measured in metrics.items()},
        "negative": negative,
        "scores": {
            spec: sweep.rounded({name: metrics[spec][f"score_{name}"] for name in ("mean", "std")}) for spec in OFFICIAL
        },
    }


def tasks(config: ThresholdConfig) -> list[Any]:
    """Single batches, bank runs, real runs."""
    rules = ["none", *(f"clip-b(mu={mu:g})" for mu in config.clip_b)]
    rules += [*(f"clip-v(mu={mu:g}, max_fraction=None)" for mu in config.clip_v), "clip-v(mu=8.5)"]
    small = {"prompts": 4, "generations": 4, "samples": 8} if config.tiny else {}
    return [
        *(
            BatchDrops(*size, config.clip_b, config.clip_v, seed)
            for size in config.batches
            for seed in config.seeds[:3]
        ),
        *(
            BankRun(rule, seed, config.policies, config.vocab_size, config.steps, config.step_size, iterations=1)
            for seed in config.seeds
            for rule in rules
        ),
        *(
            grpo_runs.GrpoRun(rule, seed, config.real_steps, tiny=config.tiny, **small)
            for seed in config.real_seeds
            for rule in (*config.real_rules, *(OFFICIAL if seed == config.real_seeds[0] else ()))
        ),
    ]


def work(task: Any) -> dict[str, Any]:
    """Do a task of any kind."""
    if isinstance(task, BatchDrops):
        return count_drops(task)
    return simulate(task) if isinstance(task, BankRun) else grpo_runs.train(task)


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Final numbers by rule; tokens dropped by batch size and rule, means over seeds."""
    drops: dict[str, dict[str, float]] = {}
    for kind in {(r["task"]["vocab_size"], r["task"]["tokens"]): None for r in results if "tokens" in r["task"]}:
        measured = [
            r["result"]["dropped"]
            for r in results
            if "tokens" in r["task"] and (r["task"]["vocab_size"], r["task"]["tokens"]) == kind
        ]
        drops[f"V={kind[0]}, n={kind[1]}"] = {
            spec: sum(entry[spec] for entry in measured) / len(measured) for spec in measured[0]
        }
    return {"drops": drops, **grpo_runs.final_intervals(results)}


def main(config: ThresholdConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("hyperparameter_sweep", config, tasks(config), work, summarise, LEFT_OUT)
    if record is not None:
        grpo_runs.print_finals(record["summary"])
        print("\ntokens with A < 0 dropped from one batch, means over seeds")
        for size, row in record["summary"]["drops"].items():
            print(f"{size:20}" + "  ".join(f"{spec} {count:g}" for spec, count in row.items()))
    return record


if __name__ == "__main__":
    run_script(main, ThresholdConfig)
