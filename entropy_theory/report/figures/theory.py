"""Figures of the theory; they draw what the theory computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropy_theory.report.figures import COLOURS, figure_function, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@figure_function
def one_sided_sign_theorem(outcomes: Any) -> Figure:
    """Draw the one-sided sign theorem: predicted falls all fall, predicted rises can fail.

    Args:
        outcomes: Arrays ``sizes`` (K,), ``rises`` and ``falls`` (rays, K): exact ΔH / H at each step size.
    """
    figure, (left, middle, right) = new_figure(columns=3, width=2.8, height=2.5)
    panels = (
        (left, outcomes.falls, "predicted falls", COLOURS[1]),
        (middle, outcomes.rises, "predicted rises", COLOURS[2]),
    )
    for axis, changes, title, colour in panels:
        axis.plot(outcomes.sizes, changes[:45].T, color=colour, linewidth=0.7, alpha=0.5)
        axis.axhline(0.0, color=COLOURS[0], linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.6)
        axis.set_ylim(-1.2, 12.0)
        axis.set_xlabel("step size |α|")
        axis.set_title(title)
    left.set_ylabel("exact ΔH / H")
    right.plot(outcomes.sizes, 100.0 * (outcomes.falls < 0).mean(axis=0), color=COLOURS[1], label="fall predicted")
    right.plot(outcomes.sizes, 100.0 * (outcomes.rises < 0).mean(axis=0), color=COLOURS[2], label="rise predicted")
    right.set_xscale("log")
    right.set_xlabel("step size |α|")
    right.set_ylabel("% on which entropy falls")
    right.set_title("outcome")
    right.legend(loc=(0.03, 0.6), fontsize=7)
    return figure
