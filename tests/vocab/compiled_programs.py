"""Compiled calls equal plain ones to the bit, values and gradients; run as a program, it ends with an error if not."""

from __future__ import annotations

import shutil
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor
from vocab_oracles import llm_like

from entropy_theory.vocab import (
    TokenStatistics,
    statistics,
    token_statistics,
    token_statistics_from_hidden,
    token_statistics_sharded,
)


def from_hidden(hidden: Tensor, matrix: Tensor, tokens: Tensor) -> TokenStatistics:
    return token_statistics_from_hidden(hidden, matrix, tokens, softcap=9.0, temperature=0.8, impl="fused-cpu")


def hidden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = torch.randn(6, 16, generator=generator), torch.randn(1009, 16, generator=generator)
    return hidden.requires_grad_(), matrix.requires_grad_(), torch.randint(0, 1009, (6,), generator=generator)


def loss_of(stats: TokenStatistics) -> Tensor:
    rows = torch.linspace(-1, 1, stats.entropy.numel())
    return (rows * stats.log_probs).sum() + (rows.flip(0) * stats.entropy).sum()


def fused_kernels_at_64_by_50000(backend: str) -> None:
    logits, tokens = llm_like(64, 50_000)
    logits.requires_grad_()
    compiled = torch.compile(token_statistics, fullgraph=True, backend=backend)
    ours, plain = (call(logits, tokens, second_order=True) for call in (compiled, token_statistics))
    assert ours.impl == plain.impl == "fused-cpu"
    for name in (*statistics.FIELDS, *statistics.SECOND_ORDER_FIELDS):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    gradients = [torch.autograd.grad(loss_of(stats), logits)[0] for stats in (ours, plain)]
    assert torch.equal(*gradients)


def hidden_states_of_several_shapes() -> None:
    hidden, matrix, tokens = hidden_inputs()
    compiled = torch.compile(lambda *inputs: loss_of(from_hidden(*inputs)), fullgraph=True, backend="aot_eager")
    for rows in (6, 4):
        losses = [
            call(hidden[:rows], matrix, tokens[:rows]) for call in (compiled, lambda *i: loss_of(from_hidden(*i)))
        ]
        assert torch.equal(*losses)
        for a, b in zip(*(torch.autograd.grad(loss, (hidden, matrix)) for loss in losses), strict=True):
            assert torch.equal(a, b)


def forward_mode() -> None:
    """Tangents are those of torch's own operations inside a compiled program, too."""
    logits, tokens = llm_like(6, 200)
    logits, direction = logits.double(), torch.linspace(-1, 1, 1200, dtype=torch.float64).reshape(6, 200)

    def tangents(z: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: token_statistics(x, tokens).entropy, (z,), (v,))[1]

    (plain,) = torch.func.jvp(lambda z: (-(z.softmax(-1) * z.log_softmax(-1)).sum(-1),), (logits,), (direction,))[1]
    compiled = torch.compile(tangents, backend="aot_eager")(logits, direction)
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-12)  # sums of 200 terms, in another order


def collectives_are_left_outside() -> None:
    """The graph breaks at the sharded call, which then runs as it is."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        logits, tokens = llm_like(8, 3001)
        logits.requires_grad_()

        def loss(z: Tensor) -> Tensor:
            return loss_of(token_statistics_sharded(2 * z, tokens, group=None))

        losses = [call(logits) for call in (torch.compile(loss, backend="aot_eager"), loss)]
        assert torch.equal(*losses)
        assert torch.equal(*(torch.autograd.grad(value, logits)[0] for value in losses))
        dist.destroy_process_group()


if __name__ == "__main__":
    fused_kernels_at_64_by_50000("aot_eager")
    if shutil.which("g++"):
        fused_kernels_at_64_by_50000("inductor")
    hidden_states_of_several_shapes()
    forward_mode()
    collectives_are_left_outside()
