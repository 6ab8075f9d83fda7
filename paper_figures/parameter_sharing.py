"""How much of a real model's change of entropy the tabular theory explains: the audit."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Audit: what shared parameters change"
STATEMENT = "Section B.15 of the theory notes"
RERUN = "python simulations/shared_parameters.py"
ARMS = {"sgd": "SGD", "adamw": "AdamW", "sgd-output": "SGD, output matrix only"}
LABELS = ("own token,\nown part", "own token", "own context", "first order in\nparameters")


def rows(arm: dict[str, Any]) -> list[dict[str, Any]]:
    """What is predicted, from the tabular world to the whole model."""
    return [arm["own_effect"]["token"], *(arm["predictors"][name] for name in ("token", "context", "parameters"))]


def caption() -> str:
    record = style.read("shared_parameters")
    config, arms = record["configuration"], record["summary"]["arms"]
    words = "; ".join(
        f"{name} {measured[0]['sign_agreement']['value']:.0%} and {measured[1]['sign_agreement']['value']:.0%}"
        for name, measured in ((ARMS[arm], rows(values)) for arm, values in arms.items())
    )
    return (
        "Change of entropy at every position of a GRPO batch after one optimizer step of the small decoder, against "
        f"four predictions, {len(config['seeds'])} seeds × {len(config['at'])} steps: (a) share of positions with "
        "the predicted sign, (b) R² with a fitted step. Own part: the tabular prediction for the part of the change "
        "that the token itself causes at its own position. Bars are two-stage bootstrap intervals (95 %) over seeds "
        f"and groups. Sign of the own part, and of the whole change: {words}."
    )


def draw() -> Figure:
    arms = style.read("shared_parameters")["summary"]["arms"]
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.5)
    panels = (("sign_agreement", "share with the predicted sign"), ("r2_fitted", "R², step fitted"))
    for axis, (metric, label) in zip(axes, panels, strict=True):
        for index, (arm, color) in enumerate(zip(arms, (style.BLUE, style.RED, style.GREEN), strict=False)):
            measured = [row[metric] for row in rows(arms[arm])]
            axis.errorbar(
                [place + 0.18 * (index - 1) for place in range(4)],
                [entry["value"] for entry in measured],
                [
                    [max(0.0, entry["value"] - entry["low"]) for entry in measured],
                    [max(0.0, entry["high"] - entry["value"]) for entry in measured],
                ],
                fmt=style.MARKERS[index],
                markersize=4,
                capsize=2,
                linewidth=0.9,
                color=color,
                label=ARMS[arm],
            )
        axis.set_xticks(range(4), LABELS, fontsize=6.5)
        axis.set(ylabel=label, ylim=(-0.04, 1.04))
    axes[0].axhline(0.5, color=style.INK, linewidth=0.7, linestyle=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    style.letters(axes)
    return figure
