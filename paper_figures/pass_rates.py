"""Pass rates of the prompts before and after training, by rule."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Pass rates"
STATEMENT = "What entropy control leaves of reward: the demo's task, prompt by prompt"
RERUN = "python simulations/clipping_methods.py"
RULES = ("none", "clip-b(mu=1)", "clip-v(mu=2, max_fraction=None)")
BINS = np.linspace(0, 1, 11)


def policies() -> dict[str, list[dict[str, list[float]]]]:
    """What the trained policies answer, by rule and seed; first the decoder before training."""
    record = style.read("clipping_methods")
    before = [r["result"]["policy"] for r in record["results"] if r["task"].get("rule") and r["task"]["steps"] == 0]
    after = {style.NAMES[rule]: [entry["policy"] for entry in style.runs_of(record, rule)] for rule in RULES}
    return {"before training": before, **after}


def caption() -> str:
    measured = policies()
    words = "; ".join(
        f"{name} {np.mean([entry['pass_rate'] for entry in several]):.2f} and "
        f"{np.mean([entry['distinct_right'] for entry in several]):.1f}"
        for name, several in measured.items()
    )
    seeds = len(measured["no control"])
    return (
        "(a) Share of the 25 sums by the share of right answers among 64 samples, before and after GRPO. (b) "
        f"Distinct right answers among them. Trained policies: {seeds} seeds, means, in (b) each seed thin. Means of "
        f"both: {words}."
    )


def draw() -> Figure:
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.4)
    measured = policies()
    colors = ("0.6", style.INK, style.BLUE, style.RED)
    width = 0.8 * (BINS[1] - BINS[0]) / len(measured)
    for index, ((name, several), color) in enumerate(zip(measured.items(), colors, strict=True)):
        shares = [np.histogram(entry["pass_rate"], BINS)[0] / len(entry["pass_rate"]) for entry in several]
        place = (BINS[:-1] + BINS[1:]) / 2 + (index - (len(measured) - 1) / 2) * width
        left.bar(place, np.mean(shares, axis=0), width=width, color=color, label=name)
        counts = np.sort([entry["distinct_right"] for entry in several], axis=1)
        style.band(right, np.arange(1, counts.shape[1] + 1), counts.tolist(), color, linestyle=style.DASHES[index])
    left.set(xlabel="pass rate of a sum", ylabel="share of the sums", xlim=(0, 1))
    right.set(xlabel="sums, in order", ylabel="distinct right answers of 64", ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    style.letters((left, right))
    return figure
