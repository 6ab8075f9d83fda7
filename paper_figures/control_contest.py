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
    methods = {words: record["summary"][task]["methods"] for task, words in TASKS.items()}
    fronts = "; ".join(f"{words}: {', '.join(_front(rows))}" for words, rows in methods.items())
    exploded = "; ".join(f"{words}: {_exploded(record, task) or 'none'}" for task, words in TASKS.items())
    return (
        f"GRPO of the decoder under each method with the setting that tuning chose, {seeds} seeds. (a), (d): means "
        "over the last ten updates, a faint dot for each seed and a large one for a method's mean. Runs that exploded "
        f"are neither shown in (a) and (d) nor in these means ({exploded}); a method of which most exploded has no "
        "large dot. The line joins, of the methods without an exploded run, those that no other of them beats in both: "
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
        _plane(plane, methods)
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


def _front(methods: dict[str, Any]) -> list[str]:
    """Of the methods without an exploded run those that none beats in both means, the highest entropy first."""
    whole = {method: _mean(row) for method, row in methods.items() if not any(row["exploded"]["values"])}
    best = {
        method: (entropy, reward)
        for method, (entropy, reward) in whole.items()
        if not any(e >= entropy and r >= reward and (e, r) != (entropy, reward) for e, r in whole.values())
    }
    return sorted(best, key=lambda method: -best[method][0])


def _kept(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Final entropy and reward of the runs that did not explode."""
    runs = zip(row["entropy"]["values"], row["reward"]["values"], row["exploded"]["values"], strict=True)
    return [(entropy, reward) for entropy, reward, gone in runs if not gone]


def _mean(row: dict[str, Any]) -> tuple[float, float]:
    runs = _kept(row)
    return sum(entropy for entropy, _ in runs) / len(runs), sum(reward for _, reward in runs) / len(runs)


def _plane(axis: Axes, methods: dict[str, Any]) -> None:
    """Runs and means, but for runs that exploded: they would hide the others."""
    for method, row in methods.items():
        color, runs = HIGHLIGHTED.get(method, style.BLUE), _kept(row)
        axis.plot([x for x, _ in runs], [y for _, y in runs], ".", color=color, ms=2.5, alpha=0.4)
        if 2 * len(runs) > len(row["exploded"]["values"]):
            x, y = _mean(row)
            axis.plot([x], [y], "o", color=color, markersize=4)
            if method in HIGHLIGHTED:
                axis.annotate(method, (x, y), (4, 4), textcoords="offset points", fontsize=6, color=color)
    line = [_mean(methods[method]) for method in _front(methods)]
    axis.plot([x for x, _ in line], [y for _, y in line], color=style.GREEN, linewidth=0.9, zorder=0)


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
