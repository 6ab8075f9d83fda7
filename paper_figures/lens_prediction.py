"""What the lens predicts for each rule against what the update does."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Lens prediction against realised change"
STATEMENT = "Theorem 3.3, summed over a batch and split by rule"
RERUN = "python simulations/lens_against_realised.py"


def caption() -> str:
    record = style.read("lens_against_realised")
    summary, config = record["summary"], record["configuration"]
    return (
        f"Change of mean entropy of a bank of {config['policies']:,} forking policies under one update, predicted by "
        f"the lens and exact, {len(config['rules'])} rules × {len(config['seeds'])} seeds, a colour per seed. "
        f"Correlation over the rules of a seed: Pearson {summary['pearson']['mean']:.4f}, ranks "
        f"{summary['spearman']['mean']:.3f}; the signs agree on {summary['sign_agreement']:.0%}; of "
        f"{summary['predicted_falls']} predicted falls {summary['predicted_falls_that_rose']} rose."
    )


def draw() -> Figure:
    record = style.read("lens_against_realised")
    figure, (axis,) = style.new(width=style.COLUMN, height=2.9)
    seeds = record["configuration"]["seeds"]
    colors = (style.BLUE, style.RED, style.GREEN, style.PINK, style.ORANGE)
    axis.axline((0, 0), slope=1, color=style.INK, linewidth=0.7)
    for index, seed in enumerate(seeds):
        pairs = [(p["predicted"], p["realised"]) for p in record["pairs"] if p["seed"] == seed]
        axis.plot(*zip(*pairs, strict=True), style.MARKERS[index], color=colors[index], markersize=3.2, alpha=0.7)
    axis.axhline(0, color=style.INK, linewidth=0.4, linestyle=":")
    axis.axvline(0, color=style.INK, linewidth=0.4, linestyle=":")
    axis.ticklabel_format(style="sci", scilimits=(-2, 2))
    axis.locator_params(nbins=5)
    axis.set(xlabel="predicted ΔH (nats)", ylabel="realised ΔH (nats)")
    return figure
