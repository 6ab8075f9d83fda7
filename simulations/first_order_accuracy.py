"""How far the first order carries: error against step size, from ten tokens to a language model's 151,936.

    python simulations/first_order_accuracy.py --quick
    python simulations/first_order_accuracy.py --processes 2

Tokens are sampled from each policy; each takes its own GRPO step δz = α (e_k − p) of both signs and of many sizes. The
exact change of entropy is held against the first order (Theorem 3.3 of arXiv 2602.03392) and the second (section B.7 of
the theory notes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sweep

from entropy_theory.program import run_script


@dataclass(frozen=True)
class AccuracyConfig(sweep.SweepOptions):
    """Measure the remainders.

    Attributes:
        vocab_sizes: V.
        starts: Where the policies come from: gaussian logits of standard deviation 2, or forking.
        sizes: Step sizes |α|.
        seeds: Seeds.
        elements: Logits in a bank: policies × V is at most this.
        policies: At most so many policies.
        samples: Sampled tokens per policy.
    """

    vocab_sizes: tuple[int, ...] = (10, 100, 1_000, 10_000, 151_936)
    starts: tuple[str, ...] = ("gaussian", "forking")
    sizes: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    elements: int = 1_215_488
    policies: int = 256
    samples: int = 4


QUICK: dict[str, Any] = {
    "vocab_sizes": (10, 1_000, 151_936),
    "sizes": (1e-3, 1e-2, 0.1, 1.0),
    "seeds": (0, 1),
    "elements": 303_872,
    "policies": 64,
    "samples": 2,
}


@dataclass(frozen=True)
class AccuracyBank:
    """Single GRPO steps from one bank."""

    vocab_size: int
    start: str
    seed: int
    policies: int
    samples: int
    sizes: tuple[float, ...]


def work(task: AccuracyBank) -> dict[str, Any]:
    """Take all steps; columns have one number per size, but ``wrong_signs``, which counts by predicted sign."""
    import torch

    from entropy_theory.dynamics import bank, sample_steps, starts

    shape = task.policies, task.vocab_size
    logits = (
        starts.forking_logits(*shape, task.seed)
        if task.start == "forking"
        else starts.gaussian_logits(*shape, 2.0, task.seed)
    )
    tokens, _ = sample_steps(logits, task.samples, task.seed)
    measured: dict[str, list[Any]] = {
        name: [] for name in ("change", "first_order_error", "second_order_error", "wrong_falls", "wrong_rises")
    }
    counts = {"falls": 0, "rises": 0}
    orders: list[list[torch.Tensor]] = [[] for _ in task.sizes]
    rows = max(1, (1 << 18) // task.vocab_size)
    for start in range(0, task.policies, rows):
        policy = bank.policy_statistics(logits[start : start + rows])
        k = tokens[start : start + rows]
        for sample in range(task.samples):
            direction = (-policy.probs).scatter_add_(-1, k[:, sample, None], torch.ones_like(policy.tail))
            for place, size in enumerate(task.sizes):
                for side in (1.0, -1.0):
                    orders[place].append(torch.stack(bank.entropy_orders(policy, direction * (side * size))))
    for parts in orders:
        exact, first, second = torch.cat(parts, dim=1)
        measured["change"].append(float(exact.abs().mean()))
        measured["first_order_error"].append(float((exact - first).abs().mean()))
        measured["second_order_error"].append(float((exact - first - second).abs().mean()))
        measured["wrong_falls"].append(int(((first < 0) & (exact >= 0)).sum()))
        measured["wrong_rises"].append(int(((first > 0) & (exact <= 0)).sum()))
        counts = {"falls": int((first < 0).sum()), "rises": int((first > 0).sum())}
    return {**sweep.rounded(measured), "predicted": counts}


def tasks(config: AccuracyConfig) -> list[AccuracyBank]:
    """One bank for each size of the vocabulary, start and seed."""
    return [
        AccuracyBank(size, start, seed, min(config.policies, config.elements // size), config.samples, config.sizes)
        for size in config.vocab_sizes
        for start in config.starts
        for seed in config.seeds
    ]


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Orders of the remainders from the steps up to .1, and the wrong signs, over all seeds."""
    from entropy_theory.dynamics import log_log_slope

    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in results:
        groups.setdefault(f"V={entry['task']['vocab_size']}, {entry['task']['start']}", []).append(entry)
    summary: dict[str, Any] = {}
    for name, measured in groups.items():
        sizes = measured[0]["task"]["sizes"]
        small = [i for i, size in enumerate(sizes) if 1e-3 <= size <= 0.1]

        def order(entry: dict[str, Any], column: str, sizes: Any = sizes, small: Any = small) -> float:
            values = entry["result"][column]
            return log_log_slope([sizes[i] for i in small], [values[i] for i in small])[0]

        row: dict[str, Any] = {
            "first_order": sweep.interval([order(entry, "first_order_error") for entry in measured]),
            "second_order": sweep.interval([order(entry, "second_order_error") for entry in measured]),
        }
        for kind in ("falls", "rises"):
            row[f"predicted_{kind}"] = sum(entry["result"]["predicted"][kind] for entry in measured)
            row[f"wrong_{kind}"] = [
                sum(entry["result"][f"wrong_{kind}"][i] for entry in measured) for i in range(len(sizes))
            ]
        row["relative_error"] = [
            sum(entry["result"]["first_order_error"][i] for entry in measured)
            / sum(entry["result"]["change"][i] for entry in measured)
            for i in range(len(sizes))
        ]
        summary[name] = row
    return summary


def main(config: AccuracyConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("first_order_accuracy", config, tasks(config), work, summarise)
    if record is not None:
        print("order of the remainder after the first and second order (theory: 2 and 3), relative error of the first")
        for name, row in record["summary"].items():
            errors = ", ".join(
                f"{size:g}: {e:.2g}" for size, e in zip(config.sizes, row["relative_error"], strict=True)
            )
            print(f"{name:22}{sweep.shown(row['first_order'])}  {sweep.shown(row['second_order'])}  {errors}")
            wrong = f"{sum(row['wrong_falls'])} of {row['predicted_falls'] * len(config.sizes)} predicted falls"
            print(
                f"{'':22}{wrong} and {sum(row['wrong_rises'])} of "
                f"{row['predicted_rises'] * len(config.sizes)} predicted rises have the other sign"
            )
    return record


if __name__ == "__main__":
    run_script(main, AccuracyConfig)
