"""The paper's intervention, on softmax policies and in a real GRPO loop: four conditions, four signs of a trend.

    python simulations/four_conditions.py            # the recorded run, some minutes
    python simulations/four_conditions.py --quick    # under a minute
    python simulations/four_conditions.py --task 0/4 # a share of the tasks

Only tokens with S > 0, or only those with S < 0, are trained on, of samples with A > 0 or with A < 0. The theory
expects entropy to move with the sign of −A S. On the bank every sample of a run has the same advantage, as the theory
asks; the decoder gets its advantages from the sum task, and positions share their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sweep
from grpo_runs import GrpoRun, train

from entropy_theory.program import run_script

SIGNS = ("positive", "negative")
CONDITIONS = tuple((samples, discriminant) for samples in SIGNS for discriminant in SIGNS)


@dataclass(frozen=True)
class FourConditionsConfig(sweep.SweepOptions):
    """Compare the signs of entropy's trend with the theory's under the four conditions.

    Attributes:
        seeds: A bank and a GRPO run for each condition and seed.
        steps: GRPO steps of the decoder.
        prompts: Prompts in a generation batch.
        generations: Completions per prompt.
        policies: Policies of a bank.
        tabular_steps: Steps of a bank.
        tiny: Train a decoder that is warmed up in a second.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 60
    prompts: int = 16
    generations: int = 16
    policies: int = 500
    tabular_steps: int = 40
    tiny: bool = False


QUICK = {
    "seeds": (0, 1),
    "steps": 12,
    "prompts": 8,
    "generations": 8,
    "policies": 100,
    "tabular_steps": 10,
    "tiny": True,
}


@dataclass(frozen=True)
class TabularConditions:
    """The four conditions on one bank."""

    seed: int
    policies: int
    steps: int


def rule_of(samples: str, discriminant: str) -> str:
    """The rule of a condition, as it prints itself."""
    from entropy_theory.control import rule

    return str(rule("keep-sign", samples=samples, discriminant=discriminant))


def predicted_sign(samples: str, discriminant: str) -> int:
    """The sign of −A S."""
    return -1 if samples == discriminant else 1


def work(task: GrpoRun | TabularConditions) -> dict[str, Any]:
    """Do one task: entropy against the step."""
    if isinstance(task, GrpoRun):
        measured = train(task)
        return {"curves": {name: measured["curves"][name] for name in ("step", "entropy", "reward", "dropped_share")}}
    from entropy_theory.dynamics import interventions

    conditions = interventions(policies=task.policies, steps=task.steps, seeds=(task.seed,))
    signs = {"S>0": "positive", "S<0": "negative"}
    return {"curves": {f"{c.samples} {signs[c.keep]}": sweep.rounded(c.curve.tolist()) for c in conditions}}


def trend(steps: Any, entropy: Any) -> float:
    """The least-squares slope of entropy on the step, nats per step."""
    return float(np.polyfit(steps, entropy, 1)[0])


def condition(slopes: list[float], samples: str, discriminant: str) -> dict[str, Any]:
    """A condition's trend over seeds with its interval, and whether the sign is the predicted one."""
    measured, sign = sweep.interval(slopes), predicted_sign(samples, discriminant)
    agrees = int(np.sign(measured["mean"])) == sign
    width = measured["half_width"]
    return {
        "samples": samples,
        "discriminant": discriminant,
        "predicted_sign": sign,
        "trend": sweep.rounded(measured),
        "agrees": agrees,
        "apart_from_zero": width is not None and abs(measured["mean"]) > width,
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The trends of the four conditions, on banks and in the real loop."""
    banks = [entry["result"]["curves"] for entry in results if "policies" in entry["task"]]
    runs = [entry for entry in results if "rule" in entry["task"]]
    summary: dict[str, Any] = {"tabular": [], "real": []}
    for samples, discriminant in CONDITIONS:
        curves = [bank[f"{samples} {discriminant}"] for bank in banks]
        slopes = [trend(range(len(curve)), curve) for curve in curves]
        summary["tabular"].append(condition(slopes, samples, discriminant))
        mine = [entry["result"]["curves"] for entry in runs if entry["task"]["rule"] == rule_of(samples, discriminant)]
        real = condition([trend(c["step"], c["entropy"]) for c in mine], samples, discriminant)
        real["dropped_share"] = float(np.mean([np.mean(c["dropped_share"]) for c in mine]))
        summary["real"].append(real)
    return summary


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Entropy relative to the start, banks on the left, the decoder on the right."""
    from entropy_theory.report import figures

    with figures.style():
        figure, axes = figures.new_figure(columns=2, width=3.8)
        for index, (samples, discriminant) in enumerate(CONDITIONS):
            arrow = "falls" if predicted_sign(samples, discriminant) < 0 else "rises"
            label = f"A {'>' if samples == 'positive' else '<'} 0, S {'>' if discriminant == 'positive' else '<'} 0"
            look: Mapping[str, Any] = {"color": figures.COLOURS[1 + index], "linewidth": 1.1, "alpha": 0.8}
            label = f"{label}: predicted {arrow}"
            for entry in results:
                curves = entry["result"]["curves"]
                if "policies" in entry["task"]:
                    curve = np.array(curves[f"{samples} {discriminant}"])
                    axes[0].plot(curve - curve[0], label=label, **look)
                elif entry["task"]["rule"] == rule_of(samples, discriminant):
                    entropy = np.array(curves["entropy"])
                    axes[1].plot(curves["step"], entropy - entropy[0], label=label, **look)
        for axis, title in zip(axes, ("banks of softmax policies", "the decoder, GRPO in TRL"), strict=True):
            axis.axhline(0, color=figures.COLOURS[0], linewidth=0.8)
            axis.set(xlabel="step", ylabel="change of mean entropy (nats)")
            axis.set_title(title, fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(list(unique.values()), list(unique), loc="outside upper center", ncols=2)
        figures.save(figure, path)


def main(config: FourConditionsConfig) -> dict[str, Any] | None:
    """Run, record, draw and print."""
    config = sweep.with_quick_settings(config, QUICK)
    tasks: list[Any] = [TabularConditions(seed, config.policies, config.tabular_steps) for seed in config.seeds]
    size: dict[str, Any] = {"prompts": config.prompts, "generations": config.generations, "tiny": config.tiny}
    tasks += [
        GrpoRun(rule_of(*entry), seed, config.steps, samples=4, **size) for seed in config.seeds for entry in CONDITIONS
    ]
    record = sweep.run("four_conditions", config, tasks, work, summarise)
    if record is None:
        return None
    folder = config.out.parent if config.out else config.runs if config.quick else sweep.RESULTS
    draw(record["results"], folder / "four_conditions.png")
    for kind, title in (("tabular", "banks of softmax policies"), ("real", "the decoder, GRPO in TRL")):
        print(f"{title}: trend of entropy, 0.001 nats per step, 95 % t-interval over {len(config.seeds)} seeds")
        for row in record["summary"][kind]:
            values = {k: row["trend"][k] and 1000 * row["trend"][k] for k in ("mean", "half_width")}
            arrow = "falls" if row["predicted_sign"] < 0 else "rises"
            verdict = "as predicted" if row["agrees"] else "NOT as predicted"
            verdict += "" if row["apart_from_zero"] else ", not apart from zero"
            line = f"  A {row['samples']:8} S {row['discriminant']:8} predicted {arrow}: {sweep.shown(values):>18}"
            print(f"{line}  {verdict}")
    return record


if __name__ == "__main__":
    run_script(main, FourConditionsConfig)
