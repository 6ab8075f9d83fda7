"""The figure of the lens: predicted change of entropy of every rule, by quadrant, beside the matched random mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_theory.report.figures import COLOURS, figure_function, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUADRANTS = (("q1", COLOURS[2]), ("q2", COLOURS[1]), ("q3", COLOURS[5]), ("q4", COLOURS[6]))


@figure_function
def lens_figure(table: Mapping[str, Any]) -> Figure:
    """Draw, for every rule, the predicted total with its interval, and its split over the quadrants."""
    rows = table["rows"]
    places = list(range(len(rows)))[::-1]
    figure, axes = new_figure(columns=2, width=4.2, height=1.2 + 0.2 * len(rows))
    left, right = axes
    for place, row in zip(places, rows, strict=True):
        total = row["total"]
        left.plot([total["low"], total["high"]], [place, place], color=COLOURS[1], linewidth=2, alpha=0.5)
        left.plot([total["value"]], [place], "o", color=COLOURS[1], markersize=4)
        if row["random_total"] is not None:
            left.plot([row["random_total"]], [place], "|", color=COLOURS[2], markersize=9, markeredgewidth=1.5)
        up = down = 0.0
        parts = [*((row["quadrants"][name], colour) for name, colour in _QUADRANTS)]
        parts.append((row["quadrants"]["none"], COLOURS[4]))
        for value, colour in parts:
            start = up if value > 0 else down
            right.barh(place, value, left=start, color=colour, height=0.7)
            up, down = (up + value, down) if value > 0 else (up, down + value)
        right.plot([row["total"]["value"]], [place], "|", color=COLOURS[0], markersize=9, markeredgewidth=1.5)
    left.axvline(rows[0]["total"]["value"], color=COLOURS[0], linewidth=0.7, linestyle=":")
    for axis in axes:
        axis.axvline(0, color=COLOURS[0], linewidth=0.7)
        axis.set_ylim(-0.7, len(rows) - 0.3)
        axis.set_xlabel("predicted change of mean entropy, unit step (nats)")
        axis.locator_params(axis="x", nbins=5)
    left.set_yticks(places, [row["rule"] for row in rows], fontsize=7)
    right.set_yticks([])
    names = ["matched random mask", *(name.upper() for name, _ in _QUADRANTS), "no quadrant"]
    marks = [left.plot([], [], "|", color=COLOURS[2], markersize=9, markeredgewidth=1.5)[0]]
    marks += [right.barh([0], [0], color=colour)[0] for colour in (*(c for _, c in _QUADRANTS), COLOURS[4])]
    figure.legend(marks, names, loc="outside upper center", ncols=6)
    return figure
