"""Clip-Cov and KL-Cov: act on tokens of high covariance between log-probability and advantage (arXiv 2505.22617).

Both rank tokens by c_t = (A_t − mean A)(log p_t − mean log p), the means over all valid tokens. c contains neither p
nor H nor N: it stands in for A S_c (B.9 of the theory notes) and agrees with it on average, not token by token. High c
is A > 0 and likely (Q1) or A < 0 and unlikely (Q4), both of which lower entropy. In a batch of low entropy the mean
log p is near 0 and most of these tokens are Q4, not Q1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control.base import Phase, Rule, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.parameters import decided, flag, number
from entropy_theory.control.random import random_tokens
from entropy_theory.control.reducers import masked_count, masked_mean, masked_top_k
from entropy_theory.control.registry import register
from entropy_theory.control.rules.ppo import clipped_objective


def covariances(flow: Flow, context: Context) -> Float[Tensor, "B T"]:
    """c_t = (A_t − mean A)(log p_t − mean log p), float64, with means over the valid tokens of all ranks.

    Example:
        >>> from entropy_theory.control import LocalReducer, TokenBatch
        >>> x, A = torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, -1.0]])
        >>> batch = TokenBatch(x, -x, A, torch.ones(1, 2))
        >>> covariances(Flow.start(batch), Context(batch, LocalReducer(), None, 2)).tolist()
        [[1.0, 1.0]]
    """
    advantages, log_probs = flow.unmasked_advantages.double(), flow.log_probs.detach().double()
    mean_advantage = masked_mean(advantages, flow.valid, context.reducer)
    mean_log_prob = masked_mean(log_probs, flow.valid, context.reducer)
    return (advantages - mean_advantage) * (log_probs - mean_log_prob)


@register
@dataclass(frozen=True)
class ClipCov(Rule):
    """Clip-Cov: drop a few random tokens among those of high covariance.

    arXiv 2505.22617; official code: verl `compute_policy_loss_clip_cov`.

        candidates: lower < c_t < upper, not clipped by PPO;   k = max(⌊fraction · n⌋, 1)
        drop min(k, #candidates) of them, drawn without replacement;  the rest as PPO clip without dual clip

    The draw is the beginning of one random permutation of all candidates in global token order: with the generator
    seeded as the official code's, the same tokens. Dropped tokens stay in the denominator.

    Args:
        fraction: Share of the n valid tokens to drop at most.
        lower: Lower bound of c, open.
        upper: Upper bound of c, open, > lower.
        epsilon_low: PPO's ε_l; official 1.
        epsilon_high: PPO's ε_h; official 1.
        ratio_clip: False leaves PPO's clip to the trainer: the rule is then a mask, fixed once per batch ("batch"), and
            needs no old log-probabilities.

    Needs a generator, in the same state on every rank.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, A = torch.tensor([[-0.1, -0.1, -4.0]]), torch.tensor([[1.0, 1.0, -2.0]])
        >>> batch = TokenBatch(x, -x, A, torch.ones(1, 3), old_log_probs=x)
        >>> ClipCov().apply(batch, generator=torch.Generator().manual_seed(0)).keep_mask.sum().item()
        2
    """

    name = "clip-cov"
    paper = "arXiv 2505.22617"
    kind = "random mask"
    quadrants = "drops some of Q1 and Q4; at low entropy mostly Q4"
    parity = "verl clip_cov, three settings, the same draw"
    departures = "the log-ratio is clamped to ±20. The covariance and its bounds are compared in float64."

    fraction: float = number(2e-4, 0.0, 1.0)
    lower: float = number(1.0)
    upper: float = number(5.0)
    epsilon_low: float = number(1.0, 0.0)
    epsilon_high: float = number(1.0, 0.0)
    ratio_clip: bool = flag(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._in_order("lower", "upper", strict=True)

    @decided
    def phase(self) -> Phase:
        """Live with the clip."""
        return "live" if self.ratio_clip else "batch"

    @decided
    def needs(self) -> tuple[str, ...]:
        """The old log-probabilities with the clip."""
        return ("old_log_probs",) if self.ratio_clip else ()

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Draw the tokens to drop, and clip the rest."""
        generator = context.generator_for(self)
        covariance = covariances(flow, context)
        candidates = flow.valid & (covariance > self.lower) & (covariance < self.upper)
        if self.ratio_clip:
            low, high = 1.0 - self.epsilon_low, 1.0 + self.epsilon_high
            objective, cut = clipped_objective(flow.advantages, flow.ratio, low, high, None)
            flow = flow.replaced(objective, keep=flow.valid & ~cut)
            candidates = candidates & ~cut
        limit = max(int(self.fraction * context.valid_tokens), 1)
        drop = random_tokens(candidates, limit, generator, context.reducer)
        metrics = {"candidates": float(masked_count(candidates, context.reducer)), "limit": float(limit)}
        return flow.masked(flow.valid & ~drop, "valid"), metrics, None


@register
@dataclass(frozen=True)
class KLCov(Rule):
    """KL-Cov: hold the tokens of highest covariance to the old policy.

    arXiv 2505.22617; official code: verl `compute_policy_loss_kl_cov`.

        k = max(⌊fraction · n⌋, 1) tokens of largest c_t:  J = r Â − β abs(log r),  g = r Â − β sgn(log r)
        elsewhere                                          J = r Â,                g = r Â

    with no PPO clip; sgn 0 = 0, so that the first on-policy update is untouched. The penalty gives gradient to tokens
    whose own is 0.

    Args:
        fraction: Share of the n valid tokens.
        beta: β. verl's default is 1 when none is set (its dataclass says 0.1).

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old, A = torch.tensor([[-0.1, -0.1, -4.0]]), torch.tensor([[1.0, 1.0, -2.0]])
        >>> batch = TokenBatch(old - 0.5, -old, A, torch.ones(1, 3), old_log_probs=old)
        >>> KLCov(beta=0.5).apply(batch).metrics["selected"]
        1.0
    """

    name = "kl-cov"
    phase = "live"
    needs = ("old_log_probs",)
    paper = "arXiv 2505.22617"
    kind = "penalty"
    quadrants = "pulls back some of Q1 and Q4; nothing at ratio 1"
    parity = "verl kl_cov, three settings"
    departures = (
        "the log-ratio in r is clamped to ±20; the penalty is left out where an earlier rule dropped the token; equal "
        "covariances go in global token order."
    )

    fraction: float = number(2e-4, 0.0, 1.0)
    beta: float = number(1.0, 0.0)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the penalty to the tokens of highest covariance."""
        k = max(int(self.fraction * context.valid_tokens), 1)
        selected = masked_top_k(covariances(flow, context), flow.valid, k, context.reducer)
        here, zero = selected & flow.kept, torch.zeros_like(flow.ratio)
        objective = flow.advantages * flow.ratio - self.beta * torch.where(here, flow.log_ratio, zero).abs()
        pull = torch.where(here, -self.beta * flow.log_ratio.sign(), zero)
        return flow.replaced(objective, added=pull), {"selected": float(k)}, None
