"""What rules cost beside the statistics they read.

    python benchmarks/rules.py

Applies every mask rule to a batch of 1,048,576 tokens and sets the time against that of `token_statistics` (eager,
float32) for as many tokens at V = 151,936. The statistics of a million such tokens need 600 GB of logits, so they are
timed on a few hundred rows, in blocks like those of the real thing, and scaled up; the number of rows is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

RULES = (
    "none",
    "clip-b",
    "clip-v",
    "clip-b(drop_fraction=0.02)",
    "ppo-clip",
    "dcpo",
    "bapo",
    "high-entropy",
    "clip-cov",
    "kl-cov",
    "entropy-ratio",
    "steer",
    "stare(target=None)",
    "entropy-flow",
    "gspo",
    "entropy-budget",
    "clip-b|ppo-clip",
    "random-mask(match='clip-b')",
)


@dataclass(frozen=True)
class RulesBenchmarkConfig:
    """Time rules beside the statistics they read.

    Attributes:
        rules: The rules.
        rows: Completions.
        width: Tokens of each.
        vocab_size: Vocabulary of the statistics.
        statistics_rows: Tokens whose statistics are timed.
        repeats: The fastest of so many.
        threads: Threads of both sides.
        out: Folder for rules.json; none by default.
    """

    rules: tuple[str, ...] = RULES
    rows: int = 1024
    width: int = 1024
    vocab_size: int = 151_936
    statistics_rows: int = 256
    repeats: int = 3
    threads: int = 2
    out: Path | None = None


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some repeats, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def made_up_batch(rows: int, width: int) -> Any:
    """Statistics as a model has them: most tokens certain, few that fork."""
    from entropy_theory.control import TokenBatch

    generator = torch.Generator().manual_seed(0)
    shape = (rows, width)
    gap = 12.0 * torch.rand(shape, generator=generator) - 1.0
    p = torch.sigmoid(gap)
    entropy = torch.nn.functional.softplus(gap) - p * gap
    right = torch.rand(shape, generator=generator) < p
    log_p = torch.where(right, p, 1 - p).log()
    S = log_p.exp() * (entropy + log_p)
    baseline = p**2 * (entropy + p.log()) + (1 - p) ** 2 * (entropy + (1 - p).log())
    return TokenBatch(
        log_probs=log_p,
        entropy=entropy,
        advantages=torch.randn(rows, generator=generator),
        completion_mask=torch.arange(width) < torch.randint(width // 2, width + 1, (rows, 1), generator=generator),
        old_log_probs=log_p + 0.1 * torch.randn(shape, generator=generator),
        old_entropy=entropy * (1 + 0.05 * torch.randn(shape, generator=generator)),
        baseline=baseline,
        discriminant=S,
        centered_discriminant=S - baseline,
    )


def main(config: RulesBenchmarkConfig) -> None:
    """Time, print, and record if asked."""
    from entropy_theory import records
    from entropy_theory.control import rule
    from entropy_theory.vocab import token_statistics

    torch.set_num_threads(config.threads)
    logits = torch.randn(config.statistics_rows, config.vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.zeros(config.statistics_rows, dtype=torch.int64)
    with torch.no_grad():
        found = token_statistics(logits, tokens)
        per_token = fastest(lambda: token_statistics(logits, tokens), config.repeats) / config.statistics_rows
    del logits
    batch = made_up_batch(config.rows, config.width)
    count = batch.log_probs.numel()
    whole = per_token * count
    print(
        f"statistics ({found.impl}, float32, {config.threads} threads): {per_token * 1e6:.1f} µs per token at "
        f"V = {config.vocab_size:,}, timed on {config.statistics_rows} tokens; {whole:.1f} s for {count:,}, scaled up"
    )
    print(f"{'rule':34} {'seconds':>9} {'share':>8}   for {count:,} tokens, {int(batch.completion_mask.sum()):,} valid")
    measured = {}
    for spec in config.rules:
        one = rule(spec)

        def apply(one: Any = one) -> object:
            return one.apply(batch, generator=torch.Generator().manual_seed(0))

        seconds = fastest(apply, config.repeats)
        measured[str(one)] = seconds
        print(f"{one!s:34} {seconds:9.3f} {seconds / whole:8.2%}", flush=True)
    if config.out is not None:
        content = {
            "configuration": config,
            "environment": records.environment(),
            "statistics": whole,
            "rules": measured,
        }
        records.write_json(config.out / "rules.json", content)


if __name__ == "__main__":
    main(tyro.cli(RulesBenchmarkConfig))
