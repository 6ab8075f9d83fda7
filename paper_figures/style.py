"""One style for all paper figures, and the two places they go to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_theory import records
from entropy_theory.intervals import t_interval
from entropy_theory.report import figures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "simulations" / "results"
OUT = ROOT / "paper_figures" / "out"
GALLERY = ROOT / "docs" / "images" / "gallery"

COLUMN, PAGE = 3.3, 6.8  # inches: one column of a paper, and its page
INK, BLUE, RED, GREEN, PINK, SKY, ORANGE = figures.COLOURS
RISE, FALL = BLUE, RED  # of entropy, in every figure
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's colours, in sizes that are read in print."""
    sizes: dict[Any, Any] = {
        "font.size": 8,
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "lines.linewidth": 1.2,
        "axes.linewidth": 0.7,
        "legend.handlelength": 1.6,
        "legend.borderaxespad": 0.3,
        "pdf.fonttype": 42,  # text stays text
        "figure.constrained_layout.w_pad": 0.03,
        "figure.constrained_layout.h_pad": 0.03,
    }
    with figures.style(), mpl.rc_context(sizes):
        yield


def new(columns: int = 1, rows: int = 1, width: float = COLUMN, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Open a figure of a given total size in inches."""
    return figures.new_figure(columns, rows, width / columns, height / rows)


def read(name: str) -> dict[str, Any]:
    """Read a recorded result."""
    measured: dict[str, Any] = records.read_json(RESULTS / f"{name}.json")
    return measured


def letters(axes: Sequence[Axes]) -> None:
    """Name the panels (a), (b), ... above their left corners."""
    for letter, axis in zip("abcdefgh", axes, strict=False):
        axis.set_title(f"({letter})" + (f" {title}" if (title := axis.get_title()) else ""), loc="left", fontsize=8)
        axis.set_title("")


def band(axis: Axes, x: Any, curves: Sequence[Sequence[float]], color: str, **line: Any) -> None:
    """Draw the mean of several seeds' curves, with its 95 % t-interval, or with thin lines for fewer than five."""
    stacked = np.array(curves, dtype=float)
    mean = stacked.mean(axis=0)
    axis.plot(x, mean, color=color, **line)
    if len(stacked) >= 5:
        half = np.array([t_interval(list(column)).half_width for column in stacked.T])
        axis.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    elif len(stacked) > 1:
        for curve in stacked:
            axis.plot(x, curve, color=color, linewidth=0.5, alpha=0.35, linestyle=line.get("linestyle", "-"))


def point(axis: Axes, x: float, y: dict[str, Any], color: str, **mark: Any) -> None:
    """Draw a recorded mean with its interval."""
    settings: dict[str, Any] = {"marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 0.9, "linestyle": "none"}
    axis.errorbar([x], [y["mean"]], [[y["half_width"] or 0.0]], color=color, **settings | mark)


def difference(measured: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The difference of two recorded means over the same seeds, seed by seed."""
    paired = t_interval([a - b for a, b in zip(measured["values"], base["values"], strict=True)])
    return {"mean": paired.mean, "half_width": paired.half_width}


def points(axis: Axes, x: Sequence[float], ys: Sequence[dict[str, Any]], color: str, **mark: Any) -> None:
    """Draw recorded means along a line: with their intervals, or for fewer than three seeds with the seeds as dots."""
    settings: dict[str, Any] = {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 0.9}
    few = len(ys[0]["values"]) < 3
    halves = [0.0 if few else y["half_width"] for y in ys]
    axis.errorbar(list(x), [y["mean"] for y in ys], halves, color=color, **settings | mark)
    if few:
        dots = [(place, value) for place, y in zip(x, ys, strict=True) for value in y["values"]]
        axis.plot(*zip(*dots, strict=True), ".", color=color, markersize=2.5)


NAMES = {
    "none": "no control",
    "clip-b(mu=1)": "Clip_B, μ = 1",
    "clip-v(mu=2, max_fraction=None)": "Clip_V, μ = 2",
    "random-mask(match='clip-b(mu=1)')": "random mask",
    "high-entropy": "80/20",
    "stare(up=2, up_max=2, target=None)": "up-weighted, ×2",
}


def runs_of(record: dict[str, Any], rule: str, kind: str = "prompts") -> list[dict[str, Any]]:
    """Results of the real runs (kind "prompts") or bank runs ("policies") of a rule, all its seeds."""
    return [
        entry["result"]
        for entry in record["results"]
        if kind in entry["task"] and entry["task"].get("rule") == rule and entry["task"]["steps"]
    ]


def spread(measured: dict[str, Any], digits: int = 2) -> str:
    """Write a mean with its interval, for captions."""
    width = measured["half_width"]
    return f"{measured['mean']:.{digits}f}" + ("" if width is None else f" ± {width:.{digits}f}")


def plane(vocab_size: int, points: int = 400) -> tuple[Any, Any, Any]:
    """The points (p, H) that a policy of V tokens can have, p evenly spaced in the logit: p, H and whether."""
    from scipy.special import expit, xlogy

    p = expit(np.linspace(-9.0, 7.0, points))
    H = np.linspace(0.0, math.log(vocab_size), points)
    P, entropies = np.meshgrid(p, H)
    own = -xlogy(P, P) - xlogy(1 - P, 1 - P)
    return P, entropies, (entropies >= own + 1e-9) & (entropies <= own + (1 - P) * math.log(vocab_size - 1) - 1e-9)


def even_rest(p: Any, H: Any) -> tuple[Any, Any]:
    """S and S_c over the plane, for policies whose other probability is spread evenly over e^H_rest tokens."""
    from entropy_theory.theory.single_logit import rest_entropy

    S = p * (H + np.log(p))
    own = -p * np.log(p) - (1 - p) * np.log1p(-p)
    each = np.log1p(-p) - rest_entropy(p, np.maximum(H, own))
    # N = Σ p_i S_i with the others' probability 1 − p in parts of size e^each
    return S, (1 - p) * (S - np.exp(each) * (H + each))


def rival_rest(p: Any, H: Any) -> Any:
    """S_c over the plane when half of the other probability sits on one token and half is even; NaN if impossible."""
    from entropy_theory.theory.single_logit import rest_entropy

    own = -p * np.log(p) - (1 - p) * np.log1p(-p)
    spread = 2.0 * (rest_entropy(p, np.maximum(H, own)) - math.log(2.0))  # log of the number of even tokens
    rival = np.log1p(-p) - math.log(2.0)
    each = rival - np.maximum(spread, 0.0)
    S = p * (H + np.log(p))
    baseline = p * S + np.exp(rival) * (np.exp(rival) * (H + rival) + np.exp(each) * (H + each))
    return np.where(spread >= 0.0, S - baseline, np.nan)


def logit_axis(axis: Axes) -> None:
    """Label p on a logit axis with few, plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    axis.set_xscale("logit")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{tick:g}" for tick in ticks])
    axis.set_xlabel("probability p of the token")


def shrink(path: Path) -> None:
    """Write a PNG with a palette, at a third of its size."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def make(module: ModuleType) -> list[Path]:
    """Draw a figure as vector PDF and PNG for print, and as PNG for the gallery."""
    name = module.__name__.rpartition(".")[2]
    with style():
        figure = module.draw()
        width, _ = figure.get_size_inches()
        assert width in (COLUMN, PAGE), f"{name} is {width} in wide"
        targets = {OUT / f"{name}.pdf": 300, OUT / f"{name}.png": 300, GALLERY / f"{name}.png": 150}
        for path, dpi in targets.items():
            metadata = {"CreationDate": None, "ModDate": None} if path.suffix == ".pdf" else {"Software": None}
            with records.written_whole(path) as temporary:
                figure.savefig(temporary, dpi=dpi, facecolor="white", metadata=metadata)
                if path.parent == GALLERY:
                    shrink(temporary)
    return list(targets)
