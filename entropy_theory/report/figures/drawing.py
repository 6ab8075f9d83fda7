"""Matplotlib figures, drawn without a display. They read numbers and compute none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from entropy_theory.records import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
# Okabe and Ito's colours, told apart in print and with colour-blind eyes, after the text's own; lighter on dark pages.
_PALETTE = {
    "light": ("#1a1a1a", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    "dark": ("#e6e6e6", "#56B4E9", "#FF8C42", "#2BC79A", "#E39BC6", "#8AA8FF", "#E6B422"),
}
COLOURS = tuple(f"C{i}" for i in range(7))  # names that take the theme's colour where a figure is drawn
SMOOTHED_STEPS = 9
"""Steps that a point of a training curve is the mean of; the first points have fewer before them."""


@contextmanager
def style(theme: Theme = "light") -> Iterator[None]:
    """Draw in the project's style; the background is transparent, so that a page shows through."""
    import matplotlib as mpl
    from cycler import cycler

    ink = _PALETTE[theme][0]
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.dpi": 160,
        "svg.fonttype": "path",  # the reader's machine need not have our font
        "svg.hashsalt": "entropy_theory",  # the same figure twice is the same file
        "axes.prop_cycle": cycler(color=_PALETTE[theme]),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
    }
    with mpl.rc_context(settings):
        yield


