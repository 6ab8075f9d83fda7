"""What the thresholds of Clip_B and Clip_V do, and from which batch size on anything."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Thresholds"
STATEMENT = "Clip_B and Clip_V of arXiv 2602.03392, as in the official code"
RERUN = "python simulations/hyperparameter_sweep.py"
FAMILIES = (
    ("Clip_B", "clip_b", "clip-b(mu={:g})", style.BLUE),
    ("Clip_V", "clip_v", "clip-v(mu={:g}, max_fraction=None)", style.RED),
)
VOCABULARY = 100


def caption() -> str:
    record = style.read("hyperparameter_sweep")
    config, bank, real = record["configuration"], record["summary"]["bank"], record["summary"]["real"]
    row = record["summary"]["drops"]["V=100, n=102400"]
    return (
        "Final entropy (a) and reward (b) against μ, Clip_V without its cap: filled, a bank of forking policies, "
        f"{len(config['seeds'])} seeds, {config['steps']} steps; open, the real GRPO loop, "
        f"{len(config['real_seeds'])} seeds, {config['real_steps']} steps; dotted, no control on the bank "
        f"({style.spread(bank['none']['entropy'])} nats) and in the real loop ({real['none']['entropy']['mean']:.2f}). "
        "Bars are 95 % t-intervals, small dots the seeds of the real loop. (c) Tokens with A < 0 dropped from one "
        f"batch against its size, V = {VOCABULARY}, mean of 3 seeds. The official thresholds drop "
        f"{row['clip-b(mu=2.5)']:g} (Clip_B, μ = 2.5) and {row['clip-v(mu=8.5)']:g} (Clip_V, μ = 8.5) of 102,400."
    )


def draw() -> Figure:
    record = style.read("hyperparameter_sweep")
    config, summary = record["configuration"], record["summary"]
    figure, axes = style.new(columns=3, width=style.PAGE, height=2.4)
    for axis, metric, label in ((axes[0], "entropy", "final entropy (nats)"), (axes[1], "reward", "final reward")):
        for index, (name, field, spec, color) in enumerate(FAMILIES):
            mus = config[field]
            rows = [summary["bank"][spec.format(mu)][metric] for mu in mus]
            style.points(axis, mus, rows, color, marker=style.MARKERS[index], label=f"{name}, bank")
            known = [mu for mu in mus if spec.format(mu) in config["real_rules"]]
            style.points(
                axis,
                known,
                [summary["real"][spec.format(mu)][metric] for mu in known],
                color,
                marker=style.MARKERS[index],
                markerfacecolor="white",
                linestyle="--",
                label=f"{name}, real",
            )
        for place in ("bank", "real"):
            axis.axhline(summary[place]["none"][metric]["mean"], color=style.INK, linewidth=0.8, linestyle=":")
        axis.set(xlabel="threshold μ", ylabel=label, xscale="log")
        axis.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
        axis.minorticks_off()
    sizes = [n for v, n in config["batches"] if v == VOCABULARY]
    shades = {"Clip_B": (0.5, 1.0, 1.5), "Clip_V": (1.0, 2.0, 4.0)}
    for index, (name, _, spec, color) in enumerate(FAMILIES):
        for mu, dashes in zip(shades[name], style.DASHES, strict=False):
            counts = [summary["drops"][f"V={VOCABULARY}, n={n}"][spec.format(mu)] for n in sizes]
            axes[2].plot(
                sizes,
                counts,
                dashes,
                color=color,
                marker=style.MARKERS[index],
                markersize=3,
                label=f"{name}, μ = {mu:g}",
            )
    axes[2].set(xscale="log", xlabel="tokens in the batch", ylabel="tokens dropped")
    axes[2].set_yscale("symlog", linthresh=1)
    axes[2].set_ylim(-0.2, 1e8)
    axes[2].legend(loc="upper left", ncols=2, fontsize=6, columnspacing=0.6, handlelength=1.2)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    style.letters(axes)
    return figure
