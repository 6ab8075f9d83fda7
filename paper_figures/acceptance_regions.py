"""What Clip_B and Clip_V drop, over (p, H)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Acceptance regions of Clip_B and Clip_V"
STATEMENT = "Clip_B and Clip_V of arXiv 2602.03392, as in the official code"
RERUN = "python simulations/hyperparameter_sweep.py"
VOCABULARY, TOKENS = 1_000, 10_240
CLIP_B, CLIP_V = (0.5, 1.0, 1.5, 2.0, 2.5), (0.5, 1.0, 2.0, 4.0, 8.5)


def scores() -> dict[str, dict[str, float]]:
    """Mean and deviation of the two scores over a recorded batch."""
    measured: dict[str, dict[str, float]] = next(
        entry["result"]["scores"]
        for entry in style.read("hyperparameter_sweep")["results"]
        if (entry["task"].get("tokens"), entry["task"]["vocab_size"], entry["task"]["seed"]) == (TOKENS, VOCABULARY, 0)
    )
    return measured


def caption() -> str:
    measured = scores()
    b, v = measured["clip-b(mu=2.5)"], measured["clip-v(mu=8.5)"]
    lowest = (b["mean"] + 0.2238716024) / b["std"]
    return (
        "Tokens of wrong samples that are dropped: below each line, for (a) Clip_B, S < mean − μσ, and (b) Clip_V, "
        f"N − S > μσ (other probability spread evenly). Mean and deviation are those of one batch of {TOKENS:,} "
        f"tokens from a bank of forking policies, V = {VOCABULARY:,}, seed 0: S {b['mean']:.3f} ± {b['std']:.3f}, "
        f"S_c ± {v['std']:.3f}. A threshold without a line drops nothing with such a rest; one likely rival lets "
        f"Clip_V reach further. Since S ≥ −0.2239, Clip_B cannot drop anything at μ > {lowest:.2f} here. Dotted: p = "
        "e^(−H)."
    )


def draw() -> Figure:
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.5)
    measured = scores()
    p, H, inside = style.plane(VOCABULARY)
    S, centered = style.even_rest(p, H)
    b, v = measured["clip-b(mu=2.5)"], measured["clip-v(mu=8.5)"]
    panels = (
        (axes[0], "Clip_B", S, [(mu, b["mean"] - mu * b["std"]) for mu in CLIP_B]),
        (axes[1], "Clip_V", centered, [(mu, -mu * v["std"]) for mu in CLIP_V]),
    )
    colors = (style.BLUE, style.RED, style.GREEN, style.ORANGE, style.PINK)
    edge = np.linspace(0.0, np.log(VOCABULARY), 200)
    for axis, title, score, thresholds in panels:
        values = np.where(inside, score, np.nan)
        axis.contourf(p, H, inside.astype(float), levels=[-0.5, 0.5], colors=["0.85"])
        for index, (color, (mu, threshold)) in enumerate(zip(colors, thresholds, strict=True)):
            drops = bool(np.nanmin(values) < threshold)
            if drops:
                dashes = style.DASHES[index % 4]
                axis.contour(p, H, values, levels=[threshold], colors=[color], linestyles=[dashes], linewidths=1.3)
                axis.plot([], [], color=color, linestyle=dashes, label=f"μ = {mu:g}")
            else:
                axis.plot([], [], linestyle="none", label=f"μ = {mu:g}: none")
        axis.plot(np.exp(-edge), edge, ":", color=style.INK, linewidth=1.2)
        style.logit_axis(axis)
        axis.set(ylabel="entropy H (nats)", xlim=(1.5e-3, 0.9985), ylim=(0, np.log(VOCABULARY)), title=title)
        axis.grid(visible=False)
        axis.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    style.letters(axes)
    return figure
