"""What the custom operator around the token statistics costs, and what a compiled program costs beside a plain one.

    python benchmarks/operator_cost.py

Compared in one process, in turns, medians of many calls: the operator; the same kernel called without it, with no
checks and no gradient; a plain forward and backward; the same under torch.compile (backend inductor, without its
compilation); and the floor, one read of the logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.accumulators import finish
from entropy_theory.vocab.implementations import kernels


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function, called in turns."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def measure(rows: int, vocabulary: int, rounds: int, compiled: bool) -> None:
    """Print the table of one shape."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(rows, vocabulary, generator=generator)
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    leaf = logits.clone().requires_grad_(True)
    impl = token_statistics(logits, tokens).impl

    def bare() -> dict[str, torch.Tensor | None]:
        sums = kernels(impl).accumulate(logits, 1.0, False)
        return finish(sums, logits.gather(-1, tokens.unsqueeze(-1)).reshape(-1), 1.0, False)

    def loss(values: torch.Tensor) -> torch.Tensor:
        found = token_statistics(values, tokens)
        return (found.log_probs + 0.1 * found.entropy).sum()

    def step(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf.grad = None
        function(leaf).backward()
        assert leaf.grad is not None
        return leaf.grad.clone()

    functions: dict[str, Callable[[], object]] = {
        "one read": lambda: logits.amax(-1),
        "kernel without the operator": bare,
        "operator": lambda: token_statistics(logits, tokens),
        "forward and backward": lambda: step(loss),
    }
    expected = bare()["entropy"]
    assert expected is not None
    torch.testing.assert_close(token_statistics(logits, tokens).entropy, expected.float(), rtol=1e-6, atol=1e-6)
    if compiled:
        fused = torch.compile(loss)
        torch.testing.assert_close(step(fused), step(loss), rtol=1e-6, atol=1e-6)
        functions["forward and backward, compiled"] = lambda: step(fused)
    print(f"{rows} x {vocabulary}, {impl}, {torch.get_num_threads()} threads, medians of {rounds}")
    for name, milliseconds in medians(functions, rounds).items():
        print(f"  {name:32s} {milliseconds:9.3f} ms")


def main() -> None:
    """Measure a small call, where the operator is visible, and one of a real vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    options = parser.parse_args()
    measure(8, 100, options.rounds, not options.no_compile)
    measure(64, 50_000, options.rounds, not options.no_compile)


if __name__ == "__main__":
    main()
