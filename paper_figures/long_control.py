"""Entropy control over three times the contest's updates: who holds entropy, who loses it later."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Entropy control in a long run"
STATEMENT = "Methods that kept distinct answers over the contest's 320 updates part in one run of 960"
RERUN = "python simulations/control_contest.py --stage contest` and `--stage long"
HELD = 0.75  # of the entropy after the first third, at the end
CURVES = {"entropy": "entropy (nats)", "distinct_right": "distinct right answers of 16"}


def caption() -> str:
    record = style.read("control_contest_long")
    rows = record["summary"]["methods"]
    held, fell = (
        ", ".join(f"{method} ({rows[method]['entropy_kept']:.0%})" for method in methods) for methods in _parted(rows)
    )
    return (
        "GRPO of the decoder on the sum task, one seed, without control (black) and under the methods with at least "
        "twice its distinct right answers in the contest, with the settings that tuning chose. The dotted line is "
        f"where the contest ended. Of the entropy that they had there, {held} end with at least {HELD:.0%} (a), {fell} "
        f"with less (b). The border of {HELD:.0%} only keeps the panels legible; entropy-floor, whose entropy sinks, "
        "is close to it. (c), (d): their distinct right answers of a group of 16. Points of a line are means of five "
        "batches."
    )


def draw() -> Figure:
    record, contest = style.read("control_contest_long"), style.read("control_contest_contest")
    rows, entries = record["summary"]["methods"], record["results"]
    curves = {entry["task"]["rule"]: entry["result"]["curves"] for entry in entries if _once(entry)}
    colors = (style.BLUE, style.RED, style.GREEN, style.PINK, style.ORANGE)
    figure, axes = style.new(columns=2, rows=2, width=style.PAGE, height=4.6)
    for place, methods in enumerate(_parted(rows)):
        for axis, (name, label) in zip(axes[place::2], CURVES.items(), strict=True):
            for method, color in (("none", style.INK), *zip(methods, colors[: len(methods)], strict=True)):
                values = curves[rows[method]["rule"]][name]
                updates = [entries[0]["task"]["steps"] * (point + 0.5) / len(values) for point in range(len(values))]
                axis.plot(updates, values, color=color, linewidth=0.6, label=method)
            axis.axvline(contest["configuration"]["steps"], color="0.6", linewidth=0.7, linestyle=":")
            axis.set(xlabel="update", ylabel=label)
        axes[place].legend(fontsize=6, ncols=3, loc="upper right")
        axes[place].set_ylim(0.0, 1.1)  # room for the legend above the curves
        axes[2 + place].set_ylim(0.0, 16.0)
    for axis, title in zip(axes, (f"at least {HELD:.0%} of entropy is kept", "less is kept"), strict=False):
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
    held = [method for method in kept if rows[method]["entropy_kept"] >= HELD]
    return held, [method for method in kept if method not in held]
