"""Remainders after the first and second order against the step size, from toy policies to a whole vocabulary."""

from __future__ import annotations

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "Slopes of the remainders"
STATEMENT = "Theorem 3.3; sections B.7 and B.8 of the theory notes"
RERUN = "python simulations/first_order_accuracy.py"
SIZES = ((10, style.BLUE, "o"), (1_000, style.GREEN, "^"), (151_936, style.RED, "s"))


def caption() -> str:
    record = style.read("first_order_accuracy")
    seeds = len(record["configuration"]["seeds"])
    summary = record["summary"]
    rows = [summary[f"V={size}, gaussian"] for size, _, _ in SIZES]
    wrong_falls = sum(sum(row["wrong_falls"]) for row in summary.values())
    sizes = len(record["configuration"]["sizes"])
    falls = sizes * sum(row["predicted_falls"] for row in summary.values())
    first = ", ".join(f"{row['first_order']['mean']:.3f}" for row in rows)
    second = ", ".join(f"{row['second_order']['mean']:.3f}" for row in rows)
    return (
        f"(a) Mean remainder of ΔH for single GRPO steps on sampled tokens, gaussian logits, {seeds} seeds (mean; "
        "the 95 % t-intervals are narrower than the marks). Slopes between α = .001 and .1: after the first order "
        f"{first}, after the second {second} for V = 10, 1,000 and 151,936. (b) Predicted rises that are falls, "
        f"gaussian (solid) and forking policies (dashed). Of {falls:,} predicted falls, {wrong_falls} were not."
    )


def draw() -> Figure:
    record = style.read("first_order_accuracy")
    figure, (left, right) = style.new(columns=2, width=style.PAGE, height=2.5)
    sizes = record["configuration"]["sizes"]
    for size, color, marker in SIZES:
        measured = [
            entry["result"]
            for entry in record["results"]
            if entry["task"]["vocab_size"] == size and entry["task"]["start"] == "gaussian"
        ]
        for name, dashes in (("first_order_error", "-"), ("second_order_error", "--")):
            mean = [sum(values) / len(measured) for values in zip(*(entry[name] for entry in measured), strict=True)]
            left.plot(sizes, mean, dashes, color=color, marker=marker, markersize=3)
        for start, dashes in (("gaussian", "-"), ("forking", "--")):
            row = record["summary"][f"V={size}, {start}"]
            share = [100 * wrong / row["predicted_rises"] for wrong in row["wrong_rises"]]
            right.plot(sizes, share, dashes, color=color, marker=marker, markersize=3)
    for axis in (left, right):
        for size, color, marker in SIZES:
            axis.plot([], [], color=color, marker=marker, markersize=3, label=f"V = {size:,}")
        axis.set(xscale="log", xlabel="step size |α|")
    left.plot([], [], color=style.INK, label="after first order, slope 2")
    left.plot([], [], "--", color=style.INK, label="after second order, slope 3")
    left.set(yscale="log", ylabel="mean |remainder| (nats)")
    left.legend(loc="lower right")
    right.set(ylabel="predicted rises that fall (%)", ylim=(-4, 104))
    right.legend(loc="upper left")
    style.letters((left, right))
    return figure
