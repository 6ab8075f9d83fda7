"""Entropy control over three times the contest's updates: who holds entropy, who only delays its fall."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Entropy control in a long run"
STATEMENT = "Methods that kept distinct answers over the contest's 320 updates part in a run of 960"
RERUN = "python simulations/control_contest.py --stage long"
HELD = 0.75  # of the entropy after the first third, at the end
POINTS = 9  # of a curve that are drawn as their mean
CURVES = {"entropy": "entropy (nats)", "distinct_right": "distinct right answers of 16"}


def caption() -> str:
    record = style.read("control_contest_long")
    held, fell = _parted(record["summary"]["methods"])
    return (
        "GRPO of the decoder on the sum task, one seed, under the methods with twice the distinct right answers of no "
        "control in the contest, with the settings that its tuning chose. The dotted line is where the contest ended. "
        f"(a) {', '.join(held)} end with at least {HELD:.0%} of the entropy that they had there, (b) {', '.join(fell)} "
        f"with less. (c), (d): their distinct right answers of a group of 16. Lines are means over {POINTS} "
        "neighbouring points of five batches each."
    )


def draw() -> Figure:
    record, contest = style.read("control_contest_long"), style.read("control_contest_contest")
    rows, entries = record["summary"]["methods"], record["results"]
    curves = {entry["task"]["rule"]: entry["result"]["curves"] for entry in entries if _once(entry)}
    colors = (style.BLUE, style.RED, style.GREEN, style.PINK, style.ORANGE)
    figure, axes = style.new(columns=2, rows=2, width=style.PAGE, height=4.6)
    for place, methods in enumerate(_parted(rows)):
        for axis, (name, label) in zip(axes[place::2], CURVES.items(), strict=True):
            for method, color in (("none", style.INK), *zip(methods, colors, strict=False)):
                _curve(axis, curves[rows[method]["rule"]][name], method, color, entries[0]["task"]["steps"])
            axis.axvline(contest["configuration"]["steps"], color="0.6", linewidth=0.7, linestyle=":")
            axis.set(xlabel="update", ylabel=label)
        axes[place].legend(fontsize=6, ncols=3, loc="upper right")
        axes[place].set_ylim(0.0, 1.1)  # room for the legend above the curves
        axes[2 + place].set_ylim(0.0, 16.0)
    for axis, title in zip(axes, ("methods that hold entropy", "methods that lose it later"), strict=False):
        axis.set_title(title)
    style.letters(axes)
    return figure


def _once(entry: dict[str, Any]) -> bool:
    return entry["task"]["rule"] != "none" or entry["task"]["num_iterations"] == 1


def _parted(rows: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The methods with twice the distinct answers of no control in the contest: those that hold entropy, the others."""
    contest = style.read("control_contest_contest")["summary"]["sum"]["methods"]
    enough = 2 * contest["none"]["distinct_right"]["mean"]
    kept = [method for method in rows if contest[method]["distinct_right"]["mean"] >= enough]
    held = [method for method in kept if rows[method]["entropy"] >= HELD * rows[method]["entropy_at_third"]]
    return held, [method for method in kept if method not in held]


def _curve(axis: Axes, values: list[float], method: str, color: str, updates: int) -> None:
    smooth = np.convolve(values, np.ones(POINTS) / POINTS, mode="valid")
    cut = POINTS // 2
    axis.plot(np.linspace(0, updates, len(values))[cut:-cut], smooth, color=color, linewidth=1.0, label=method)
