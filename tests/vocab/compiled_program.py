"""A program around the token statistics, compiled and not: `compiled_program.py BACKEND` prints "agrees"."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

ROWS, VOCABULARY = 64, 50_000  # beyond the size from which the compiled loops run


def program(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """A loss with work before and after the statistics, so that there is something to fuse."""
    statistics = token_statistics(2.0 * logits, tokens, temperature=0.7, second_order=True)
    loss = (statistics.log_probs * statistics.baseline.detach() + 0.3 * statistics.entropy).sum()
    fields = {name: getattr(statistics, name) for name in (*FIELDS, *SECOND_ORDER_FIELDS)}
    return loss, statistics.log_probs.exp(), fields


def main(backend: str) -> None:
    """Compare values and gradients."""
    generator = torch.Generator().manual_seed(11)
    logits = 3.0 * torch.randn(ROWS, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    assert token_statistics(logits, tokens).impl == "fused-cpu"
    results = []
    for function in (program, torch.compile(program, backend=backend, fullgraph=True)):
        leaf = logits.clone().requires_grad_(True)
        loss, probs, fields = function(leaf, tokens)
        loss.backward()
        results.append([loss.detach(), probs.detach(), leaf.grad, *(value.detach() for value in fields.values())])
    # The operator is opaque: the same kernel on the same numbers. The work around it may be fused in another order.
    for expected, received in zip(*results, strict=True):
        torch.testing.assert_close(received, expected, rtol=2e-6, atol=1e-6)
    print("agrees")


if __name__ == "__main__":
    main(sys.argv[1])
