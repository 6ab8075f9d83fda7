"""Which token moves mean entropy: the tabular theory beside exact influence, and a run's entropy in two halves."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Shared parameters: influence and ledger"
STATEMENT = "Parts E and F of the theory notes: D_t = ⟨∇H̄, ∇log p_t⟩; on-policy entropy = fixed contexts + state shift"
RERUN = "python simulations/influence_and_ledger.py"
NAMES = {"decoder": "decoder of 85,000 parameters", "smollm2": "SmolLM2-135M-Instruct"}
COLORS = {"start": style.BLUE, "middle": style.GREEN, "collapsed": style.RED}
EVERY = 3  # of the recorded tokens, so that the page stays small


def models(record: dict[str, Any]) -> list[str]:
    """The models that the record has."""
    return [name for name in NAMES if name in record["summary"]]


def on_policy(record: dict[str, Any], model: str) -> list[dict[str, Any]]:
    """The results of a model's runs with one update per batch."""
    return [
        entry["result"]
        for entry in record["results"]
        if entry["task"]["model"] == model and entry["task"]["num_iterations"] == 1
    ]


def caption() -> str:
    record = style.read("influence_and_ledger")
    sentences = []
    for model in models(record):
        parts = record["summary"][model]
        stages = {name: variants["same"] for name, variants in parts["stages"].items() if variants["same"]}
        agree = ", ".join(
            f"{name} {style.spread(rows['plain/pearson'])} and {style.spread(rows['plain/sign_agreement'])}"
            for name, rows in stages.items()
        )
        ledger = parts["ledgers"]["1"]
        sentences.append(
            f"{NAMES[model]}: Pearson and share of equal signs over tokens {agree}; over a run entropy went from "
            f"{style.spread(ledger['start'])} to {style.spread(ledger['end'])} nats, fixed contexts "
            f"{style.spread(ledger['fixed'])}, state shift and sampling {style.spread(ledger['remainder'])}"
        )
    return (
        "Left: −S_c/n of the tabular theory against the exact influence D of each token on the mean entropy of its "
        "batch, both over their root mean square in the batch, on symmetric logarithmic axes. Right: the ledger of the "
        "runs; lines are seeds. " + ". ".join(sentences) + "."
    )


def draw() -> Figure:
    record = style.read("influence_and_ledger")
    shown = models(record)
    figure, axes = style.new(columns=2, rows=len(shown), width=style.PAGE, height=2.4 * len(shown))
    for model, (scatter, ledger) in zip(shown, zip(axes[::2], axes[1::2], strict=True), strict=True):
        runs = on_policy(record, model)
        at = {step: stage for stage, steps in stages_of(record, model).items() for step in steps}
        seen = set()
        for run in runs:
            for step, variants in run["probes"].items():
                x, D = (np.array(column)[::EVERY] for column in variants["same"]["points"][:2])
                x, D = (values / (np.sqrt(np.mean(values**2)) or 1.0) for values in (x, D))
                stage = at[step]
                label = None if stage in seen else stage
                seen.add(stage)
                scatter.plot(x, D, ".", markersize=2.5, alpha=0.5, color=COLORS[stage], label=label)
        scatter.set_xscale("symlog", linthresh=0.1)
        scatter.set_yscale("symlog", linthresh=0.1)
        ticks = [-10, -1, 0, 1, 10]
        scatter.set(xticks=ticks, yticks=ticks, xlabel="−S_c, tabular", ylabel="influence D", title=NAMES[model])
        scatter.axhline(0, color=style.INK, linewidth=0.5)
        scatter.axvline(0, color=style.INK, linewidth=0.5)
        scatter.legend(loc="lower center", markerscale=3)
        for number, run in enumerate(runs):
            parts = {name: np.cumsum(run["ledger"][name]) for name in ("fixed", "remainder")}
            steps = np.arange(1, len(parts["fixed"]) + 1)
            lines = {
                "entropy": (np.array(run["ledger"]["entropy"]), style.INK),
                "fixed contexts": (parts["fixed"], style.RED),
                "state shift and sampling": (parts["remainder"], style.BLUE),
            }
            for name, (values, color) in lines.items():
                ledger.plot(steps, values, color=color, linewidth=0.8, alpha=0.8, label=None if number else name)
        ledger.axhline(0, color=style.INK, linewidth=0.5)
        ledger.set(xlabel="update", ylabel="nats", title=NAMES[model])
        ledger.legend(loc="best")
    style.letters(axes)
    return figure


def stages_of(record: dict[str, Any], model: str) -> dict[str, list[str]]:
    """The steps of each stage, by the steps that were looked at: two of each, the stages in order."""
    steps = list(on_policy(record, model)[0]["probes"])
    names = list(record["summary"][model]["stages"])
    return {name: steps[2 * place : 2 * place + 2] for place, name in enumerate(names)}
