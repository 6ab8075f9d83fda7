"""S_c of sampled tokens over (p, H) in a real pre-trained model, by kind of token, untrained and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "The quadrants over a real vocabulary"
STATEMENT = "Theorem 3.3 and section B.14 of the theory notes, over the 49,152 tokens of SmolLM2-135M-Instruct"
RERUN = "python simulations/real_model.py"
KINDS = ("digits", "word", "piece of a word", "other signs", "special")
PANELS = (("top_p", "untrained"), ("rule", "trained without control"))


def sampled(record: dict[str, Any], field: str) -> np.ndarray:
    """Rows p, H, S_c, kind of sampled tokens: of the untrained model ("top_p") or of trained ones ("rule")."""
    tables = [entry["result"]["policy"] for entry in record["results"] if field in entry["task"]]
    return np.array([point for table in tables for point in table.get("points", [])]).reshape(-1, 4)


def caption() -> str:
    record = style.read("real_model")
    sentences = []
    for field, title in PANELS:
        points = sampled(record, field)
        if len(points):
            counts = ", ".join(
                f"{name} {np.mean(points[points[:, 3] == kind, 2] > 0):.0%} of {np.sum(points[:, 3] == kind)}"
                for kind, name in enumerate(KINDS)
                if np.any(points[:, 3] == kind)
            )
            sentences.append(f"{title}, share with S_c > 0 by kind: {counts}")
    return (
        "A subsample of the sampled tokens (at most 400 of a policy) by their probability and the entropy of "
        "their position: blue S_c < 0, red S_c > 0; solid marks are digits. Dotted: p = e^(−H), where S = 0. "
        "Of this subsample, " + "; ".join(sentences) + "."
    )


def draw() -> Figure:
    record = style.read("real_model")
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.5)
    edge = np.linspace(1e-3, np.log(49_152), 200)
    for axis, (field, title) in zip(axes, PANELS, strict=True):
        points = sampled(record, field)
        for color, where in ((style.RISE, points[:, 2] < 0), (style.FALL, points[:, 2] > 0)):
            digits = points[:, 3] == KINDS.index("digits")
            axis.plot(*points[where & digits, :2].T, ".", color=color, markersize=4)
            axis.plot(*points[where & ~digits, :2].T, "x", color=color, markersize=3, markeredgewidth=0.5)
        axis.plot(np.exp(-edge), edge, ":", color=style.INK, linewidth=1.2)
        style.logit_axis(axis)
        axis.set(ylabel="entropy H (nats)", xlim=(5e-4, 0.9995), ylim=(0, 8), title=title)
    style.letters(axes)
    return figure
