"""Entropy, reward and distinct answers of a real pre-trained model through GRPO, by rule."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from paper_figures import style

TITLE = "A real language model by rule"
STATEMENT = (
    "Clip_B and Clip_V of arXiv 2602.03392 in SmolLM2-135M-Instruct, beside the decoder of 85,000 parameters above"
)
RERUN = "python simulations/real_model.py"
PANELS = (("entropy", "entropy (nats)"), ("reward", "reward"), ("distinct", "distinct answers of 8"))
NAMES = {
    ("none", 1): "no control",
    ("clip-b(mu=0.9)", 1): "Clip_B, μ = 0.9",
    ("clip-b(mu=0.5)", 1): "Clip_B, μ = 0.5",
    ("clip-v(mu=2, max_fraction=None)", 1): "Clip_V, μ = 2",
    ("entropy-bonus(coefficient=0.02)", 1): "entropy bonus",
    ("high-entropy", 1): "80/20",
    ("random-mask(match='clip-b(mu=0.9)')", 1): "random mask",
}
COLORS = (style.INK, style.BLUE, style.SKY, style.RED, style.ORANGE, style.PINK, style.GREEN)


def arms(record: dict[str, Any]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Curves by rule and updates per batch, of the arms that are drawn and there."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in record["results"]:
        task = entry["task"]
        if (arm := (task.get("rule"), task.get("num_iterations"))) in NAMES:
            found.setdefault(arm, []).append(entry["result"]["curves"])
    return {arm: found[arm] for arm in NAMES if arm in found}


def caption() -> str:
    record = style.read("real_model")
    seeds = sorted({len(curves) for curves in arms(record).values()})
    words = "; ".join(
        f"{NAMES[arm]} {style.spread(record['summary']['arms'][arm[0]]['entropy'])}" for arm in arms(record)
    )
    return (
        f"GRPO of SmolLM2-135M-Instruct on additions, {record['configuration']['steps']} updates of 4 prompts × 8 "
        f"completions, {' or '.join(map(str, seeds))} seeds (thin) and their means. The random mask drops as many "
        f"tokens as Clip_B at μ = 0.9. Entropy over the last ten updates: {words} nats (± 95 % t-interval, of "
        "several seeds)."
    )


def draw() -> Figure:
    figure, axes = style.new(columns=3, width=style.PAGE, height=2.5)
    for index, (arm, curves) in enumerate(arms(style.read("real_model")).items()):
        for axis, (name, label) in zip(axes, PANELS, strict=True):
            updates = range(1, len(curves[0][name]) + 1)
            look = {"linestyle": style.DASHES[index % 4], "label": NAMES[arm]}
            style.band(axis, updates, [entry[name] for entry in curves], COLORS[index], **look)
            axis.set(xlabel="update", ylabel=label)
    for axis, top in zip(axes, (None, 1.0, 8.2), strict=True):
        axis.set_ylim(0, top)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    style.letters(axes)
    return figure
