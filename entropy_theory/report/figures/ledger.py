"""The figure of the ledger: a run's entropy from start to end as a waterfall of its parts, and as curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_theory.report.figures import COLOURS, figure_function, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIXED, _REMAINDER = COLOURS[1], COLOURS[2]
_SPLIT = {  # the parts of the fixed-context change, in the order of the waterfall
    "now": ("present gradient", COLOURS[1]),
    "momentum": ("momentum", COLOURS[5]),
    "decay": ("weight decay", COLOURS[4]),
    "curvature": ("curvature", COLOURS[6]),
}


def shown_parts(summary: Mapping[str, Any]) -> list[tuple[str, float, float | None, str]]:
    """List the parts of a ledger in the order in which they are shown: label, nats, standard error, colour.

    Args:
        summary: As `entropy_theory.influence.run_summary` gives it.
    """
    parts: list[tuple[str, float, float | None, str]] = []
    split, finished = summary["split_batches"], summary["batches"] - 1
    if split:
        parts += [(label, summary[name], None, colour) for name, (label, colour) in _SPLIT.items()]
    if split < finished or not split:
        label, colour = ("fixed contexts, not split", COLOURS[3]) if split else ("fixed contexts", _FIXED)
        parts.append((label, summary["fixed"], None, colour))
    label = "state shift and sampling"
    return [*parts, (label, summary["remainder"], summary["remainder_se"], _REMAINDER)]


@figure_function
def ledger_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw a ledger: left its parts from start to end, right entropy and the sums of its two parts against the step.

    Args:
        summary: As `entropy_theory.influence.run_summary` gives it.
    """
    figure, axes = new_figure(columns=2, width=4.6, height=3.4)
    _waterfall(axes[0], summary)
    _curves(axes[1], summary)
    return figure


def _waterfall(axis: Axes, summary: Mapping[str, Any]) -> None:
    parts, level = shown_parts(summary), summary["start"]
    levels = [level]
    axis.bar(0, level, width=0.65, color=COLOURS[0], alpha=0.75)
    for place, (_, value, error, colour) in enumerate(parts, start=1):
        axis.plot([place - 0.675, place + 0.325], [level, level], color=COLOURS[0], linewidth=0.7)
        axis.bar(place, value, bottom=level, width=0.65, color=colour)
        level += value
        levels.append(level)
        if error is not None:
            axis.errorbar(place, level, error, color=COLOURS[0], capsize=3, linewidth=1)
        above = max(level, level - value) + (0.0 if error is None else error)
        axis.annotate(f"{value:+.3f}", (place, above), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    end = len(parts) + 1
    axis.plot([end - 0.675, end + 0.325], [level, level], color=COLOURS[0], linewidth=0.7)
    axis.bar(end, summary["end"], width=0.65, color=COLOURS[0], alpha=0.75)
    for place, value in ((0, summary["start"]), (end, summary["end"])):
        axis.annotate(f"{value:.3f}", (place, value), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    labels = [f"step {summary['first_step']}", *(_wrapped(part[0]) for part in parts), f"step {summary['last_step']}"]
    axis.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=7)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("mean entropy (nats)")
    low, high = min(levels), max(levels)
    if 0 < high - low < 0.25 * high and low > 0:  # of a run that hardly moves the parts would not be seen from zero
        axis.set_ylim(low - 0.6 * (high - low), high + 0.3 * (high - low))
        axis.set_ylabel("mean entropy (nats), axis cut")
    else:
        low = min(low, 0.0)
        axis.set_ylim(low - 0.08 * (high - low) * (low < 0), high + 0.1 * (high - low))
    axis.set_title("where the change of entropy came from", fontsize=9)


def _curves(axis: Axes, summary: Mapping[str, Any]) -> None:
    curves, start = summary["curves"], summary["start"]
    steps = curves["step"]
    entropy = [value - start for value in curves["entropy"]]
    axis.axhline(0, color=COLOURS[0], linewidth=0.7)
    axis.plot(steps, entropy, color=COLOURS[0], linewidth=1.2, label="entropy")
    fixed, remainder = ([value or 0.0 for value in curves[f"cumulative_{name}"]] for name in ("fixed", "remainder"))
    axis.plot(steps, fixed, color=_FIXED, linewidth=1.2, label="fixed contexts")
    axis.plot(steps, remainder, color=_REMAINDER, linewidth=1.2, label="state shift and sampling")
    known = [
        (step, value, error)
        for step, value, error in zip(steps, remainder, curves["cumulative_remainder_se"], strict=True)
        if error is not None
    ]
    if known:
        at, values, errors = zip(*known, strict=True)
        low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
        axis.fill_between(at, low, high, color=_REMAINDER, alpha=0.2, linewidth=0, label="± one standard error")
    axis.set(xlabel="step", ylabel="change since the first batch (nats)")
    axis.set_title("entropy = fixed contexts + state shift and sampling", fontsize=9)
    axis.legend(fontsize=7)


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n").replace(" and ", "\nand ")
