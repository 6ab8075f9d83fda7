"""The figure of the audit: predicted against realised changes of entropy where positions share their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropy_theory.report.figures import COLOURS, figure_function, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = {"sgd": "SGD", "adamw": "AdamW", "sgd-output": "SGD, output matrix only"}
PREDICTIONS = {
    "token": "tabular, own token",
    "context": "tabular, own context",
    "parameters": "first order in parameters",
}
PIECES = {
    "own": "own token",
    "context": "own context",
    "sharing": "sharing",
    "preconditioning": "preconditioning",
    "momentum": "momentum",
}
_MARKS = {"token": "o", "context": "s", "parameters": "D"}
_SHADES = ((COLOURS[0], 1.0), (COLOURS[0], 0.45), (COLOURS[4], 1.0), (COLOURS[5], 1.0), (COLOURS[6], 1.0))
_REACH = 3.0  # the scatter shows so many root mean squares; the few points beyond sit on the frame


@figure_function
def audit_figure(result: Mapping[str, Any]) -> Figure:
    """Draw an audit: two scatters, rank correlations, the parts of the first order, signs by quadrant and entropy."""
    arms = result["arms"]
    colours = {arm: COLOURS[1 + index] for index, arm in enumerate(arms)}
    figure, axes = new_figure(columns=3, rows=2, width=3.5, height=2.75)
    for axis, prediction in zip(axes[:2], ("token", "parameters"), strict=True):
        _scatter(axis, arms, prediction, colours)
    _ranks(axes[2], arms, colours)
    _pieces(axes[3], arms)
    _by_quadrant(axes[4], arms, colours)
    _by_entropy(axes[5], arms, colours)
    legend = [(ARMS.get(arm, arm), {"marker": "o", "color": colour}) for arm, colour in colours.items()]
    legend += [("", {})] * (len(PREDICTIONS) - len(legend))
    # columns are filled first: arms come out in the upper row, predictions in the lower
    marks, names = [], []
    for (arm, look), (prediction, label) in zip(legend, PREDICTIONS.items(), strict=True):
        mark = {"marker": _MARKS[prediction], "color": COLOURS[0], "fillstyle": _fill(prediction)}
        marks += [axes[0].plot([], [], linestyle="", markersize=4.5, **each)[0] for each in (look, mark)]
        names += [arm, label]
    figure.legend(marks, names, loc="outside upper center", ncols=len(PREDICTIONS))
    return figure


def _scatter(axis: Axes, arms: Mapping[str, Any], prediction: str, colours: Mapping[str, str]) -> None:
    axis.axline((0, 0), slope=1, color=COLOURS[0], linewidth=0.8, alpha=0.6, zorder=1)
    for arm, measured in arms.items():
        x, y = (_in_units_of_rms(measured["scatter"][name]) for name in (prediction, "realised"))
        axis.scatter(x, y, s=6, alpha=0.45, color=colours[arm], linewidths=0, zorder=2)
    axis.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH))
    axis.set(xlabel=f"{PREDICTIONS[prediction]} (r.m.s.)", ylabel="realised ΔH (r.m.s.)")


def _ranks(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        rows = [measured["own_effect"]["token"], *(measured["predictors"][prediction] for prediction in PREDICTIONS)]
        for place, row in enumerate(rows):
            _interval(axis, place + beside(index, arms), row, "rank_correlation", colours[arm], "token")
    axis.axvline(0.5, color=COLOURS[0], linewidth=0.7)
    labels = ["own token,\nown part of ΔH", "own\ntoken", "own\ncontext", "first order in\nparameters"]
    axis.set_xticks(range(4), labels, fontsize=7)
    axis.axhline(0, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set(ylabel="rank correlation with ΔH", ylim=(-0.2, 1.03))


def _pieces(axis: Axes, arms: Mapping[str, Any]) -> None:
    for place, measured in enumerate(arms.values()):
        end = 0.0
        for name, (colour, alpha) in zip(PIECES, _SHADES, strict=True):
            value = (measured["pieces"][name] or {"value": 0.0})["value"]
            axis.barh(-place, value, left=end, height=0.6, color=colour, alpha=alpha)
            end += value
    handles = [axis.barh([0], [0], color=colour, alpha=alpha)[0] for colour, alpha in _SHADES]
    axis.legend(handles, list(PIECES.values()), loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, fontsize=7)
    axis.set_yticks([-i for i in range(len(arms))], [ARMS.get(arm, arm).replace(", ", ",\n") for arm in arms])
    axis.set_title("mean share of |first-order ΔH|", fontsize=9)


def _by_quadrant(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        for place, quadrant in enumerate(("q1", "q2", "q3", "q4")):
            for prediction in _MARKS:
                row = measured["quadrants"][quadrant][prediction]
                _interval(axis, place + beside(index, arms), row, "sign_agreement", colours[arm], prediction)
    axis.set_xticks(range(4), ["Q1\nA>0, S_c>0", "Q2\nA>0, S_c<0", "Q3\nA<0, S_c>0", "Q4\nA<0, S_c<0"], fontsize=7)
    _chance(axis)


def _by_entropy(axis: Axes, arms: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for index, (arm, measured) in enumerate(arms.items()):
        for place, row in enumerate(measured["deciles"], start=1):
            for prediction in _MARKS:
                where = place + 1.2 * beside(index, arms)
                _interval(axis, where, row[prediction], "sign_agreement", colours[arm], prediction)
    axis.set_xticks(range(1, 11))
    axis.set_xlabel("decile of entropy")
    _chance(axis)


def _chance(axis: Axes) -> None:
    axis.axhline(0.5, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axis.set(ylabel="sign agreement", ylim=(-0.03, 1.03))


def _interval(
    axis: Axes, place: float, row: Mapping[str, Any], name: str, colour: str, prediction: str = "parameters"
) -> None:
    estimate_mark(axis, place, row[name], colour, _MARKS[prediction], _fill(prediction))


def estimate_mark(
    axis: Axes, place: float, estimate: Mapping[str, float] | None, colour: str, mark: str, fill: Any = "full"
) -> None:
    """Draw an estimate with its interval at a place of the horizontal axis; nothing for None."""
    if estimate is None:
        return
    axis.plot([place, place], [estimate["low"], estimate["high"]], color=colour, linewidth=1.2, alpha=0.7)
    axis.plot([place], [estimate["value"]], mark, color=colour, markersize=3.4, fillstyle=fill)


def _fill(prediction: str) -> Any:
    return "none" if prediction == "context" else "full"


def beside(index: int, arms: Mapping[str, Any]) -> float:
    """Move an arm's marks aside, so that those of several arms stand next to one another."""
    return 0.2 * (index - (len(arms) - 1) / 2)


def _in_units_of_rms(values: Sequence[float]) -> list[float]:
    size = (sum(v * v for v in values) / max(len(values), 1)) ** 0.5 or 1.0
    return [min(max(v / size, -_REACH), _REACH) for v in values]
