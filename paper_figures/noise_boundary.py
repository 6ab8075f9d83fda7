"""Where advantages that know nothing lower entropy, and how far a run under them drifts."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from entropy_theory.theory.curvature import mean_grpo_curvature
from paper_figures import style

TITLE = "Drift under noise"
STATEMENT = "Section B.10 of the theory notes"
RERUN = "python simulations/noise_drift.py"
STARTS = (("gaussian", style.BLUE), ("zipf", style.GREEN), ("forking", style.ORANGE), ("peaked", style.RED))


def caption() -> str:
    record = style.read("noise_drift")
    config, runs = record["configuration"], record["summary"]["runs"]
    words = "; ".join(
        f"{start} {style.spread(runs[start]['change'])}, predicted {style.spread(runs[start]['predicted'])}"
        for start, _ in STARTS
    )
    return (
        "(a) Sign of E_k[H''] for policies with one likely token of probability p and an even rest: noise lowers "
        "entropy below the line and raises it above. Analytic; dots: largest p on a grid of .01 at which the exact "
        f"mean over tokens and signs falls. (b) GRPO with coin tosses for rewards, {config['policies']} policies of "
        f"{config['vocab_size']} tokens, {config['steps']} steps, {len(config['seeds'])} seeds (mean, 95 % "
        f"t-interval shaded); dashed: the predicted drift, added up. Change of entropy in nats: {words}."
    )


def draw() -> Figure:
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.5)
    record = style.read("noise_drift")
    sizes = np.unique(np.geomspace(2, 10_000, 40).round().astype(int))
    probs = np.linspace(0.4, 0.99, 237)
    curvature = np.empty((probs.size, sizes.size))
    for j, size in enumerate(sizes):
        logits = np.zeros((probs.size, size))
        logits[:, 0] = np.log(probs / (1 - probs)) + np.log(size - 1)
        curvature[:, j] = mean_grpo_curvature(logits)
    x, y = np.meshgrid(sizes, probs)
    left.contourf(x, y, curvature, levels=[-9, 0], colors=[style.FALL], alpha=0.3)
    left.contourf(x, y, curvature, levels=[0, 9], colors=[style.RISE], alpha=0.3)
    left.contour(x, y, curvature, levels=[0], colors="k", linewidths=1.2)
    measured = record["summary"]["largest_falling_prob"]
    left.plot([int(size) for size in measured], list(measured.values()), "o", color=style.INK, markersize=3)
    left.text(150, 0.85, "noise raises entropy", ha="center", fontsize=7)
    left.text(150, 0.47, "noise lowers entropy", ha="center", fontsize=7)
    left.set(xscale="log", xlabel="vocabulary size V", ylabel="probability p of the likely token", ylim=(0.4, 0.99))
    left.grid(visible=False)

    for start, color in STARTS:
        results = [entry["result"] for entry in record["results"] if entry["task"].get("start") == start]
        curves = [[h - entry["entropy"][0] for h in entry["entropy"]] for entry in results]
        steps = np.arange(len(curves[0])) * max(1, record["configuration"]["steps"] // 40)
        style.band(right, steps, curves, color, label=start)
        mean = np.mean([entry["predicted_change"] for entry in results], axis=0)
        right.plot(steps[: len(mean)], mean, "--", color=color)
    right.axhline(0, color=style.INK, linewidth=0.6)
    right.set(xlabel="GRPO step", ylabel="change of entropy (nats)")
    right.legend(loc="lower left")
    style.letters((left, right))
    return figure
