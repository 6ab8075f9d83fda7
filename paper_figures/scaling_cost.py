"""Cost and error of token statistics against the vocabulary."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Cost and error of token statistics"
STATEMENT = "Part C of the theory notes"
RERUN = "python simulations/scaling.py"
IMPLEMENTATIONS = (("amax", "one amax", "0.5"), ("eager", "eager", style.RED), ("fused-cpu", "fused-cpu", style.BLUE))


def caption() -> str:
    config = style.read("scaling")["configuration"]
    return (
        "(a) Processor time of all token statistics per logit, one thread, gaussian logits of deviation 1 to 12, "
        f"{config['batches'][-1]} tokens, float32 (solid) and bfloat16 (dashed), mean of {len(config['seeds'])} "
        "seeds, 95 % t-intervals. (b) Largest relative error of S_c against float64 over all batches and seeds. "
        "Times are those of one machine with other work on it: take the ratios."
    )


def draw() -> Figure:
    record = style.read("scaling")
    config, summary = record["configuration"], record["summary"]
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.4)
    sizes, tokens = config["vocab_sizes"], config["batches"][-1]
    for impl, label, color in IMPLEMENTATIONS:
        for dtype, dashes in (("float32", "-"), ("bfloat16", "--")):
            times = [summary[f"V={size}, B={tokens}, {dtype}"][impl]["ns_per_logit"] for size in sizes]
            style.points(left, sizes, times, color, linestyle=dashes, label=label if dtype == "float32" else None)
            if impl != "amax":
                errors = [
                    max(
                        row[impl]["worst_error"]
                        for key, row in summary.items()
                        if key.startswith(f"V={size},") and dtype in key
                    )
                    for size in sizes
                ]
                right.plot(sizes, errors, dashes, color=color, marker="o", markersize=3)
    left.set(xscale="log", yscale="log", xlabel="vocabulary size V", ylabel="ns per logit", ylim=(0.02, 900))
    right.set(
        xscale="log",
        yscale="log",
        xlabel="vocabulary size V",
        ylabel="worst relative error of S$_c$",
        ylim=(1e-8, 2e-4),
    )
    left.legend(loc="upper right", ncols=3, columnspacing=1.0)
    style.letters((left, right))
    return figure
