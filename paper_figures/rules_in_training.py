"""Entropy, reward and distinct right answers through real GRPO training, by rule."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Entropy, reward and diversity by rule"
STATEMENT = "Clip_B and Clip_V of arXiv 2602.03392, with the rivals that section 4.2 of it discusses"
RERUN = "python simulations/clipping_methods.py"
PANELS = (
    ("entropy", "entropy (nats)"),
    ("reward", "reward"),
    ("distinct_right", "distinct right answers of 16"),
)


def caption() -> str:
    record = style.read("clipping_methods")
    config, real = record["configuration"], record["summary"]["real"]
    words = "; ".join(f"{style.NAMES[rule]} {style.spread(row['entropy'])}" for rule, row in real.items())
    return (
        f"GRPO on the sum task, decoder of 85,000 parameters, {config['real_steps']} steps, "
        f"{len(config['real_seeds'])} seeds: means over neighbouring steps and seeds, each seed thin. The random mask "
        f"drops as many tokens as Clip_B. Entropy over the last ten steps: {words} nats (± 95 % t-interval)."
    )


def draw() -> Figure:
    record = style.read("clipping_methods")
    figure, axes = style.new(columns=3, width=style.PAGE, height=2.4)
    colors = (style.INK, style.BLUE, style.RED, style.GREEN, style.PINK, style.ORANGE)
    for index, rule in enumerate(record["configuration"]["real_rules"]):
        curves = [entry["curves"] for entry in style.runs_of(record, rule)]
        for axis, (name, label) in zip(axes, PANELS, strict=True):
            dashes = style.DASHES[index % 4]
            style.band(
                axis,
                curves[0]["step"],
                [entry[name] for entry in curves],
                colors[index],
                linestyle=dashes,
                label=style.NAMES[rule],
            )
            axis.set(xlabel="GRPO step", ylabel=label)
    for axis, top in zip(axes, (1.05, 1.0, 16.0), strict=True):
        axis.set_ylim(0, top)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    style.letters(axes)
    return figure
