"""The discriminant over (p, H), with its envelope and the line p = e^(-H)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from entropy_theory.theory.single_logit import discriminant_bounds
from paper_figures import style

TITLE = "The discriminant"
STATEMENT = "Theorem 3.2; sections B.1 and B.2 of the theory notes"
RERUN = None
VOCABULARY = 50_000


def caption() -> str:
    return (
        "(a) S = p (H + log p) over all pairs (p, H) that a policy of 50,000 tokens can have. Reinforcing a token "
        "lowers entropy where S > 0 (red) and raises it where S < 0 (blue); the two meet on p = e^(−H). (b) The "
        "envelope: all values of S that a token of probability p can have, for three vocabularies. The lower end "
        "does not depend on V and never falls below −0.2239. Analytic."
    )


def draw() -> Figure:
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.5)
    p, H, inside = style.plane(VOCABULARY)
    S = np.where(inside, p * (H + np.log(p)), np.nan)
    levels = [-0.2, -0.1, -0.03, 0.03, 0.3, 1.0, 3.0]
    shown = left.pcolormesh(p, H, np.cbrt(S), cmap="RdBu_r", vmin=-1.6, vmax=1.6, rasterized=True)
    left.contour(p, H, S, levels=levels, colors="k", linewidths=0.4, linestyles="solid")
    edge = np.linspace(0.0, 9.0, 200)
    left.plot(np.exp(-edge), edge, color="k", linewidth=1.6)
    left.text(0.0045, 4.5, "p = e$^{−H}$", fontsize=7, rotation=-43, ha="center", va="center")
    left.text(0.0017, 9.2, "S > 0", fontsize=8, ha="center")
    left.text(0.0017, 2.5, "S < 0", fontsize=8, ha="center")
    style.logit_axis(left)
    left.set(ylabel="entropy H (nats)", xlim=(5e-4, 0.999), ylim=(0, np.log(VOCABULARY)))
    left.grid(visible=False)
    bar = figure.colorbar(shown, ax=left, ticks=np.cbrt([-3, -0.3, -0.03, 0, 0.03, 0.3, 3]), pad=0.02)
    bar.ax.set_yticklabels(["−3", "−0.3", "−0.03", "0", "0.03", "0.3", "3"])
    bar.set_label("S (nats)")

    probs = np.linspace(1e-4, 1 - 1e-4, 600)
    for size, color, dashes in ((100, style.BLUE, "--"), (5_000, style.GREEN, "-."), (150_000, style.RED, "-")):
        low, high = discriminant_bounds(probs, np.full(probs.shape, size))
        right.plot(probs, high, color=color, linestyle=dashes, label=f"V = {size:,}")
    right.plot(probs, low, color=style.INK, label="lower end, any V")
    right.axhline(-0.2238716024, color=style.INK, linewidth=0.6, linestyle=":")
    right.text(0.98, -0.27, "−0.2239", fontsize=7, ha="right", va="top")
    right.set(xlabel="probability p of the token", ylabel="S (nats)", ylim=(-0.65, 4.6), xlim=(0, 1))
    right.legend(loc="upper center", ncols=2)
    style.letters((left, right))
    return figure
