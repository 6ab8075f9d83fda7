"""Matplotlib figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory.records import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart in print and with colour-blind eyes.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


def new_figure(columns: int = 1, rows: int = 1, width: float = 3.4, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Open a figure in the project's style, without pyplot's global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows))
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the ending of the path chooses the format."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), written_whole(path) as temporary:
        figure.savefig(temporary)


def training_curves(runs: Sequence[dict[str, Any]]) -> Figure:
    """Draw entropy, reward and distinct right answers against the step, one colour per arm, one line per seed.

    Args:
        runs: Dicts with ``arm``, ``seed`` and ``lines``, the records of ``metrics.jsonl``.

    Returns:
        A figure of three panels; a panel without data is left out.
    """
    panels = [("entropy", "entropy (nats)"), ("reward", "reward"), ("distinct_right", "distinct right answers")]
    panels = [p for p in panels if any(line.get(p[0]) is not None for run in runs for line in run["lines"])]
    figure, axes = new_figure(columns=len(panels))
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    for axis, (name, label) in zip(axes, panels, strict=True):
        for run in runs:
            points = [(line["step"], line[name]) for line in run["lines"] if line.get(name) is not None]
            steps, values = zip(*points, strict=True)
            colour = COLOURS[arms.index(run["arm"]) % len(COLOURS)]
            axis.plot(steps, _smooth(values), color=colour, linewidth=1.4, alpha=0.9)
        axis.set_xlabel("GRPO step")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    for index, arm in enumerate(arms):
        axes[0].plot([], [], color=COLOURS[index % len(COLOURS)], label=arm)
    axes[0].legend()
    return figure


def _smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Average over the last ``window`` values; a batch of 256 completions is noisy."""
    means = []
    for i in range(len(values)):
        last = values[max(0, i - window + 1) : i + 1]
        means.append(sum(last) / len(last))
    return means
