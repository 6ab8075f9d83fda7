"""GRPO on a bank the slow way: one policy at a time, the surrogate loss written out and differentiated by autograd.

Nothing of the package is used: rewards, advantages, masks and losses are spelled out here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

Surrogate = Callable[[Tensor, float], Tensor]
"""Ratio and advantage of a token to its objective J."""


def advantages_of(rewards: list[float], normalisation: str) -> list[float]:
    mean = statistics.fmean(rewards)
    scale = statistics.stdev(rewards) + 1e-4 if normalisation == "std" else 1.0
    return [(reward - mean) / scale for reward in rewards]


def plain(ratio: Tensor, advantage: float) -> Tensor:
    return ratio * advantage


def clipped(ratio: Tensor, advantage: float) -> Tensor:
    """PPO with ε = .2 on both sides and the dual clip at 3."""
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    if advantage < 0:
        objective = torch.maximum(objective, torch.tensor(3.0 * advantage, dtype=objective.dtype))
    return objective


def replay_step(
    logits: Tensor,
    tokens: Tensor,
    advantages: list[list[float]],
    step_size: float,
    *,
    iterations: int = 1,
    surrogate: Surrogate = plain,
    keep: Tensor | None = None,
    counted: int | None = None,
    entropy_bonus: float = 0.0,
) -> list[Tensor]:
    """Return the logits after each iteration.

    The loss of the bank is −(B/D) Σ over the kept tokens of J, D the number of counted tokens: for D = B G, the sum
    over policies of the mean over the group.
    """
    policies, group = tokens.shape
    counted = policies * group if counted is None else counted
    old = logits.clone()
    after = []
    for _ in range(iterations):
        moved = []
        for b in range(policies):
            z = logits[b].clone().requires_grad_()
            log_probs, log_old = z.log_softmax(-1), old[b].log_softmax(-1)
            entropy = -(log_probs.exp() * log_probs).sum()
            loss = torch.zeros((), dtype=torch.float64)
            for j in range(group):
                k = int(tokens[b, j])
                loss = loss - entropy_bonus * entropy
                if keep is None or bool(keep[b, j]):
                    loss = loss - surrogate((log_probs[k] - log_old[k]).exp(), advantages[b][j])
            (gradient,) = torch.autograd.grad(loss * policies / counted, z)
            moved.append(logits[b] - step_size * gradient)
        logits = torch.stack(moved)
        after.append(logits)
    return after


def entropy_of(logits: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def discriminants_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """S and S_c of tokens as the paper writes them."""
    log_probs = logits.log_softmax(-1)
    S = log_probs.exp() * (entropy_of(logits).unsqueeze(-1) + log_probs)
    N = (log_probs.exp() * S).sum(-1, keepdim=True)
    return S.gather(-1, tokens), (S - N).gather(-1, tokens)
