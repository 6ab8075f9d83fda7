"""What a step of the simulator costs, part by part, beside what no implementation can avoid.

    python benchmarks/simulator.py
    python benchmarks/simulator.py --policies 16 --vocab-size 151936 --steps 5 --dtype float32

Seconds are those of the processor, fastest of some repeats, on one thread. The floors: one exponential per logit, and
as many passes over the same numbers as the algorithm makes, each the plain product of two blocks that fit the cache,
which is what the algorithm would cost as separate operations if sums, maxima and searches were as cheap as products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

PASSES = 29
"""Passes over (B, V) in a recorded step of the theory's own optimizer, beside one exp and one expm1: 10 for the
policies' statistics, 1 to sample, 1 for the move and 1 to take it, 16 for the change of entropy and its orders."""


@dataclass(frozen=True)
class SimulatorBenchmarkConfig:
    """Time the simulator and its parts.

    Attributes:
        policies: Policies.
        vocab_size: Tokens of each.
        steps: Steps of a repeat.
        group_size: Samples per policy.
        rule: The rule.
        optimizer: The optimizer.
        dtype: What the logits are stored in.
        repeats: Repeats, of which the fastest counts.
        out: File for the numbers.
    """

    policies: int = 1000
    vocab_size: int = 100
    steps: int = 50
    group_size: int = 16
    rule: str = "none"
    optimizer: Literal["sgd", "natural", "adam"] = "sgd"
    dtype: Literal["float64", "float32"] = "float64"
    repeats: int = 5
    out: Path | None = None


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some repeats, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def each(work: Callable[..., object], *blocks: list[Any]) -> Callable[[], None]:
    """Do something for every block, and keep nothing: fresh memory would cost more than the sums."""

    def run() -> None:
        for block in zip(*blocks, strict=True):
            work(*block)

    return run


def main(config: SimulatorBenchmarkConfig) -> None:
    """Time, print, and record if asked."""
    from entropy_theory import records
    from entropy_theory.dynamics import SimulationConfig, bank, grpo, simulate
    from entropy_theory.dynamics.engine import Simulation

    torch.set_num_threads(1)
    shape = {"policies": config.policies, "vocab_size": config.vocab_size, "group_size": config.group_size}
    settings: Any = {**shape, "rule": config.rule, "optimizer": config.optimizer, "dtype": config.dtype}
    whole = SimulationConfig(steps=config.steps, **settings)

    def advance(chosen: SimulationConfig) -> Callable[[], object]:
        simulation = Simulation(chosen)

        def steps() -> None:
            for _ in range(config.steps):
                simulation.completed %= chosen.steps
                simulation.step()

        return steps

    simulate(SimulationConfig(steps=1, **settings))
    measured = {
        "a step, recorded": fastest(advance(whole), config.repeats) / config.steps,
        "a step, not recorded": fastest(
            advance(SimulationConfig(steps=10**6, record_every=10**6, **settings)), config.repeats
        )
        / config.steps,
    }
    simulation = Simulation(whole)
    blocks = [simulation.logits[rows] for rows in simulation._blocks]
    policies = [bank.policy_statistics(block) for block in blocks]
    uniforms = [torch.rand(len(block), config.group_size, dtype=torch.float64) for block in blocks]
    tokens = [bank.sample_tokens(p.probs, u) for p, u in zip(policies, uniforms, strict=True)]
    ones = [torch.ones_like(u) for u in uniforms]
    moves = [grpo.move_of_logits(p, k, g, 1e-3) for p, k, g in zip(policies, tokens, ones, strict=True)]
    all_tokens, scores = (
        torch.cat(tokens),
        bank.TokenScores.cat([p.at(k) for p, k in zip(policies, tokens, strict=True)]),
    )
    rewards = simulation.correct.gather(-1, all_tokens).double()
    entropy, baseline = (torch.cat([getattr(p, name) for p in policies]) for name in ("entropy", "baseline"))
    statistics = {"entropy": entropy, "baseline": baseline}
    if "sum_squared_discriminant" in simulation.rule.needs:
        statistics["sum_squared_discriminant"] = torch.cat([p.sum_squared_discriminant() for p in policies])
    samples = grpo.GroupSamples(all_tokens, rewards, grpo.group_advantages(rewards, "std"), scores.log_probs, entropy)
    wide = [block.double() for block in blocks]
    target = [torch.empty_like(block) for block in wide]

    def passes(z: torch.Tensor, move: torch.Tensor, out: torch.Tensor) -> None:
        torch.exp(z, out=out)
        torch.expm1(move, out=out)
        for _ in range(PASSES):
            torch.mul(z, move, out=out)

    def rule() -> object:
        return grpo.decide(simulation.rule, samples, scores, statistics, step_size=0.1, generator=torch.Generator())

    parts: dict[str, Callable[[], object]] = {
        "  statistics of the policies": each(bank.policy_statistics, blocks),
        "  sampling": each(lambda p, u: bank.sample_tokens(p.probs, u), policies, uniforms),
        "  scores of the tokens": each(lambda p, k: p.at(k), policies, tokens),
        "  the rule and its checks": rule,
        "  the move": each(lambda p, k, g: grpo.move_of_logits(p, k, g, 1e-3), policies, tokens, ones),
        "  change of entropy and its orders": each(bank.entropy_orders, policies, moves),
        "floor: one exp per logit": each(lambda z, t: torch.exp(z, out=t), wide, target),
        f"floor: exp, expm1 and {PASSES} passes": each(passes, wide, moves, target),
    }
    measured |= {name: fastest(work, config.repeats) for name, work in parts.items()}
    print(f"B = {config.policies:,}, V = {config.vocab_size:,}, G = {config.group_size}, {config.dtype}, {config.rule}")
    print(f"{'':36} {'µs per policy':>13} {'policy-steps/s':>15}")
    for name, seconds in measured.items():
        print(f"{name:36} {seconds / config.policies * 1e6:13.3f} {config.policies / seconds:15,.0f}")
    if config.out is not None:
        content = {"configuration": config, "environment": records.environment(), "seconds_per_step": measured}
        records.write_json(config.out, content)


if __name__ == "__main__":
    main(tyro.cli(SimulatorBenchmarkConfig))
