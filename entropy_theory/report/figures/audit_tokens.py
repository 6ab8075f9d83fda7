"""The audit's second figure: what each token does to mean entropy, by the tabular theory and exactly; and the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_theory.report.figures import COLOURS, figure_function, new_figure
from entropy_theory.report.figures.audit import ARMS, beside, estimate_mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ESTIMATES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "sign_agreement": "same\nsign",
    "strongest_shared": "same\nstrongest 3 %",
}
WAYS = {
    ("same", "plain"): ("own contexts", "o", "full"),
    ("same", "weighted"): ("own contexts, weighted by g", "s", "none"),
    ("crossed", "plain"): ("crossed contexts", "D", "full"),
}
"""How −S_c and the influence are compared: the contexts, the weights, and how it is drawn."""

_LINEAR = 1e-2  # root mean squares up to which the scatter's axes are linear


@figure_function
def audit_tokens_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the tokens' view: tokens, agreement, quadrants and entropy; predicted and realised mean; held-out parts."""
    arms = result["arms"]
    colours = {arm: COLOURS[1 + index] for index, arm in enumerate(arms)}
    figure, axes = new_figure(columns=3, rows=2, width=3.5, height=2.75)
    _scatter(axes[0], arms, colours)
    _overall(axes[1], arms, colours)
    _parts(axes[2], arms, colours)
    _by_entropy(axes[3], arms, colours)
    _means(axes[4], result, colours)
    _held_out(axes[5], result, colours)
    looks: list[tuple[str, dict[str, Any]]] = [
        (ARMS.get(arm, arm), {"marker": "o", "color": colour}) for arm, colour in colours.items()
    ]
    looks += [("", {})] * (len(WAYS) - len(looks))
    marks, names = [], []
    for look, (label, marker, fill) in zip(looks, WAYS.values(), strict=True):
        for name, each in (look, (label, {"marker": marker, "color": COLOURS[0], "fillstyle": fill})):
            marks += axes[0].plot([], [], linestyle="", markersize=4.5, **each)
            names.append(name)
    figure.legend(marks, names, loc="outside upper center", ncols=len(WAYS))
    return figure


def _scatter(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for arm, measured in arms.items():
        points = measured["tokens"]["same"]["scatter"]
        axis.scatter(points["predicted"], points["influence"], s=6, alpha=0.45, color=colours[arm], linewidths=0)
    for line in (axis.axhline, axis.axvline):
        line(0, color=COLOURS[0], linewidth=0.7, alpha=0.6, zorder=1)
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("symlog", linthresh=_LINEAR)  # the strongest tokens are thousands of times the weakest
    ticks = [sign * 10.0**power for sign, power in ((-1, 0), (-1, -2), (1, -2), (1, 0))]
    axis.set_xticks([*ticks, 0])
    axis.set_yticks([*ticks, 0])
    axis.set(xlabel="tabular −S_c of a token (r.m.s.)", ylabel="its influence n D (r.m.s.)")


def _overall(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        for number, ((over, kind), (_, mark, fill)) in enumerate(WAYS.items()):
            for place, name in enumerate(ESTIMATES):
                if measured["tokens"][over] is not None:
                    estimate = measured["tokens"][over][kind]["overall"][name]
                    where = place + beside(index, arms) + 0.06 * (number - 1)
                    estimate_mark(axis, where, estimate, colours[arm], mark, fill)
    axis.set_xticks(range(len(ESTIMATES)), list(ESTIMATES.values()), fontsize=7)
    axis.axhline(0, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set(ylabel="−S_c against influence", ylim=(-0.23, 1.03))


def _parts(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        for place, quadrant in enumerate(("q1", "q2", "q3", "q4")):
            row = measured["tokens"]["same"]["plain"]["quadrants"][quadrant]
            estimate_mark(axis, place + beside(index, arms), row["sign_agreement"], colours[arm], "o")
    axis.set_xticks(range(4), ["Q1\nA>0, S_c>0", "Q2\nA>0, S_c<0", "Q3\nA<0, S_c>0", "Q4\nA<0, S_c<0"], fontsize=7)
    axis.axhline(0.5, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set(ylabel="same sign", ylim=(-0.03, 1.03))


def _by_entropy(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        for place, row in enumerate(measured["tokens"]["same"]["plain"]["deciles"], start=1):
            estimate_mark(axis, place + beside(index, arms), row["spearman"], colours[arm], "o")
    axis.set_xticks(range(1, 11))
    axis.axhline(0, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set(xlabel="decile of entropy", ylabel="Spearman", ylim=(-1.03, 1.03))


def _means(axis: Axes, result: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    axis.axline((0, 0), slope=1, color=COLOURS[0], linewidth=0.8, alpha=0.6, zorder=1)
    for arm, rows in _by_arm(result).items():
        unit = _unit(rows)
        y = [row["mean_realised"] / unit for row in rows]
        for name, mark, fill in (("first_order_now", "^", "none"), ("mean_parameters", "o", "full")):
            x = [row[name] / unit for row in rows]
            axis.plot(x, y, mark, color=colours[arm], markersize=4, fillstyle=fill, linestyle="")
    for label, mark, fill in (("this gradient alone", "^", "none"), ("in all", "o", "full")):
        axis.plot([], [], mark, color=COLOURS[0], markersize=4, fillstyle=fill, label=label)
    axis.legend(fontsize=7)
    axis.set(xlabel="first-order ΔH̄ (r.m.s.)", ylabel="realised ΔH̄ (r.m.s.)")


def _held_out(axis: Axes, result: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    place, ticks = 0.0, []
    for arm, rows in _by_arm(result).items():
        unit, first = _unit(rows), place
        for row in rows:
            for name, mark, fill, aside in (("fixed", "o", "full", -0.15), ("shift", "^", "none", 0.15)):
                value, error = row[f"held_out_{name}"] / unit, row.get(f"held_out_{name}_error", 0.0) / unit
                ends = {"value": value, "low": value - error, "high": value + error}
                estimate_mark(axis, place + aside, ends, colours[arm], mark, fill)
            place += 1
        ticks.append(((first + place - 1) / 2, ARMS.get(arm, arm).replace(", ", ",\n").replace("output ", "output\n")))
        place += 1
    for label, mark, fill in (("fixed contexts", "o", "full"), ("state shift", "^", "none")):
        axis.plot([], [], mark, color=COLOURS[0], markersize=4, fillstyle=fill, label=label)
    axis.legend(fontsize=7)
    axis.axhline(0, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set_xticks(*map(list, zip(*ticks, strict=True)), fontsize=7)
    axis.set(ylabel="ΔM in held-out rollouts\n(r.m.s. of realised ΔH̄; ± 1 s.e.)")


def _by_arm(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    return {arm: [row for row in result["steps"] if row["arm"] == arm] for arm in result["arms"]}


def _unit(rows: list[Mapping[str, Any]]) -> float:
    """The root mean square of the realised change of mean entropy over the steps."""
    return (sum(row["mean_realised"] ** 2 for row in rows) / len(rows)) ** 0.5 or 1.0
