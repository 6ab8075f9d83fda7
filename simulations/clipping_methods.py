"""All entropy-control rules side by side: on a bank of forking policies, and in the real GRPO loop of TRL.

    python simulations/clipping_methods.py --quick
    python simulations/clipping_methods.py --processes 2

Bank: the same policies, right answers and uniforms for every rule of a seed; two updates per batch, so that ratio-based
rules have something to cut. Rules with thresholds drop the same share, `drop_fraction`, where they can.
Real loop: the small decoder on the sum task, trained by TRL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpo_runs
import sweep
from bank_runs import LEFT_OUT, BankRun, simulate

from entropy_theory.program import run_script

BANK_RULES = (
    "none",
    "clip-b(drop_fraction=0.02)",
    "clip-v(drop_fraction=0.02)",
    "random-mask(match='clip-b(drop_fraction=0.02)')",
    "high-entropy",
    "clip-cov(fraction=0.02, lower=0.2)",
    "kl-cov(fraction=0.02)",
    "ppo-clip",
    "clip-higher",
    "clip-low",
    "ce-gppo",
    "cispo",
    "gspo",
    "gmpo",
    "sapo",
    "dcpo",
    "bapo",
    "entropy-ratio",
    "steer",
    "stare(target=None)",
    "advantage-reweighting",
    "entropy-advantage",
    "entropy-flow",
    "entropy-bonus(coefficient=0.02)",
    "entropy-budget",
)
REAL_RULES = (
    "none",
    "clip-b(mu=1)",
    "clip-v(mu=2, max_fraction=None)",
    "random-mask(match='clip-b(mu=1)')",
    "high-entropy",
    "stare(up=2, up_max=2, target=None)",
)


@dataclass(frozen=True)
class ClippingConfig(sweep.SweepOptions):
    """Compare all rules.

    Attributes:
        seeds: Seeds of the banks.
        policies: Policies in a bank.
        vocab_size: Tokens per policy.
        steps: Sampled batches.
        step_size: Step of the logits.
        bank_rules: Rules on the bank.
        real_rules: Rules in the real loop.
        real_seeds: Seeds of the real loop.
        real_steps: Its optimizer steps.
        live_rules: Ratio-based rules in the real loop, with two updates per batch.
        live_steps: Their optimizer steps.
        tiny: Real loop with the decoder that is warmed up in a second.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 500
    vocab_size: int = 100
    steps: int = 200
    step_size: float = 0.5
    bank_rules: tuple[str, ...] = BANK_RULES
    real_rules: tuple[str, ...] = REAL_RULES
    real_seeds: tuple[int, ...] = (0, 1, 2)
    real_steps: int = 200
    live_rules: tuple[str, ...] = ("ppo-clip", "clip-higher")
    live_steps: int = 60
    tiny: bool = False


QUICK: dict[str, Any] = {
    "seeds": (0, 1),
    "policies": 64,
    "vocab_size": 50,
    "steps": 25,
    "real_rules": ("none", "clip-b(mu=1)"),
    "real_seeds": (0,),
    "real_steps": 5,
    "live_rules": ("clip-higher",),
    "live_steps": 4,
    "tiny": True,
}


def tasks(config: ClippingConfig) -> list[Any]:
    """Bank runs first, then real ones, seed by seed."""
    bank = [
        BankRun(rule, seed, config.policies, config.vocab_size, config.steps, config.step_size)
        for seed in config.seeds
        for rule in config.bank_rules
    ]
    return bank + real_tasks(config)


def real_tasks(config: ClippingConfig) -> list[grpo_runs.GrpoRun]:
    """The warmed-up decoder untouched, and every rule from every seed; ratio-based rules take two updates."""
    small = {"prompts": 4, "generations": 4, "samples": 8} if config.tiny else {}
    runs = [grpo_runs.GrpoRun("none", config.real_seeds[0], 0, tiny=config.tiny, **small)]
    runs += [
        grpo_runs.GrpoRun(rule, seed, config.real_steps, tiny=config.tiny, **small)
        for seed in config.real_seeds
        for rule in config.real_rules
    ]
    return runs + [
        grpo_runs.GrpoRun(rule, seed, config.live_steps, num_iterations=2, tiny=config.tiny, **small)
        for seed in config.real_seeds
        for rule in config.live_rules
    ]


def work(task: Any) -> dict[str, Any]:
    """Do a task of either kind."""
    return simulate(task) if isinstance(task, BankRun) else grpo_runs.train(task)


def main(config: ClippingConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("clipping_methods", config, tasks(config), work, grpo_runs.final_intervals, LEFT_OUT)
    if record is not None:
        grpo_runs.print_finals(record["summary"])
    return record


if __name__ == "__main__":
    run_script(main, ClippingConfig)