def figure_function(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a function draw in the project's style; it takes ``theme="light"`` or ``"dark"`` besides its arguments."""

    @functools.wraps(draw)
    def styled(*args: Any, theme: Theme = "light", **kwargs: Any) -> Figure:
        with style(theme):
            return draw(*args, **kwargs)

    return styled


def new_figure(columns: int = 1, rows: int = 1, width: float = 3.4, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Open a figure without pyplot's global state; call it inside ``style``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save(figure: Figure, path: Path, theme: Theme = "light") -> None:
    """Write a figure on a plain background; the ending of the path chooses the format."""
    with style(theme), written_whole(path) as temporary:
        figure.savefig(temporary, facecolor="white" if theme == "light" else "#16181d")


def to_svg(figure: Figure, theme: Theme = "light") -> str:
    """Return a figure as SVG text with a transparent background."""
    import io

    buffer = io.StringIO()
    with style(theme):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


@figure_function
def training_curves(
    runs: Sequence[Mapping[str, Any]],
    finals: Mapping[str, Mapping[str, Any]] | None = None,
    answers: tuple[str, str] = ("distinct_right", "distinct right answers"),
) -> Figure:
    """Draw entropy, reward and distinct answers against the step: a colour per arm, a thin line per seed.

    Args:
        runs: Dicts with ``arm``, ``seed`` and ``lines``, the records of ``metrics.jsonl``.
        finals: Per arm and metric a dict with ``mean`` and ``half_width`` of the last steps' t-interval, drawn as an
            error bar beside the curves.
        answers: The metric that counts answers, and its label.

    Returns:
        A figure of up to three panels; a panel without data is left out.
    """
    panels = [("entropy", "entropy (nats)"), ("reward", "reward"), answers]
    panels = [p for p in panels if any(line.get(p[0]) is not None for run in runs for line in run["lines"])]
    figure, axes = new_figure(columns=len(panels))
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    last = max(line["step"] for run in runs for line in run["lines"])
    for axis, (name, label) in zip(axes, panels, strict=True):
        for index, arm in enumerate(arms):
            colour = COLOURS[index % len(COLOURS)]
            for run in runs:
                if run["arm"] != arm:
                    continue
                points = [(line["step"], line[name]) for line in run["lines"] if line.get(name) is not None]
                steps, values = zip(*points, strict=True)
                axis.plot(steps, _smooth(values), color=colour, linewidth=1.0, alpha=0.8, label=arm)
            interval = (finals or {}).get(arm, {}).get(name)
            if interval and interval["half_width"] is not None:
                axis.errorbar(
                    [last * (1.04 + 0.035 * index)],
                    [interval["mean"]],
                    [[interval["half_width"]]],
                    color=colour,
                    marker="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1.2,
                )
        axis.set_xlabel("GRPO step")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(list(unique.values()), list(unique), loc="outside upper center", ncols=len(unique))
    return figure


@figure_function
def prediction_scatter(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw realised against predicted change of entropy with the line y = x."""
    figure, axes = new_figure(columns=len(panels), width=3.6, height=3.2)
    for axis, panel in zip(axes, panels, strict=True):
        predicted, realised = list(panel["predicted"]), list(panel["realised"])
        bound = 1.05 * max(map(abs, [*predicted, *realised]), default=1.0)
        axis.axline((0, 0), slope=1, color=COLOURS[2], linewidth=0.8, zorder=1, label="y = x")
        axis.scatter(predicted, realised, s=7, alpha=0.5, color=COLOURS[1], linewidths=0, zorder=2)
        axis.set(xlim=(-bound, bound), ylim=(-bound, bound), xlabel="predicted ΔH (nats)", ylabel="realised ΔH (nats)")
        axis.set_title(panel["title"], fontsize=9)
        axis.ticklabel_format(style="sci", scilimits=(-2, 2))
        axis.legend(loc="upper left")
    return figure


@figure_function
def simulation(steps: Mapping[str, Sequence[float]], pairs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a simulation: entropy, what its first order predicts from the start, reward, and single policies' changes.

    Args:
        steps: Columns ``step``, ``entropy_before``, ``predicted_change``, ``realised_change``, ``reward``.
        pairs: Columns ``predicted`` and ``realised``.
    """
    figure, axes = new_figure(columns=3)
    axes[0].plot(steps["step"], steps["entropy_before"], color=COLOURS[1], linewidth=1.2)
    axes[0].set(xlabel="step", ylabel="mean entropy (nats)")
    axes[1].plot(steps["step"], steps["realised_change"], color=COLOURS[1], linewidth=1.2, label="realised")
    axes[1].plot(
        steps["step"], steps["predicted_change"], color=COLOURS[2], linewidth=1, linestyle="--", label="predicted"
    )
    axes[1].set(xlabel="step", ylabel="mean ΔH per update (nats)")
    axes[1].legend()
    bound = 1.05 * max((abs(float(x)) for x in (*pairs["predicted"], *pairs["realised"])), default=1.0) or 1.0
    axes[2].axline((0, 0), slope=1, color=COLOURS[2], linewidth=0.8, zorder=1, label="y = x")
    axes[2].scatter(pairs["predicted"], pairs["realised"], s=4, alpha=0.5, color=COLOURS[1], linewidths=0, zorder=2)
    axes[2].set(xlim=(-bound, bound), ylim=(-bound, bound), xlabel="predicted ΔH, one policy", ylabel="realised ΔH")
    axes[2].legend(loc="upper left")
    return figure


@figure_function
def four_conditions(conditions: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the entropy of the four interventions against the step, relative to the start."""
    figure, axes = new_figure(width=4.6, height=3.0)
    for index, condition in enumerate(conditions):
        start = condition["entropy"][0]
        arrow = "rises" if condition["predicted_sign"] > 0 else "falls"
        axes[0].plot(
            [h - start for h in condition["entropy"]],
            color=COLOURS[1 + index],
            linestyle="-" if index < 2 else "--",  # two pairs of curves almost coincide
            label=f"{condition['name']}: predicted {arrow}",
        )
    axes[0].axhline(0, linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="change of mean entropy (nats)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@figure_function
def centring(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the batch means of S and of S_c through training, one faint line per run."""
    figure, axes = new_figure(width=4.6, height=2.8)
    for name, label, colour in (
        ("entropy_control/mean_discriminant", "mean S", COLOURS[2]),
        ("entropy_control/mean_centered_discriminant", "mean S_c", COLOURS[1]),
    ):
        for index, run in enumerate(runs):
            points = [(line["step"], line[name]) for line in run["lines"] if line.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axes[0].plot(steps, values, color=colour, linewidth=0.9, alpha=0.7, label=None if index else label)
    axes[0].axhline(0, linewidth=0.8)
    axes[0].set(xlabel="GRPO step", ylabel="batch mean (nats)")
    axes[0].legend()
    return figure


def _smooth(values: Sequence[float], window: int = SMOOTHED_STEPS) -> list[float]:
    """Average over the last ``window`` values; a batch of 256 completions is noisy."""
    means = []
    for i in range(len(values)):
        last = values[max(0, i - window + 1) : i + 1]
        means.append(sum(last) / len(last))
    return means
