"""Measures of the contest's runs, their comparisons by seed, and the tables of `control_contest.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sweep

from entropy_theory.errors import invalid

TESTED = ("reward", "distinct_right", "pass@8", "pass@16", "reward_at_entropy", "entropy_at_reward")
"""Measures that are compared; of pass@8 and pass@16 a task has one."""


def measures(entry: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a run, with levels of the uncontrolled run of its seed.

    None stands for a level that the run never reaches. Without a level, since the uncontrolled run's entropy did not
    fall or its reward did not rise, there is no such measure.
    """
    curves, reference = entry["result"]["curves"], base["result"]["curves"]
    entropy, reward = np.array(curves["entropy"]), np.array(curves["reward"])
    updates = entry["task"]["steps"] / len(reward)  # to a point of the curves
    final, held_out = entry["result"]["final"], entry["result"]["held_out"]
    measured: dict[str, float | None] = {
        "entropy": final["entropy"],
        "reward": final["reward"],
        "distinct_right": final["distinct_right"],
        "dropped_share": final["dropped_share"],
        **{f"held_out_{name}" if name.startswith("distinct") else name: value for name, value in held_out.items()},
        "mean_reward": float(reward.mean()),
        "collapsed": float(final["entropy"] < 0.25 * entropy[0]),
        "exploded": float(final["entropy"] > 1.25 * entropy[0]),
    }
    if (fall := reference["entropy"][0] - reference["entropy"][-1]) > 0:
        high = entropy >= reference["entropy"][-1] + fall / 2
        measured["reward_at_entropy"] = float(reward[high].max()) if high.any() else None
    if (rise := reference["reward"][-1] - reference["reward"][0]) > 0:
        reached = reward >= reference["reward"][0] + 0.9 * rise
        measured["updates_to_reward"] = float(np.flatnonzero(reached)[0] + 1) * updates if reached.any() else None
        measured["entropy_at_reward"] = float(entropy[reached].max()) if reached.any() else None
    return measured


def compare(tasks: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], ours: str) -> dict[str, Any]:
    """For each task: measures with intervals, comparisons with no control, and of our method with the others.

    Args:
        tasks: Runs by task and method; the seeds that all methods have are compared.
        ours: How the name of our method begins; of several, the first.

    Raises:
        ValueError: A task has no run without control, or no seed that all methods have.
    """
    summary: dict[str, Any] = {}
    for task, methods in tasks.items():
        by_seed = {m: {entry["task"]["seed"]: entry for entry in entries} for m, entries in methods.items()}
        if "none" not in by_seed:
            raise invalid("methods", f"none among the runs of {task}", ", ".join(by_seed))
        seeds = [seed for seed in by_seed["none"] if all(seed in entries for entries in by_seed.values())]
        if not seeds:
            raise invalid("runs", f"a seed of {task} that all of {', '.join(by_seed)} have", "none")
        rows = {
            method: {seed: measures(entries[seed], by_seed["none"][seed]) for seed in seeds}
            for method, entries in by_seed.items()
        }
        table = {method: _setting(methods[method][0]["task"]) | _intervals(row) for method, row in rows.items()}
        own = next((method for method in rows if method.startswith(ours)), None)
        bases = {method: base_of(row["updates"]) for method, row in table.items()}
        for name in TESTED:
            if not any(name in row for row in table.values()):
                continue  # pass@16 of the decoder, pass@8 of the real model
            pairs = {
                method: paired(row, rows[bases[method]], name)
                for method, row in rows.items()
                if bases[method] in rows and bases[method] != method
            }
            _add(table, f"{name}_over_base", pairs)
            if own is not None:
                others = {method: paired(rows[own], row, name) for method, row in rows.items() if method != own}
                _add(table, f"{name}_of_floor_over_it", others)
        summary[task] = {"seeds": seeds, "methods": table, "front": pareto_front(table)}
    return summary


def _setting(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"rule": task["rule"], "updates": task["num_iterations"]}


