"""Rollouts with hostile text, inspected once for the tests of the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!-- <b>&lt;bold&gt;</b> {{ 7*7 }} -->",
    "line\none\ttab \u2028 end",
    "right \u202e to left\u202c, ünï, 🙂",
    "'\"`\\ ${alert(3)}",
)
RULES = (
    "clip-b(mu=0.5)",
    "clip-v(mu=1, max_fraction=None)",
    "high-entropy(share=0.5)",
    "clip-b(mu=0.5)|high-entropy(share=0.8)",
    "w-reinforce",
    "entropy-flow",
    "entropy-bonus(coefficient=0.05)",
    "ppo-clip",
)


def rollout_lines() -> list[dict[str, object]]:
    """Six groups of five: hostile prompts and completions, and some of plain words."""
    draws = np.random.default_rng(0)
    words = ["the", "sum", "is", "right", "so", "answer", "of", "terms"]
    lines: list[dict[str, object]] = []
    for group in range(6):
        for one in range(5):
            plain = " ".join(draws.choice(words, 3 + one * group))
            text = HOSTILE[group] if one == 0 else plain
            lines.append(
                {"prompt": f"{HOSTILE[-1 - group]} {group}", "completion": text, "reward": float(draws.random() < 0.5)}
            )
        lines[-1]["reward"], lines[-2]["reward"] = 1.0, 0.0  # no group without a contrast
    return lines


def inspected(model: Path, folder: Path, influence: bool = False):
    """Score them with the model and apply the rules."""
    from entropy_theory.inspection.inspect import InspectConfig, inspect

    path = folder / "rollouts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rollout_lines()))
    return inspect(InspectConfig(path, str(model), rule=RULES, influence=influence, out=folder / "page.html"))
