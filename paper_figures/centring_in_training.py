"""Batch means of S and of S_c through real GRPO training."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "S and S_c through training"
STATEMENT = "Corollaries 3.4 and 3.5"
RERUN = "python simulations/clipping_methods.py"


def means() -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Curves of the batch means without control, one per seed, and their steps."""
    curves = [entry["curves"] for entry in style.runs_of(style.read("clipping_methods"), "none")]
    return (
        [entry["mean_discriminant"] for entry in curves],
        [entry["mean_centered_discriminant"] for entry in curves],
        curves[0]["step"],
    )


def caption() -> str:
    discriminant, centered, _ = means()
    big, small = float(np.mean(discriminant)), float(np.mean(centered))
    return (
        f"Batch means of S and of S_c over on-policy tokens, GRPO without control on the sum task, {len(centered)} "
        f"seeds, each point the mean over neighbouring steps. Over the whole runs S averages {big:.4f} and S_c "
        f"{small:.5f} nats, {abs(big / small):.0f} times less; what is left is sampling noise of batches of some "
        "2,000 tokens, and an end of sequence that depends on the tokens."
    )


def draw() -> Figure:
    discriminant, centered, steps = means()
    figure, (axis,) = style.new(width=style.COLUMN, height=2.2)
    for curves, color, label in ((discriminant, style.RED, "mean S"), (centered, style.BLUE, "mean S$_c$")):
        for index, curve in enumerate(curves):
            axis.plot(steps, curve, color=color, linewidth=1.0, alpha=0.8, label=None if index else label)
    axis.axhline(0, color=style.INK, linewidth=0.6)
    axis.set(xlabel="GRPO step", ylabel="batch mean (nats)")
    axis.legend(loc="center right")
    return figure
