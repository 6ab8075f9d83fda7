"""The entropy budget against Clip_B, Clip_V, Clip-Cov, the entropy bonus and no control, at equal reward.

    python simulations/control_comparison.py            # the recorded run
    python simulations/control_comparison.py --quick    # under a minute

GRPO on a bank of forking policies, the same policies, right answers and uniforms of the samples for every arm of a
seed. Arms differ in how fast they earn reward, so entropy is compared where the *reward* curves (means over the last
steps) first reach the same level: the largest that every arm of a seed reaches, and half of the way to it. Runs are
kept one by one and not repeated; results and figure are written at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sweep

from entropy_theory.program import run_script

ARMS = (
    "none",
    "clip-b(drop_fraction=0.02)",
    "clip-v(drop_fraction=0.02)",
    "clip-cov(fraction=0.02, lower=0.2, ratio_clip=False)",
    "entropy-bonus(coefficient=0.02)",
    "entropy-bonus(coefficient=0.1)",
    "random-mask(match='clip-v(drop_fraction=0.02)')",
    "entropy-flow",
    "entropy-budget",
    "entropy-budget(target=0.3, gain=0.02)",
    "entropy-budget(distance='relative')",
)


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare control rules on a bank of forking policies over several seeds.

    Attributes:
        arms: The rules.
        seeds: Seeds of the banks.
        policies: Policies in a bank.
        vocab_size: Tokens per policy.
        steps: GRPO steps.
        group_size: Samples per policy and step.
        step_size: Step of the logits.
        correct_share: Share of the vocabulary that is right.
        window: Steps over which reward and entropy are averaged.
        quick: Small banks, few steps, two seeds.
        runs: Folder of the single runs, which are not repeated.
        out: The record; the figure is beside it.
    """

    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 500
    vocab_size: int = 100
    steps: int = 400
    group_size: int = 16
    step_size: float = 0.5
    correct_share: float = 0.1
    window: int = 10
    quick: bool = False
    runs: Path = Path("runs/control-comparison")
    out: Path = Path("simulations/results/control_comparison.json")


def run_arm(config: ComparisonConfig, arm: str, seed: int) -> dict[str, list[float]]:
    """Simulate one arm, or read it back: averaged reward and entropy against the step."""
    from entropy_theory import records
    from entropy_theory.dynamics import SimulationConfig, run

    settings: dict[str, Any] = {
        "policies": 100 if config.quick else config.policies,
        "vocab_size": 50 if config.quick else config.vocab_size,
        "steps": 60 if config.quick else config.steps,
        "group_size": config.group_size,
        "step_size": config.step_size,
        "correct_share": config.correct_share,
        "initialisation": "forking",
        "rule": arm,
        "seed": seed,
        "pairs": 0,
    }
    name = records.configuration_hash(settings)
    result = run(SimulationConfig(**settings, out=config.runs / name))
    kernel = np.ones(config.window) / config.window

    def smooth(column: str) -> list[float]:
        return [float(x) for x in np.convolve(result.steps[column], kernel, mode="valid")]

    return {"reward": smooth("reward"), "entropy": smooth("entropy_before")}


def at_reward(curves: dict[str, list[float]], level: float) -> tuple[float, int] | None:
    """Entropy where the reward first reaches a level, and the step; None if it never does."""
    reached = np.flatnonzero(np.array(curves["reward"]) >= level)
    return (curves["entropy"][reached[0]], int(reached[0])) if reached.size else None


