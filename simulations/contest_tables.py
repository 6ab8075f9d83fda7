"""Measures of the contest's runs, their comparisons by seed, and the tables of `control_contest.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sweep

TESTED = ("reward", "distinct_right", "pass@8", "pass@16", "reward_at_entropy", "entropy_at_reward")
"""Measures that are compared; of pass@8 and pass@16 a task has one."""


def measures(entry: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a run, with levels of the uncontrolled run of its seed; None for a level that is not reached."""
    curves, reference = entry["result"]["curves"], base["result"]["curves"]
    entropy, reward = np.array(curves["entropy"]), np.array(curves["reward"])
    entropy_level = (reference["entropy"][0] + reference["entropy"][-1]) / 2
    reward_level = reference["reward"][0] + 0.9 * (reference["reward"][-1] - reference["reward"][0])
    updates = entry["task"]["steps"] / len(reward)  # to a point of the curves
    reached = reward >= reward_level
    high = entropy >= entropy_level
    final, held_out = entry["result"]["final"], entry["result"]["held_out"]
    return {
        "entropy": final["entropy"],
        "reward": final["reward"],
        "distinct_right": final["distinct_right"],
        "dropped_share": float(np.mean(curves.get("dropped_share", [0.0]))),
        **{f"held_out_{name}" if name == "distinct_right" else name: value for name, value in held_out.items()},
        "updates_to_reward": float(np.flatnonzero(reached)[0] + 1) * updates if reached.any() else None,
        "mean_reward": float(reward.mean()),
        "reward_at_entropy": float(reward[high].max()) if high.any() else None,
        "entropy_at_reward": float(entropy[reached].max()) if reached.any() else None,
        "collapsed": float(final["entropy"] < 0.25 * entropy[0]),
        "exploded": float(final["entropy"] > 1.25 * entropy[0]),
    }


def compare(tasks: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], ours: str) -> dict[str, Any]:
    """For each task: measures with intervals, comparisons with no control, and of our method with the others.

    Args:
        tasks: Runs by task and method.
        ours: How the name of our method begins; of several, the first.
    """
    summary: dict[str, Any] = {}
    for task, methods in tasks.items():
        plain = {entry["task"]["seed"]: entry for entry in methods["none"]}
        rows = {
            method: {
                entry["task"]["seed"]: measures(entry, plain[entry["task"]["seed"]])
                for entry in entries
                if entry["task"]["seed"] in plain
            }
            for method, entries in methods.items()
        }
        rows = {method: row for method, row in rows.items() if row}
        table = {method: _intervals(row) for method, row in rows.items()}
        own = next((method for method in rows if method.startswith(ours)), None)
        for name in TESTED:
            if name not in next(iter(table.values())):
                continue  # pass@16 of the decoder, pass@8 of the real model
            bases = {method: _base(methods[method][0]["task"], method) for method in rows}
            pairs = {m: _paired(row, rows[bases[m]], name) for m, row in rows.items() if bases[m] in rows}
            _add(
                table, f"{name}_over_base", {method: pair for method, pair in pairs.items() if method != bases[method]}
            )
            if own is not None:
                others = {method: _paired(rows[own], row, name) for method, row in rows.items() if method != own}
                _add(table, f"{name}_of_floor_over_it", others)
        summary[task] = {"methods": table, "front": pareto_front(table)}
    return summary


def _base(task: Mapping[str, Any], method: str) -> str:
    """The run without control that a method is compared with; that of two updates with that of one."""
    return "none, two updates" if task["num_iterations"] == 2 and method != "none, two updates" else "none"


def _intervals(row: Mapping[int, Mapping[str, float | None]]) -> dict[str, Any]:
    """Intervals over the seeds that have a number, and how many have none."""
    measured: dict[str, Any] = {}
    for name in next(iter(row.values())):
        values = [value for numbers in row.values() if (value := numbers[name]) is not None]
        never = len(row) - len(values)
        measured[name] = (sweep.rounded(sweep.interval(values)) if values else {}) | ({"never": never} if never else {})
    return measured


def _paired(
    row: Mapping[int, Mapping[str, float | None]], other: Mapping[int, Mapping[str, float | None]], name: str
) -> dict[str, Any] | None:
    """Difference by seed with its interval and the p of the t-test; None with fewer than two pairs."""
    from scipy.stats import ttest_1samp

    pairs = [(row[seed][name], other[seed][name]) for seed in row if seed in other]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if len(differences) < 2:
        return None
    p = 1.0 if len(set(differences)) == 1 else float(ttest_1samp(differences, 0.0).pvalue)
    return sweep.rounded(sweep.interval(differences)) | {"p": p}


def _add(table: dict[str, Any], column: str, paired: Mapping[str, dict[str, Any] | None]) -> None:
    """Put differences into the table, with p corrected over the methods."""
    known = {method: difference for method, difference in paired.items() if difference is not None}
    corrected = holm([difference["p"] for difference in known.values()])
    for (method, difference), p in zip(known.items(), corrected, strict=True):
        table[method][column] = difference | {"p": float(f"{difference['p']:.3g}"), "p_holm": float(f"{p:.3g}")}


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down procedure (Holm 1979).

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def pareto_front(table: Mapping[str, Any]) -> list[str]:
    """The methods that no other beats in both mean final entropy and mean final reward, the highest entropy first."""
    points = {m: (row["entropy"]["mean"], row["reward"]["mean"]) for m, row in table.items()}
    front = [
        method
        for method, (entropy, reward) in points.items()
        if not any(e >= entropy and r >= reward and (e, r) != (entropy, reward) for e, r in points.values())
    ]
    return sorted(front, key=lambda method: -points[method][0])


def show(summary: Mapping[str, Any], ours: str) -> None:
    """Print the measures, the comparisons and the front of each task."""
    for task, content in summary.items():
        known = next(iter(content["methods"].values()))
        columns = [
            *("entropy", "reward", "distinct_right", "pass@1", *(n for n in ("pass@8", "pass@16") if n in known)),
            *("updates_to_reward", "mean_reward", "reward_at_entropy", "entropy_at_reward", "dropped_share"),
        ]
        tested = [name for name in TESTED if name in known]
        width = max(20, *map(len, content["methods"]))
        print(f"\n{task}: means over seeds ± 95 % t-intervals")
        print(f"{'method':{width}}" + "".join(f"{name.replace('_', ' '):>19}" for name in columns))
        for method, row in content["methods"].items():
            print(f"{method:{width}}" + "".join(f"{_cell(row[name]):>19}" for name in columns))
        print("Pareto front of final entropy and reward: " + ", ".join(content["front"]))
        for words, suffix in (("over no control", "over_base"), (f"of {ours} over the method", "of_floor_over_it")):
            print(f"\n{task}: {words}, paired by seed; p corrected over the methods")
            print(f"{'method':{width}}" + "".join(f"{name.replace('_', ' '):>27}" for name in tested))
            for method, row in content["methods"].items():
                cells = [row.get(f"{name}_{suffix}") for name in tested]
                if any(cells):
                    shown = [f"{sweep.shown(c)} (p {c['p_holm']:.2g})" if c else "" for c in cells]
                    print(f"{method:{width}}" + "".join(f"{cell:>27}" for cell in shown))


def _cell(measured: Mapping[str, Any]) -> str:
    never = f" ({measured['never']} never)" if measured.get("never") else ""
    return (sweep.shown(measured, 2 if measured["mean"] > 5 else 3) if "mean" in measured else "") + never
