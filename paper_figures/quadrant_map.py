"""Which way a token pushes entropy: the quadrants of (A, S_c) over (p, H), and where S and S_c disagree."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Quadrant map"
STATEMENT = "Theorem 3.3; section B.14 of the theory notes"
RERUN = None
VOCABULARY = 50_000


def caption() -> str:
    return (
        "What a GRPO step does to entropy, to first order, for (a) right and (b) wrong samples: it falls in Q1 and "
        "Q4 and rises in Q2 and Q3. The border S_c = 0 depends on what surrounds the token: the colours change "
        "where the other probability is spread evenly, close to p = e^(−H) (dotted); dashed: the border when half "
        "of it sits on one rival token. Between the two, p and H alone do not tell the quadrant. Analytic, V = "
        "50,000."
    )


def draw() -> Figure:
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.5)
    p, H, inside = style.plane(VOCABULARY)
    _, centered = style.even_rest(p, H)
    rival = style.rival_rest(p, H)
    names = (("Q1", "entropy falls", "Q2", "entropy rises"), ("Q3", "entropy rises", "Q4", "entropy falls"))
    for axis, (likely, does, unlikely, does_too), title in zip(axes, names, ("A > 0", "A < 0"), strict=True):
        colors = (style.RISE, style.FALL) if likely == "Q1" else (style.FALL, style.RISE)
        for color, where in zip(colors, (centered < 0, centered > 0), strict=True):
            axis.contourf(p, H, (inside & where).astype(float), levels=[0.5, 1.5], colors=[color], alpha=0.35)
        axis.contour(p, H, np.where(inside, rival, np.nan), levels=[0.0], colors="k", linestyles="--", linewidths=1.1)
        edge = np.linspace(0.0, np.log(VOCABULARY), 200)
        axis.plot(np.exp(-edge), edge, ":", color=style.INK, linewidth=1.4)
        axis.text(0.03, 8.0, f"{likely}\n{does}", ha="center", va="center", fontsize=8)
        axis.text(0.004, 1.6, f"{unlikely}\n{does_too}", ha="center", va="center", fontsize=8)
        style.logit_axis(axis)
        axis.set(ylabel="entropy H (nats)", xlim=(5e-4, 0.999), ylim=(0, np.log(VOCABULARY)), title=title)
        axis.grid(visible=False)
    style.letters(axes)
    return figure
