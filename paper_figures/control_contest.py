"""Entropy control in one trainer: final entropy and reward, distinct right answers, and reward at equal entropy."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "A contest of entropy control"
STATEMENT = "Methods of entropy control in one trainer, each tuned with as many runs, compared on fresh seeds"
RERUN = "python simulations/control_contest.py --stage contest"
TASKS = {"sum": "sum task", "arithmetic": "arithmetic in steps"}
HIGHLIGHTED = {"none": style.INK, "entropy-floor": style.RED}
RANKED = {"distinct_right": "distinct right answers of 16", "reward_at_entropy": "reward at equal entropy"}


def caption() -> str:
    record = style.read("control_contest_contest")
    seeds = len(record["summary"]["sum"]["seeds"])
    fronts = "; ".join(f"{words}: {', '.join(record['summary'][task]['front'])}" for task, words in TASKS.items())
    exploded = "; ".join(f"{words}: {_exploded(record, task) or 'none'}" for task, words in TASKS.items())
    return (
        f"GRPO of the decoder under each method with the setting that tuning chose, {seeds} seeds. (a), (d): means "
        "over the last ten updates, a faint dot for each seed and a large one for a method's mean. Runs that exploded "
        f"are not shown in (a) and (d), and their methods have no large dot ({exploded}). The line joins, of the other "
        "methods, those that none of them beats in both: "
        f"{fronts}. "
        "(b), (e): distinct right answers of a group of 16 at the end. (c), (f): the best smoothed reward at an "
        "entropy half of the way down the uncontrolled run's. Bars are 95 % t-intervals, cut off at the frame."
    )


def draw() -> Figure:
    record = style.read("control_contest_contest")
    figure, axes = style.new(columns=3, rows=len(TASKS), width=style.PAGE, height=3.2 * len(TASKS))
    for place, (task, words) in enumerate(TASKS.items()):
        plane, *ranks = axes[3 * place : 3 * place + 3]
        methods = record["summary"][task]["methods"]
        _plane(plane, methods, record["summary"][task]["front"])
        plane.set(xlabel="final entropy (nats)", ylabel="final reward", title=words)
        for axis, (name, label) in zip(ranks, RANKED.items(), strict=True):
            _ranked(axis, methods, name)
            axis.set_xlabel(label)
    style.letters(axes)
    return figure


def _exploded(record: dict[str, Any], task: str) -> str:
    rows = record["summary"][task]["methods"].items()
    counts = {method: round(sum(row["exploded"]["values"])) for method, row in rows}
    return ", ".join(f"{count} of {method}" for method, count in counts.items() if count)


def _plane(axis: Axes, methods: dict[str, Any], front: list[str]) -> None:
    """Runs that did not explode, which would hide the others, and means of the methods of which none did."""
    for method, row in methods.items():
        color = HIGHLIGHTED.get(method, style.BLUE)
        runs = zip(row["entropy"]["values"], row["reward"]["values"], row["exploded"]["values"], strict=True)
        kept = [(entropy, reward) for entropy, reward, gone in runs if not gone]
        axis.plot([x for x, _ in kept], [y for _, y in kept], ".", color=color, ms=2.5, alpha=0.4)
        if len(kept) == len(row["exploded"]["values"]):
            axis.plot(*_mean(row), "o", color=color, markersize=4)
            if method in HIGHLIGHTED:
                axis.annotate(method, _mean(row), (4, 4), textcoords="offset points", fontsize=6, color=color)
    line = [_mean(methods[method]) for method in front]
    axis.plot([x for x, _ in line], [y for _, y in line], color=style.GREEN, linewidth=0.9, zorder=0)


def _mean(row: dict[str, Any]) -> tuple[float, float]:
    return row["entropy"]["mean"], row["reward"]["mean"]


def _ranked(axis: Axes, methods: dict[str, Any], name: str) -> None:
    """The methods from the best down, with intervals."""
    known = {m: row[name] for m, row in methods.items() if row.get(name, {}).get("half_width") is not None}
    order = sorted(known, key=lambda method: known[method]["mean"])
    for place, method in enumerate(order):
        measured, color = known[method], HIGHLIGHTED.get(method, style.BLUE)
        bar: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 0.8}
        axis.errorbar([measured["mean"]], [place], xerr=[measured["half_width"]], color=color, **bar)
    means = [measured["mean"] for measured in known.values()]
    margin = 0.25 * (max(means) - min(means))
    axis.set_xlim(min(means) - margin, max(means) + margin)
    axis.set_yticks(range(len(order)), order, fontsize=6)
