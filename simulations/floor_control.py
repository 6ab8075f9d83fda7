"""The control loop of entropy-floor: gain, step size, size of the batch.

    python simulations/floor_control.py --processes 2    # most of an hour on two cores; resumes
    python simulations/floor_control.py --task 0/4       # a share of the tasks
    python simulations/floor_control.py --quick          # the same code, a few updates

Protocol, written before the results.

*Decoder*: the sum task of `control_contest.py` under entropy-floor at .65 nats, from 1.0. (a) Gains 0, .01, .03, .1, .3
and 1, seeds 0 to 2. (b) Learning rates 2e-4 and 1.8e-3 beside 6e-4, and 2 prompts beside 16 of 16 completions, each
with the gains 0, .03 and .3. (c), two further options, was run with an earlier version of the rule and is kept in
`results/floor_control_options.json`.
*Bank*: forking policies (200 of 100 tokens, one update per batch), floor at three quarters of the starting entropy, the
same gains with the logits' step .1, .5 and 2.

Measured from the first batch whose mean entropy H is below the floor: mean and standard deviation of H − floor, the
lowest H, the shortfall (mean of max(0, floor − H)), reward over the last ten updates, dropped share. The gain asks for
gain · (floor − H) nats per unit step; what a trainer makes of it depends on its step, so the gain that holds the floor
may too. A default needs no tuning if one gain keeps the shortfall under a tenth of the floor in all of (a) and (b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import contest_runs
import numpy as np
import sweep
from contest_runs import ContestRun
from grpo_runs import thinned

from entropy_theory.program import run_script

FLOOR, RATE, FAST, SLOW = 0.65, 6e-4, 1.8e-3, 2e-4
FEW = 2  # prompts of a small batch


@dataclass(frozen=True)
class FloorConfig(sweep.SweepOptions):
    """Study the control loop under the protocol of this script.

    Attributes:
        gains: Gains of (a) and of the bank.
        some: Gains of (b).
        seeds: Seeds of (a) and of the bank; (b) takes the first two of them.
        steps: Updates of the decoder.
        bank_steps: Batches of the bank.
        step_sizes: Steps of the bank's logits.
        policies: Policies in a bank.
        tiny: Start from a decoder that is warmed up in seconds.
    """

    gains: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    some: tuple[float, ...] = (0.0, 0.03, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 320
    bank_steps: int = 400
    step_sizes: tuple[float, ...] = (0.1, 0.5, 2.0)
    policies: int = 200
    tiny: bool = False


QUICK: dict[str, Any] = {
    "gains": (0.0, 0.3),
    "some": (0.3,),
    "seeds": (0,),
    "steps": 3,
    "bank_steps": 100,
    "step_sizes": (0.5,),
    "policies": 100,
    "tiny": True,
}


@dataclass(frozen=True)
class BankUnderFloor:
    """A bank of forking policies under entropy-floor at three quarters of its starting entropy."""

    gain: float
    step_size: float
    seed: int
    policies: int
    steps: int
    vocab_size: int = 100


def simulate(run: BankUnderFloor) -> dict[str, Any]:
    """Simulate, and keep entropy and reward of every batch."""
    from entropy_theory.dynamics import Simulation, SimulationConfig, bank, starts

    start = bank.policy_statistics(starts.forking_logits(run.policies, run.vocab_size, run.seed)).entropy.mean()
    floor = round(0.75 * float(start), 4)
    simulation = Simulation(
        SimulationConfig(
            policies=run.policies,
            vocab_size=run.vocab_size,
            steps=run.steps,
            step_size=run.step_size,
            rule=f"entropy-floor(floor={floor}, gain={run.gain})",
            initialisation="forking",
            pairs=0,
            seed=run.seed,
        )
    )
    for _ in range(run.steps):
        simulation.step()
    columns = {"entropy": "entropy_before", "reward": "reward", "dropped_share": "dropped_share"}
    return loop_measures({name: simulation.columns[column] for name, column in columns.items()}, floor)


@dataclass(frozen=True)
class FloorRun(ContestRun):
    """A run of the decoder, of which the loop is measured."""


def train(run: FloorRun) -> dict[str, Any]:
    """Train the decoder, and measure the loop on every update."""
    trained = contest_runs.train(run, smoothed=1)
    return loop_measures(trained["curves"], FLOOR) | {"held_out": trained["held_out"]}


def loop_measures(curves: dict[str, Any], floor: float) -> dict[str, Any]:
    """How well H keeps to the floor once it has been below; numbers relative to the floor are None if it never was."""
    entropy = np.array(curves["entropy"], dtype=float)
    below = np.flatnonzero(entropy < floor)
    measured: dict[str, Any] = {
        "floor": floor,
        "first_below": int(below[0]) if below.size else None,
        "reward": float(np.mean(curves["reward"][-10:])),
        "final_entropy": float(np.mean(entropy[-10:])),
        "dropped_share": float(np.mean(curves["dropped_share"])),
        "curve": thinned(entropy.tolist()),
    }
    after = entropy[below[0] :] if below.size else np.array([np.nan])
    numbers = {
        "offset": after.mean() - floor,
        "deviation": after.std(),
        "lowest": after.min(),
        "shortfall": np.maximum(0.0, floor - after).mean(),
    }
    return sweep.rounded(measured | {k: float(v) if below.size else None for k, v in numbers.items()}, 4)


def tasks(config: FloorConfig) -> list[Any]:
    """The runs: (a) a seed after another, (b), the bank."""

    def run(gain: float, seed: int, rate: float = RATE, prompts: int = 16) -> FloorRun:
        rule = f"entropy-floor(floor={FLOOR}, gain={gain:g})"
        return FloorRun("sum", rule, seed, config.steps, tiny=config.tiny, prompts=prompts, learning_rate=rate)

    two = config.seeds[:2]
    return [
        *(run(gain, seed) for seed in config.seeds for gain in config.gains),
        *(run(gain, seed, rate) for seed in two for rate in (SLOW, FAST) for gain in config.some),
        *(run(gain, seed, prompts=FEW) for seed in two for gain in config.some),
        *(
            BankUnderFloor(gain, step, seed, config.policies, config.bank_steps)
            for step in config.step_sizes
            for gain in config.gains
            for seed in config.seeds
        ),
    ]


def work(task: Any) -> dict[str, Any]:
    """Do a task of either kind."""
    return simulate(task) if isinstance(task, BankUnderFloor) else train(task)


NAMES = ("first_below", "offset", "deviation", "lowest", "shortfall", "final_entropy", "reward", "dropped_share")


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % t-intervals for each setting; a run that was never below its floor counts apart."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in results:
        groups.setdefault(setting_of(entry["task"]), []).append(entry["result"])
    summary = {}
    for setting, entries in groups.items():
        row: dict[str, Any] = {"never_below": sum(entry["first_below"] is None for entry in entries)}
        for name in NAMES:
            values = [float(entry[name]) for entry in entries if entry[name] is not None]
            row |= {name: sweep.rounded(sweep.interval(values), 4)} if values else {}
        row["shortfall_of_floor"] = max((e["shortfall"] / e["floor"] for e in entries if e["shortfall"]), default=0.0)
        summary[setting] = row
    return {"settings": summary}


def setting_of(task: dict[str, Any]) -> str:
    """A task without its seed, in words."""
    if "gain" in task:
        return f"bank, step {task['step_size']:g}, gain {task['gain']:g}"
    few = f", {task['prompts']} prompts" if task["prompts"] != 16 else ""
    return f"decoder, rate {task['learning_rate']:g}{few}, {task['rule']}"


def show(summary: dict[str, Any]) -> None:
    """Print a line for each setting."""
    print("\nfrom the first batch below the floor: means over seeds ± 95 % t-intervals")
    print(f"{'setting':78}" + "".join(f"{name.replace('_', ' '):>17}" for name in NAMES))
    for setting, row in summary["settings"].items():
        print(f"{setting:78}" + "".join(f"{sweep.shown(row[name]) if name in row else '':>17}" for name in NAMES))


def main(config: FloorConfig) -> dict[str, Any] | None:
    """Run what is missing, record and print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("floor_control", config, tasks(config), work, summarise)
    if record is not None:
        show(record["summary"])
    return record


if __name__ == "__main__":
    run_script(main, FloorConfig)