def base_of(updates: int) -> str:
    """The method without control of as many updates per batch."""
    return "none, two updates" if updates == 2 else "none"


def _intervals(row: Mapping[int, Mapping[str, float | None]]) -> dict[str, Any]:
    """Intervals over the seeds that have a number, and how many never reached the level."""
    measured: dict[str, Any] = {}
    for name in {name: None for numbers in row.values() for name in numbers}:
        all_values = [numbers[name] for numbers in row.values() if name in numbers]
        values = [value for value in all_values if value is not None]
        never = len(all_values) - len(values)
        measured[name] = (sweep.rounded(sweep.interval(values)) if values else {}) | ({"never": never} if never else {})
    return measured


def paired(
    row: Mapping[int, Mapping[str, float | None]], other: Mapping[int, Mapping[str, float | None]], name: str
) -> dict[str, Any] | None:
    """Difference by seed with its interval and the p of the t-test.

    None with fewer than two pairs, or if a run of either never reached the level: survivors alone would compare what
    they have in common. No p for differences that are equal and not 0, which have no spread to test against.
    """
    from scipy.stats import ttest_1samp

    pairs = [(row[seed][name], other[seed][name]) for seed in row if name in row[seed]]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if len(differences) < max(2, len(pairs)):
        return None
    p = float(ttest_1samp(differences, 0.0).pvalue) if len(set(differences)) > 1 else None
    return sweep.rounded(sweep.interval(differences)) | {"p": 1.0 if not any(differences) else p}


def _add(table: dict[str, Any], column: str, differences: Mapping[str, dict[str, Any] | None]) -> None:
    """Put differences into the table, with p corrected over the methods that have one."""
    known = {method: difference for method, difference in differences.items() if difference is not None}
    tested = [method for method, difference in known.items() if difference["p"] is not None]
    corrected = dict(zip(tested, holm([known[method]["p"] for method in tested]), strict=True))
    for method, difference in known.items():
        p_values = {"p": difference["p"], "p_holm": corrected.get(method)}
        table[method][column] = difference | {n: None if p is None else float(f"{p:.3g}") for n, p in p_values.items()}


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
    """The methods that no other beats in both mean final entropy and mean final reward, the highest entropy first.

    Methods with an exploded run are left out: entropy without reward in one run would pass for a mean of both.
    """
    whole = {method: row for method, row in table.items() if not any(row["exploded"]["values"])}
    points = {m: (row["entropy"]["mean"], row["reward"]["mean"]) for m, row in whole.items()}
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
        print(f"\n{task}: means over seeds {', '.join(map(str, content['seeds']))} ± 95 % t-intervals")
        print(f"{'method':{width}}" + "".join(f"{name.replace('_', ' '):>19}" for name in columns))
        for method, row in content["methods"].items():
            print(f"{method:{width}}" + "".join(f"{_cell(row.get(name, {})):>19}" for name in columns))
        print("Pareto front of final entropy and reward, without methods that exploded: " + ", ".join(content["front"]))
        for words, suffix in (("over no control", "over_base"), (f"of {ours} over the method", "of_floor_over_it")):
            print(f"\n{task}: {words}, paired by seed; p corrected over the methods")
            print(f"{'method':{width}}" + "".join(f"{name.replace('_', ' '):>27}" for name in tested))
            for method, row in content["methods"].items():
                cells = [row.get(f"{name}_{suffix}") for name in tested]
                if any(cells):
                    shown = [sweep.shown(c) + _p(c["p_holm"]) if c else "" for c in cells]
                    print(f"{method:{width}}" + "".join(f"{cell:>27}" for cell in shown))


def _p(corrected: float | None) -> str:
    return "" if corrected is None else f" (p {corrected:.2g})"


def _cell(measured: Mapping[str, Any]) -> str:
    never = f" ({measured['never']} never)" if measured.get("never") else ""
    return (sweep.shown(measured, 2 if measured["mean"] > 5 else 3) if "mean" in measured else "") + never
