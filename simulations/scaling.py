"""Token statistics as the vocabulary and the batch grow: what a token costs, and how wrong low precision gets.

    python simulations/scaling.py --quick
    python simulations/scaling.py

Processor time per logit on one thread, the fastest of some repeats, beside that of one plain `amax` of the same logits;
errors against float64 statistics of the same (rounded) logits. Unlike those of other sweeps, times are not the same
twice: run it on a quiet machine, one process at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import sweep

from entropy_theory.program import run_script
from entropy_theory.vocab.statistics import Implementation

ZERO = 1e-12
"""Errors are relative to the statistic, or to this where it is smaller: ties of rounded logits leave S_c = 1e-165."""


@dataclass(frozen=True)
class ScalingConfig(sweep.SweepOptions):
    """Measure cost and error.

    Attributes:
        vocab_sizes: V.
        batches: Tokens in a batch.
        dtypes: What the logits are stored in.
        implementations: As for `token_statistics`.
        seeds: Seeds of the logits.
        repeats: Timed repeats, of which the fastest counts.
        largest: Batches of more logits than this are left out.
    """

    vocab_sizes: tuple[int, ...] = (100, 1_000, 10_000, 151_936)
    batches: tuple[int, ...] = (16, 64)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    implementations: tuple[Implementation, ...] = ("eager", "fused-cpu")
    seeds: tuple[int, ...] = (0, 1, 2)
    repeats: int = 3
    largest: int = 20_000_000


QUICK: dict[str, Any] = {"vocab_sizes": (1_000, 20_000), "batches": (16, 64), "seeds": (0,), "repeats": 2}


@dataclass(frozen=True)
class ScalingPoint:
    """One size of the problem, all implementations; fields as in the configuration."""

    vocab_size: int
    tokens: int
    dtype: str
    implementations: tuple[Implementation, ...]
    seed: int
    repeats: int


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some repeats, after one to warm up; each does at least a millisecond."""
    work()
    start = time.process_time()
    work()
    count = max(1, round(1e-3 / max(time.process_time() - start, 1e-6)))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(count):
            work()
        times.append((time.process_time() - start) / count)
    return min(times)


def work(task: ScalingPoint) -> dict[str, Any]:
    """Time and compare on gaussian logits of standard deviation 1 to 12."""
    import torch

    from entropy_theory.dynamics import sample_steps, starts
    from entropy_theory.vocab import token_statistics

    scales = torch.linspace(1.0, 12.0, task.tokens, dtype=torch.float64).unsqueeze(-1)  # from even to nearly certain
    logits = starts.gaussian_logits(task.tokens, task.vocab_size, 1.0, task.seed) * scales
    logits = logits.to(getattr(torch, task.dtype))
    tokens = sample_steps(logits, 1, task.seed)[0][:, 0]
    exact = token_statistics(logits.double(), tokens, impl="eager")
    floor = fastest(lambda: logits.amax(dim=-1), task.repeats)
    result: dict[str, Any] = {"amax": {"ns_per_logit": floor * 1e9 / logits.numel()}}
    for impl in task.implementations:
        measured = token_statistics(logits, tokens, impl=impl)
        error = {
            name: float(
                (
                    (getattr(measured, name).double() - getattr(exact, name)).abs()
                    / getattr(exact, name).abs().clamp(min=ZERO)
                ).max()
            )
            for name in ("entropy", "discriminant", "centered_discriminant")
        }
        seconds = fastest(partial(token_statistics, logits, tokens, impl=impl), task.repeats)
        result[impl] = {"ns_per_logit": seconds * 1e9 / logits.numel(), "error": error}
    return sweep.rounded(result, 4)


def tasks(config: ScalingConfig) -> list[ScalingPoint]:
    """Every size, precision and seed."""
    return [
        ScalingPoint(size, tokens, dtype, config.implementations, seed, config.repeats)
        for size in config.vocab_sizes
        for tokens in config.batches
        if size * tokens <= config.largest
        for dtype in config.dtypes
        for seed in config.seeds
    ]


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Cost and worst error of S_c by size, precision and implementation, over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in results:
        task = entry["task"]
        groups.setdefault(f"V={task['vocab_size']}, B={task['tokens']}, {task['dtype']}", []).append(entry)
    return {
        name: {
            impl: {
                "ns_per_logit": sweep.interval([entry["result"][impl]["ns_per_logit"] for entry in measured]),
                "worst_error": max(
                    entry["result"][impl].get("error", {"centered_discriminant": 0.0})["centered_discriminant"]
                    for entry in measured
                ),
            }
            for impl in ("amax", *measured[0]["task"]["implementations"])
        }
        for name, measured in groups.items()
    }


def main(config: ScalingConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("scaling", config, tasks(config), work, summarise)
    if record is not None:
        print("processor time, ns per logit, and the worst relative error of S_c")
        for name, row in record["summary"].items():
            words = (f"{i} {sweep.shown(f['ns_per_logit'], 2)}, {f['worst_error']:.0e}" for i, f in row.items())
            print(f"{name:30}" + "   ".join(words))
    return record


if __name__ == "__main__":
    run_script(main, ScalingConfig)
