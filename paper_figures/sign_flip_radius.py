"""The step at which a predicted rise turns into a fall, over (p, H), and how often GRPO steps keep the sign."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

import entropy_theory as et
from paper_figures import style

TITLE = "Sign-flip radius"
STATEMENT = "Sections B.4, B.5 and B.8 of the theory notes"
RERUN = "python simulations/sign_phase_diagram.py"
VOCABULARY = 100
STEP = "+3"


def caption() -> str:
    record = style.read("sign_phase_diagram")
    summary, seeds = record["summary"], len(record["configuration"]["seeds"])
    row = summary["agreement"][STEP]
    return (
        "(a) |ε*|, the step of one logit at which entropy is back where it was; a predicted rise holds up to it and "
        "no further. Hatched: every step down raises entropy. Analytic; bisection on whole policies agrees to "
        f"{summary['largest_relative_error_of_flip']:.0e} relative on {summary['flips']:,} policies. (b) Share of "
        f"random policies (V = {VOCABULARY}, {seeds} seeds × {record['configuration']['rests']} rests at each point) "
        "for which a GRPO step of α = 3 changes entropy with the predicted sign; over all points "
        f"{style.spread(row['grpo'])} (mean over seeds ± 95 % t-interval). The wrong signs are predicted rises that "
        "fall, S_c < 0."
    )


def draw() -> Figure:
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.5)
    p, H, inside = style.plane(VOCABULARY, points=220)
    radius = np.full(p.shape, np.nan)
    radius[inside] = np.abs(et.sign_flip_radius(p[inside], H[inside]))
    never = inside & np.isinf(radius)
    finite = np.where(inside & np.isfinite(radius), radius, np.nan)
    shown = left.pcolormesh(p, H, np.log10(finite), cmap="viridis", vmin=-1, vmax=1.3, rasterized=True)
    left.contourf(p, H, never.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
    bar = figure.colorbar(shown, ax=left, ticks=np.log10([0.1, 0.3, 1, 3, 10]), pad=0.02)
    bar.ax.set_yticklabels(["0.1", "0.3", "1", "3", "10"])
    bar.set_label("|ε*|")

    record = style.read("sign_phase_diagram")
    points = np.array(record["results"][0]["result"]["points"])
    share = np.mean([entry["result"]["grpo"][STEP] for entry in record["results"]], axis=0)
    dots = right.scatter(points[:, 0], points[:, 1], c=share, cmap="cividis", vmin=0, vmax=1, s=13, linewidths=0)
    bar = figure.colorbar(dots, ax=right, pad=0.02)
    bar.set_label("share with the predicted sign")
    edge = np.linspace(0.0, np.log(VOCABULARY), 200)
    for axis, color in ((left, "w"), (right, style.INK)):
        axis.plot(np.exp(-edge), edge, color=color, linewidth=1.4)
        style.logit_axis(axis)
        axis.set(ylabel="entropy H (nats)", ylim=(0, np.log(VOCABULARY)), xlim=(1.5e-3, 0.9985))
        axis.grid(visible=False)
    style.letters((left, right))
    return figure
