"""Final entropy against the share of high-entropy tokens trained on, and against the weight of unlikely positives."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "80/20 and positive re-weighting"
STATEMENT = "Section 4.2 of arXiv 2602.03392"
RERUN = "python simulations/unified_lens.py"


def share_rule(share: float) -> str:
    """The name under which a share is recorded."""
    return "none" if share == 1 else "high-entropy" if share == 0.2 else f"high-entropy(share={share:g})"


def weight_rule(weight: float) -> str:
    """The name under which a weight is recorded."""
    return "none" if weight == 1 else f"stare(up={weight:g}, up_max={max(weight, 1.5):g}, target=None)"


def caption() -> str:
    config = style.read("unified_lens")["configuration"]
    return (
        "Final entropy (blue, left axis) and reward (orange, right axis) against (a, b) the share ρ of tokens with "
        "the highest entropy that are trained on and (c, d) the weight of the least likely tenth of the positive "
        f"tokens; (a, c) bank of forking policies, {len(config['seeds'])} seeds, {config['steps']} steps, (b, d) "
        f"real GRPO loop, {len(config['real_seeds'])} seeds, {config['real_steps']} steps. Bars are 95 % t-intervals "
        "over seeds."
    )


def draw() -> Figure:
    record = style.read("unified_lens")
    config, summary = record["configuration"], record["summary"]
    figure, axes = style.new(columns=4, width=style.PAGE, height=2.1)
    panels = (
        (axes[0], "bank", share_rule, config["shares"], "share ρ", "bank"),
        (axes[1], "real", share_rule, config["real_shares"], "share ρ", "real loop"),
        (axes[2], "bank", weight_rule, config["weights"], "weight", "bank"),
        (axes[3], "real", weight_rule, config["real_weights"], "weight", "real loop"),
    )
    for axis, place, rule, values, label, title in panels:
        rows = [summary[place][rule(value)] for value in values]
        other = axis.twinx()
        style.points(axis, values, [row["entropy"] for row in rows], style.BLUE)
        style.points(other, values, [row["reward"] for row in rows], style.ORANGE, marker="s", linestyle="--")
        axis.set(xlabel=label, title=title)
        axis.set_ylim(bottom=0)
        other.set_ylim(bottom=0)
        other.grid(visible=False)
        other.tick_params(axis="y", colors=style.ORANGE)
        axis.tick_params(axis="y", colors=style.BLUE)
    axes[0].set_ylabel("final entropy (nats)", color=style.BLUE)
    other.set_ylabel("final reward", color=style.ORANGE)
    style.letters(axes)
    return figure
