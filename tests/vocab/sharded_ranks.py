"""One rank of the sharded tests; run by ``torch.distributed.run``, it ends with an error if anything differs."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from vocab_oracles import FIELDS, llm_like

from entropy_theory.ranks import leave_ranks
from entropy_theory.vocab import token_statistics, token_statistics_sharded


def sum_of_absolute_terms(logits: Tensor, tokens: Tensor) -> Tensor:
    """Σ p δ² |1 + H + log p| with δ = e_y − p − E_p[e_y − p]: the terms of the curvature have both signs and cancel."""
    p = logits.softmax(-1)
    log_p = p.log().clamp(min=-1e9)
    d = torch.nn.functional.one_hot(tokens, p.shape[-1]) - p
    d = d - (p * d).sum(-1, keepdim=True)
    return (p * d**2 * (1 - (p * log_p).sum(-1, keepdim=True) + log_p).abs()).sum(-1)


def compare(dtype: torch.dtype, impl: str, temperature: float, start_given: bool) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    logits, tokens = llm_like(8, 3001, seed=1)
    logits[0, 1000:] = -torch.inf  # some ranks hold no finite logit of this row
    tokens[0] = 17
    logits[1] = -torch.inf
    logits[2, 2999] = torch.nan  # seen by one rank, known to all
    logits[3, tokens[3]] = -torch.inf
    logits, tokens = logits.to(dtype).reshape(2, 4, -1), tokens.reshape(2, 4)
    whole = logits.clone().requires_grad_()
    expected = token_statistics(whole, tokens, temperature=temperature, second_order=True, impl=impl)
    bounds = [3001 * (r * r + r) // (ranks * ranks + ranks) for r in range(ranks + 1)]  # parts of different sizes
    part = logits[..., bounds[rank] : bounds[rank + 1]].clone().requires_grad_()
    stats = token_statistics_sharded(
        part,
        tokens,
        group=None,
        temperature=temperature,
        second_order=True,
        impl=impl,
        vocab_start=bounds[rank] if start_given else None,
    )
    # Each rank rounds d = z − max z against its own maximum; float64 leaves only the order of the sums.
    rtol = 1e-11 if dtype == torch.float64 else 2e-6
    scales = {"grpo_curvature": sum_of_absolute_terms(whole.detach().double() / temperature, tokens)}
    for name in FIELDS:
        ours, theirs = getattr(stats, name).detach(), getattr(expected, name).detach()
        close = (ours - theirs).abs() <= rtol * scales.get(name, theirs.abs()) + 1e-37
        assert bool((close | (ours == theirs) | (ours.isnan() & theirs.isnan())).all()), (name, ours, theirs)
        same = [torch.empty_like(ours) for _ in range(ranks)]
        dist.all_gather(same, ours.detach().contiguous())
        assert all(torch.equal(ours.nan_to_num(7.0), other.nan_to_num(7.0)) for other in same), name
    weight = torch.linspace(-1, 1, 8).reshape(2, 4)
    gradients = []
    for result, leaf in ((stats, part), (expected, whole)):
        finite = torch.where(result.log_probs.isfinite(), result.log_probs, 0.0)
        (gradient,) = torch.autograd.grad((finite * weight).sum() + (result.entropy * weight.flip(0)).sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(
        gradients[0],
        gradients[1][..., bounds[rank] : bounds[rank + 1]],
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-12,
        equal_nan=True,
    )


def refuse() -> None:
    logits, tokens = torch.zeros(2, 5), torch.tensor([0, 5 * dist.get_world_size()])
    for start in (None, 5 * dist.get_rank()):
        with pytest.raises(ValueError, match="tokens: expected ids"):
            token_statistics_sharded(logits, tokens, group=None, vocab_start=start)
    with pytest.raises(ValueError, match="vocab_start: expected an integer >= 0, received -1"):
        token_statistics_sharded(logits, tokens, group=None, vocab_start=-1)


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if dist.get_world_size() != int(sys.argv[1]):
        raise SystemExit(f"expected {sys.argv[1]} ranks, got {dist.get_world_size()}")
    for dtype, impl, temperature in (
        (torch.float64, "eager", 1.0),
        (torch.float32, "fused-cpu", 0.8),
        (torch.bfloat16, "fused-cpu", 1.0),
    ):
        compare(dtype, impl, temperature, start_given=impl == "eager")
    refuse()
    # A group of its own: pairs of neighbours, each with its own vocabulary.
    if dist.get_world_size() == 4:
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        mine = dist.get_rank() // 2
        logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(mine))
        half = logits[:, :25] if dist.get_rank() % 2 == 0 else logits[:, 25:]
        tokens = torch.tensor([0, 24, 39])
        stats = token_statistics_sharded(half, tokens, group=groups[mine])
        torch.testing.assert_close(stats.baseline, token_statistics(logits, tokens).baseline, rtol=2e-6, atol=0)
    leave_ranks()


if __name__ == "__main__":
    main()
