"""Figures of the theory; they draw what the theory computes."""

from __future__ import annotations

from collections.abc import Sequence
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
        # In SVG these many paths are one image: a tenth of the size.
        axis.plot(outcomes.sizes, changes[:45].T, color=colour, linewidth=0.7, alpha=0.5, rasterized=True)
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


@figure_function
def step_bound(rays: Sequence[Any]) -> Figure:
    """Draw the exact change of entropy of GRPO steps of either sign under its upper bound, a panel per policy.

    Args:
        rays: Objects with ``probs``, ``score``, and arrays ``steps``, ``change`` and ``bound`` (m,).
    """
    figure, axes = new_figure(columns=len(rays), width=2.8, height=2.5)
    for axis, ray in zip(axes, rays, strict=True):
        axis.fill_between(ray.steps, ray.change, ray.bound, color=COLOURS[2], alpha=0.12, linewidth=0)
        axis.plot(ray.steps, ray.change, color=COLOURS[1], linewidth=1.4, label="exact ΔH")
        axis.plot(ray.steps, ray.bound, color=COLOURS[2], linewidth=1.2, linestyle="--", label="upper bound")
        axis.axhline(0.0, color=COLOURS[0], linewidth=0.8)
        axis.axvline(0.0, color=COLOURS[0], linewidth=0.8)
        axis.set_xlabel("step size α on the first token")
        side = "α < 0" if ray.score > 0 else "α > 0"
        axis.set_title(f"p = ({', '.join(f'{prob:g}' for prob in ray.probs)})\nrise predicted for {side}", fontsize=9)
    axes[0].set_ylabel("change of entropy (nats)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@figure_function
def pass_rate_entropy(curves: Sequence[Any]) -> Figure:
    """Draw the entropy of policies that are sharpened on right answers over the pass rate, with its peak.

    Args:
        curves: Objects with ``right_entropy``, ``wrong_entropy``, ``peak``, ``peak_entropy``, and arrays ``rates`` and
            ``entropy`` (m,).
    """
    figure, (axis,) = new_figure(width=5.2, height=3.0)
    for curve, colour in zip(curves, COLOURS[1:], strict=False):
        label = f"{curve.right_entropy:g} right, {curve.wrong_entropy:g} wrong"
        axis.plot(curve.rates, curve.entropy, color=colour, linewidth=1.4, label=label)
        axis.plot([curve.peak], [curve.peak_entropy], color=colour, marker="o", markersize=5, linestyle="none")
        axis.annotate(
            f"{curve.peak:.2f}",
            (curve.peak, curve.peak_entropy),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axis.set(xlim=(-0.02, 1.02), xlabel="pass rate", ylabel="entropy of the answers (nats)")
    axis.margins(y=0.12)
    axis.legend(title="entropy given the answer is", title_fontsize=8, loc="lower center")
    return figure


@figure_function
def state_shift(shift: Any) -> Figure:
    """Draw the change of mean entropy on fixed contexts against the change with the contexts that the step shifts.

    Args:
        shift: Arrays ``steps``, ``fixed`` and ``total`` (m,), ``fixed_slopes`` and ``total_slopes`` (n,), and numbers
            ``fixed_slope`` and ``total_slope``.
    """
    figure, (left, right) = new_figure(columns=2, width=3.6, height=2.9)
    ends = [shift.steps[0], shift.steps[-1]]
    for values, slope, colour, label, offset in (
        (shift.total, shift.total_slope, COLOURS[1], "with the shift of contexts", (6, 4)),
        (shift.fixed, shift.fixed_slope, COLOURS[2], "on fixed contexts", (-38, -10)),
    ):
        left.plot(shift.steps, values, color=colour, linewidth=1.4, label=label)
        left.plot(ends, [slope * end for end in ends], color=colour, linewidth=0.9, linestyle=":")
        at_1 = int(shift.steps.searchsorted(1.0))
        left.plot([1.0], [values[at_1]], color=colour, marker="o", markersize=4, linestyle="none")
        left.annotate(
            f"{values[at_1]:+.3f}".replace("-", "−"),
            (1.0, values[at_1]),
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
        )
    left.set_ylim(min(shift.fixed.min(), shift.total.min()) * 1.05, 0.1)
    left.set(xlabel="step size α on the first token", ylabel="change of mean entropy (nats)")
    left.set_title("one example; dotted: its slopes at α = 0", fontsize=9)
    left.legend(loc="lower center")
    opposite = shift.fixed_slopes * shift.total_slopes < 0
    for chosen, colour, label in ((~opposite, COLOURS[1], "same sign"), (opposite, COLOURS[2], "opposite signs")):
        share = f"{label}, {100 * chosen.mean():.0f} %"
        points = shift.fixed_slopes[chosen], shift.total_slopes[chosen]
        right.scatter(*points, s=7, color=colour, alpha=0.6, label=share, rasterized=True)
    right.axhline(0.0, color=COLOURS[0], linewidth=0.8)
    right.axvline(0.0, color=COLOURS[0], linewidth=0.8)
    right.set(xlabel="slope on fixed contexts", ylabel="slope of on-policy mean entropy")
    right.set_title(f"{len(opposite)} random policies", fontsize=9)
    right.legend(loc="lower right")
    return figure
