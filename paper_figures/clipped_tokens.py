"""Probability of the tokens that PPO clipping cuts, on a bank and in a real model."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Tokens that PPO clipping cuts"
STATEMENT = "Section 4.2 of arXiv 2602.03392: small probability, mostly S_c < 0"
RERUN = "python simulations/unified_lens.py"
EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIDES = (("high", "A > 0, r > 1.2", style.BLUE), ("low", "A < 0, r < 0.8", style.RED))


def caption() -> str:
    summary, config = style.read("unified_lens")["summary"], style.read("unified_lens")["configuration"]

    def words(place: str) -> str:
        cut = summary[f"cut_in_{place}"]["cut"]
        return (
            f"{100 * cut['share_up_to_15']['mean']:.0f} % have p ≤ .15 and "
            f"{100 * cut['share_negative_centered']['mean']:.0f} % S_c < 0"
        )

    return (
        "Cumulative share of tokens by their probability at the update, for those outside PPO's band of ± .2 on "
        f"each side and for all tokens with A ≠ 0. (a) Bank of forking policies, {len(config['seeds'])} seeds; of "
        f"the cut tokens {words('bank')}. (b) The small decoder trained by TRL, {len(config['real_seeds'])} seeds; "
        f"{words('model')}. Both {config['iterations']} updates per batch; a line per seed."
    )


def draw() -> Figure:
    record = style.read("unified_lens")
    figure, axes = style.new(columns=2, width=style.PAGE, height=2.4)
    for axis, field, title in ((axes[0], "policies", "bank"), (axes[1], "prompts", "real model")):
        measured = [r["result"] for r in record["results"] if field in r["task"] and "rule" not in r["task"]]
        for name, label, color in (*SIDES, ("all", "all, A ≠ 0", "0.5")):
            for index, entry in enumerate(measured):
                counts = np.array(entry[name]["histogram"])
                if counts.sum():
                    share = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
                    axis.plot(EDGES, share, color=color, linewidth=1.0, label=None if index else label)
        axis.axvline(0.15, color=style.INK, linewidth=0.8, linestyle=":")
        axis.set(
            xlabel="probability p of the token", ylabel="cumulative share", ylim=(0, 1.02), xlim=(0, 1), title=title
        )
        axis.legend(loc="lower right")
    style.letters(axes)
    return figure
