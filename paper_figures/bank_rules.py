"""Final entropy and reward of a bank of forking policies under every rule."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Every rule on one bank"
STATEMENT = "The methods table, in the theory's own world"
RERUN = "python simulations/clipping_methods.py"


def caption() -> str:
    config = style.read("clipping_methods")["configuration"]
    none = style.read("clipping_methods")["summary"]["bank"]["none"]
    return (
        "Difference to no control in final entropy, expected reward and distinct right tokens of 64: bank of "
        f"{config['policies']} forking policies of {config['vocab_size']} tokens, {config['steps']} batches with two "
        f"updates each, {len(config['seeds'])} seeds, paired by seed (mean, 95 % t-interval). No control ends at "
        f"{style.spread(none['entropy'])} nats, reward {style.spread(none['reward'])}, "
        f"{style.spread(none['distinct_right'])} distinct."
    )


def draw() -> Figure:
    bank = style.read("clipping_methods")["summary"]["bank"]
    figure, axes = style.new(columns=3, width=style.PAGE, height=4.0)
    rules = sorted((rule for rule in bank if rule != "none"), key=lambda rule: bank[rule]["entropy"]["mean"])
    metrics = (("entropy", "Δ entropy (nats)"), ("reward", "Δ reward"), ("distinct_right", "Δ distinct right of 64"))
    for axis, (metric, label) in zip(axes, metrics, strict=True):
        for place, rule in enumerate(rules):
            measured = style.difference(bank[rule][metric], bank["none"][metric])
            axis.errorbar(
                [measured["mean"]],
                [place],
                xerr=[[measured["half_width"] or 0.0]],
                fmt="o",
                markersize=3,
                linewidth=0.9,
                color=style.BLUE,
            )
        axis.axvline(0, color=style.INK, linewidth=0.7)
        axis.locator_params(axis="x", nbins=4)
        axis.set(xlabel=label, ylim=(-0.7, len(rules) - 0.3))
        axis.set_yticks(range(len(rules)), [rule.partition("(")[0] for rule in rules] if axis is axes[0] else [])
    style.letters(axes)
    return figure