def summarise(curves: dict[str, dict[int, dict[str, list[float]]]]) -> dict[str, Any]:
    """Entropy at equal reward, and the ends of the curves, with 95 % t-intervals over seeds."""
    seeds = list(next(iter(curves.values())))
    # per seed, since seeds differ in how much reward is there to be had
    tops = {seed: min(max(arm[seed]["reward"]) for arm in curves.values()) for seed in seeds}
    starts = {seed: curves["none"][seed]["reward"][0] for seed in seeds}
    levels = {"half": {s: (starts[s] + tops[s]) / 2 for s in seeds}, "full": tops}
    summary: dict[str, Any] = {"levels": levels, "arms": {}}
    for arm, by_seed in curves.items():
        row: dict[str, Any] = {
            "final_reward": sweep.interval([by_seed[s]["reward"][-1] for s in seeds]),
            "final_entropy": sweep.interval([by_seed[s]["entropy"][-1] for s in seeds]),
        }
        for name, level in levels.items():
            measured = [at_reward(by_seed[s], level[s]) for s in seeds]
            base = [at_reward(curves["none"][s], level[s]) for s in seeds]
            if all(measured) and all(base):
                row[f"entropy_at_{name}"] = sweep.interval([f[0] for f in measured if f])
                row[f"steps_to_{name}"] = sweep.interval([float(f[1]) for f in measured if f])
                row[f"entropy_gained_at_{name}"] = sweep.interval(
                    [f[0] - b[0] for f, b in zip(measured, base, strict=True) if f and b]
                )
        summary["arms"][arm] = row
    return summary


def draw(curves: dict[str, dict[int, dict[str, list[float]]]], path: Path) -> None:
    """Reward, entropy, and entropy against reward: means over seeds, with bands of the t-interval."""
    from entropy_theory.intervals import t_interval
    from entropy_theory.report import figures

    with figures.style():
        figure, axes = figures.new_figure(columns=3, height=3.6)
        for index, (arm, by_seed) in enumerate(curves.items()):
            colour, dashes = figures.COLOURS[index % 7], "-" if index < 7 else "--"
            means = {}
            for axis, name in zip(axes, ("reward", "entropy"), strict=False):
                stacked = np.array([by_seed[s][name] for s in by_seed])
                means[name] = stacked.mean(axis=0)
                steps = np.arange(stacked.shape[1])
                axis.plot(steps, means[name], color=colour, linestyle=dashes, linewidth=1.1, label=arm)
                if len(by_seed) > 1:
                    half = np.array([t_interval([float(x) for x in column]).half_width for column in stacked.T])
                    axis.fill_between(
                        steps, means[name] - half, means[name] + half, color=colour, alpha=0.1, linewidth=0
                    )
                axis.set(xlabel="step", ylabel=name if name == "reward" else "mean entropy (nats)")
            axes[2].plot(means["reward"], means["entropy"], color=colour, linestyle=dashes, linewidth=1.1)
        axes[2].set(xlabel="reward", ylabel="mean entropy (nats)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=7)
        figures.save(figure, path)


def main(config: ComparisonConfig) -> dict[str, Any]:
    """Run what is missing, compare, record and draw."""
    from entropy_theory import records
    from entropy_theory.control import rule

    seeds = config.seeds[:2] if config.quick else config.seeds
    arms = [str(rule(arm)) for arm in config.arms]
    curves: dict[str, dict[int, dict[str, list[float]]]] = {arm: {} for arm in arms}
    total = len(arms) * len(seeds)
    for number, (arm, seed) in enumerate(((a, s) for s in seeds for a in arms), start=1):
        curves[arm][seed] = run_arm(config, arm, seed)
        print(f"{number}/{total} seed {seed}: {arm}", flush=True)
    summary = summarise(curves)
    thin = max(1, len(next(iter(curves["none"].values()))["reward"]) // 40)
    kept = {
        a: {s: {k: [round(x, 5) for x in v[::thin]] for k, v in c.items()} for s, c in b.items()}
        for a, b in curves.items()
    }
    content = {"configuration": config, "environment": records.environment(), "summary": summary, "curves": kept}
    records.write_json(config.out, content)
    draw(curves, config.out.with_suffix(".png"))

    columns = ("final_reward", "final_entropy", "entropy_gained_at_half", "entropy_gained_at_full", "steps_to_full")
    print(f"means over {len(seeds)} seeds with 95 % t-intervals; gained: over no control at equal reward, nats")
    print(f"{'arm':56}" + "".join(f"{name.replace('_', ' '):>26}" for name in columns))
    for arm, row in summary["arms"].items():
        print(f"{arm:56}" + "".join(f"{sweep.shown(row[name], 4) if name in row else 'never':>26}" for name in columns))
    print(f"written: {config.out}, {config.out.with_suffix('.png')}")
    return summary


if __name__ == "__main__":
    run_script(main, ComparisonConfig)
