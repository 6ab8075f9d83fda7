"""Do the lens's predictions come true? Signs and ranks over rules, on a bank of forking policies.

    python simulations/lens_against_realised.py

For each seed a bank is trained without control for some steps; then every rule makes the same update from the same
policies and the same tokens (the second one on its batch, so that ratios differ from 1), and the change of mean entropy
that the lens predicts is compared with the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sweep
import torch

from entropy_theory.program import run_script

RULES = (
    "none",
    "clip-b(drop_fraction=0.02)",
    "clip-v(drop_fraction=0.02)",
    "clip-v(drop_fraction=0.02, side='upper', advantages='positive')",
    "ppo-clip",
    "clip-higher",
    "high-entropy",
    "clip-cov(fraction=0.02, lower=0.2)",
    "kl-cov(fraction=0.02)",
    "steer",
    "stare(target=None, variant='C2', up=1.5, down=0.5)",
    "entropy-flow",
    "entropy-bonus(coefficient=0.05)",
    "ce-gppo",
    "advantage-reweighting",
    "cispo",
    "entropy-advantage",
    "random-mask(fraction=0.2)",
    "entropy-budget",
    "entropy-budget(floor=0.005, maximum=2)",
)


@dataclass(frozen=True)
class LensCheckConfig:
    """Compare the predictions of the lens with realised changes of entropy.

    Attributes:
        rules: The rules.
        seeds: The seeds of the banks.
        policies: Policies in a bank.
        vocab_size: Tokens per policy.
        group_size: Samples per policy.
        correct_share: Share of the vocabulary that is right.
        warmup: Steps without control before the comparison.
        step_size: Step of the logits.
        quick: Two seeds, small banks.
        out: The record.
    """

    rules: tuple[str, ...] = RULES
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 2000
    vocab_size: int = 100
    group_size: int = 16
    correct_share: float = 0.1
    warmup: int = 10
    step_size: float = 0.5
    quick: bool = False
    out: Path = Path("simulations/results/lens_against_realised.json")


def compare(config: LensCheckConfig, seed: int) -> list[dict[str, Any]]:
    """All rules on one bank: predicted and realised change of the mean entropy."""
    from entropy_theory.control import TokenBatch, lens, rule
    from entropy_theory.dynamics import Simulation, SimulationConfig, bank, grpo

    policies, vocab = (200, 50) if config.quick else (config.policies, config.vocab_size)
    simulation = Simulation(
        SimulationConfig(
            policies=policies,
            vocab_size=vocab,
            steps=config.warmup + 1,
            group_size=config.group_size,
            step_size=config.step_size,
            correct_share=config.correct_share,
            initialisation="forking",
            seed=seed,
        )
    )
    for _ in range(config.warmup):
        simulation.step()
    uniforms = torch.rand(
        policies, config.group_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    old = bank.policy_statistics(simulation.logits)
    tokens = bank.sample_tokens(old.probs, uniforms)
    advantages = grpo.group_advantages(simulation.correct.gather(-1, tokens).double(), "std")
    scale = config.step_size / config.group_size
    logits = simulation.logits + grpo.move_of_logits(old, tokens, advantages, scale)
    now = bank.policy_statistics(logits)
    scores, shape = now.at(tokens), tokens.shape

    def wide(values: torch.Tensor) -> torch.Tensor:
        return values.unsqueeze(-1).expand(shape)

    batch = TokenBatch(
        log_probs=scores.log_probs,
        entropy=wide(now.entropy),
        advantages=advantages,
        completion_mask=torch.ones(shape, dtype=torch.bool),
        old_log_probs=old.at(tokens).log_probs,
        old_entropy=wide(old.entropy),
        baseline=wide(now.baseline),
        discriminant=scores.discriminant,
        centered_discriminant=scores.centered_discriminant,
        sum_squared_discriminant=wide(now.sum_squared_discriminant()),
        group_ids=torch.arange(shape[0]),
    )
    table = lens(batch, config.rules, step_size=config.step_size, resamples=2, seed=seed)
    predicted = {row.rule: row.total.value for row in table.rows}
    measured = []
    for spec in config.rules:
        entry = rule(spec)
        out = entry.apply(batch, generator=torch.Generator().manual_seed(seed))
        scale = grpo.scale_of(config.step_size, int(out.denominator), policies)
        bonus = None if out.entropy_coefficients is None else out.entropy_coefficients.sum(dim=-1)
        move = grpo.move_of_logits(now, tokens, out.coefficients, scale, bonus)
        realised = float(bank.entropy_change(now, move).mean())
        measured.append({"seed": seed, "rule": str(entry), "predicted": predicted[str(entry)], "realised": realised})
    return measured


def summarise(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Correlations per seed, signs, and the misses."""
    from scipy.stats import spearmanr

    pearson, ranks = [], []
    for seed in dict.fromkeys(pair["seed"] for pair in pairs):
        x = np.array([pair["predicted"] for pair in pairs if pair["seed"] == seed])
        y = np.array([pair["realised"] for pair in pairs if pair["seed"] == seed])
        pearson.append(float(np.corrcoef(x, y)[0, 1]))
        ranks.append(float(spearmanr(x, y).statistic))
    misses = [pair for pair in pairs if pair["predicted"] * pair["realised"] < 0]
    falls = [pair for pair in pairs if pair["predicted"] < 0]
    summary: dict[str, Any] = {
        "pairs": len(pairs),
        "sign_agreement": 1 - len(misses) / len(pairs),
        "misses": misses,
        "predicted_falls": len(falls),
        "predicted_falls_that_rose": sum(pair["realised"] > 0 for pair in falls),
    }
    for name, values in (("pearson", pearson), ("spearman", ranks)):
        summary[name] = sweep.interval(values)
    return summary


def main(config: LensCheckConfig) -> dict[str, Any]:
    """Compare, print and record."""
    from entropy_theory import records

    pairs = []
    seeds = config.seeds[:2] if config.quick else config.seeds
    for seed in seeds:
        pairs += compare(config, seed)
        print(f"seed {seed}: {len(config.rules)} rules done", flush=True)
    summary = summarise(pairs)
    records.write_json(config.out, {"configuration": records.to_data(config), "summary": summary, "pairs": pairs})
    print(f"{'rule':64} {'predicted':>11} {'realised':>11}   means over {len(seeds)} seeds, nats")
    for spec in dict.fromkeys(pair["rule"] for pair in pairs):
        mine = [pair for pair in pairs if pair["rule"] == spec]
        means = [sum(pair[key] for pair in mine) / len(mine) for key in ("predicted", "realised")]
        print(f"{spec:64} {means[0]:+11.3e} {means[1]:+11.3e}")
    for name in ("pearson", "spearman"):
        print(f"{name} over rules: {sweep.shown(summary[name], 4)}")
    print(f"signs agree on {summary['sign_agreement']:.1%} of {summary['pairs']}; misses:")
    for miss in summary["misses"]:
        print(f"  seed {miss['seed']} {miss['rule']}: {miss['predicted']:+.2e} predicted, {miss['realised']:+.2e}")
    print(f"written: {config.out}")
    return summary


if __name__ == "__main__":
    run_script(main, LensCheckConfig)
