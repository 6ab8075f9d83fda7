"""Exact change of entropy along GRPO steps, against its first and second order."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

import entropy_theory as et
from paper_figures import style

TITLE = "Exact change against first and second order"
STATEMENT = "Theorem 3.3; sections B.7 and B.8 of the theory notes"
RERUN = None
PROBS = (0.6, 0.25, 0.1, 0.04, 0.01)


def caption() -> str:
    return (
        "Change of entropy of the policy (.6, .25, .1, .04, .01) along a GRPO step z → z + α (e_k − p), exact and to "
        "first and second order. (a) Reinforcing the likeliest token, S_c > 0: a fall is predicted for α > 0 and falls "
        "at every size. (b) Reinforcing the third token, S_c < 0: the predicted rise turns into a fall at the dot. "
        "Analytic."
    )


def draw() -> Figure:
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.3)
    logits, alpha = np.log(PROBS), np.linspace(-3.0, 6.0, 451)
    for axis, token, title in zip(axes, (0, 2), ("k = 1, p = .6", "k = 3, p = .1"), strict=True):
        direction = et.grpo_direction(logits, token)
        exact = np.array([float(et.entropy_change(logits, a * direction)) for a in alpha])
        first = np.array([float(et.first_order_change(logits, direction, a)) for a in alpha])
        second = np.array([float(et.second_order_change(logits, direction, a)) for a in alpha])
        axis.axhline(0, color=style.INK, linewidth=0.6)
        axis.plot(alpha, first, color=style.ORANGE, linestyle="--", label="first order")
        axis.plot(alpha, second, color=style.GREEN, linestyle="-.", label="second order")
        axis.plot(alpha, exact, color=style.BLUE, label="exact")
        flips = np.flatnonzero((exact[:-1] > 0) & (exact[1:] <= 0) & (alpha[1:] > 0.1))
        if flips.size:
            axis.plot(alpha[flips[:1]], [0.0], "o", color=style.INK, markersize=4)
        axis.set(xlabel="step α", ylabel="ΔH (nats)", ylim=(-1.3, 0.7), xlim=(-3, 6), title=title)
    axes[0].legend(loc="lower left")
    style.letters(axes)
    return figure
