"""Clip-Cov and KL-Cov: act on tokens of high covariance between log-probability and advantage (arXiv 2505.22617).

Both rank tokens by c_t = (A_t − mean A)(log p_t − mean log p), the means over all valid tokens. c contains neither p
nor H nor N: it stands in for A S_c (B.9 of the theory notes) and agrees with it on average, not token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control.base import Phase, Rule, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.random import random_tokens
from entropy_theory.control.reducers import masked_count, masked_mean, masked_top_k
from entropy_theory.control.registry import register
from entropy_theory.control.rules.ppo import clipped_objective
from entropy_theory.errors import invalid


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
    seeded as the official code's, the same tokens.

    Args:
        fraction: Share of the n valid tokens to drop at most, in [0, 1].
        lower: Lower bound of c, open.
        upper: Upper bound of c, open, > lower.
        epsilon_low: PPO's ε_l; official 1.
        epsilon_high: PPO's ε_h; official 1.
        ratio_clip: False leaves PPO's clip to the trainer: the rule is then a mask, fixed once per batch ("batch"), and
            needs no old log-probabilities.

    Needs a generator, in the same state on every rank. Dropped tokens stay in the denominator.

    Quadrants: high c is A > 0 and likely (Q1) or A < 0 and unlikely (Q4), both of which lower entropy. In a batch of
        low entropy the mean log p is near 0 and most candidates are Q4, not Q1.
    Departures: the log-ratio is clamped to ±20. The covariance and its bounds are compared in float64.

    Raises:
        ValueError: a parameter out of range; in `apply`, no generator.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, A = torch.tensor([[-0.1, -0.1, -4.0]]), torch.tensor([[1.0, 1.0, -2.0]])
        >>> batch = TokenBatch(x, -x, A, torch.ones(1, 3), old_log_probs=x)
        >>> ClipCov().apply(batch, generator=torch.Generator().manual_seed(0)).keep_mask.sum().item()
        2
    """

    name: ClassVar[str] = "clip-cov"
    phase: ClassVar[Phase] = "live"
    needs: ClassVar[tuple[str, ...]] = ("old_log_probs",)
    paper: ClassVar[str] = "arXiv 2505.22617"
    kind: ClassVar[str] = "random mask"
    quadrants: ClassVar[str] = "drops some of Q1 and Q4; at low entropy mostly Q4"
    parity: ClassVar[str] = "verl clip_cov, three settings, the same draw"

    fraction: float = 2e-4
    lower: float = 1.0
    upper: float = 5.0
    epsilon_low: float = 1.0
    epsilon_high: float = 1.0
    ratio_clip: bool = True

    def __post_init__(self) -> None:
        self._number("fraction", 0.0, 1.0)
        self._number("lower", -float("inf"))
        self._number("upper", self.lower, above=True)
        self._number("epsilon_low", 0.0)
        self._number("epsilon_high", 0.0)
        self._choice("ratio_clip", (True, False))
        if not self.ratio_clip:
            self._narrow(phase="batch", needs=())

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Draw the tokens to drop, and clip the rest.

        Example:
            >>> from entropy_theory.control import TokenBatch
            >>> x = torch.full((1, 2), -1.0)
            >>> ClipCov(ratio_clip=False).apply(TokenBatch(x, -x, torch.ones(1), torch.ones(1, 2)))
            Traceback (most recent call last):
            ...
            ValueError: generator: expected a torch.Generator, ... for clip-cov(ratio_clip=False), received None
        """
        if context.generator is None:
            raise invalid("generator", f"a torch.Generator, in the same state on every rank, for {self}", None)
        covariance = covariances(flow, context)
        candidates = flow.valid & (covariance > self.lower) & (covariance < self.upper)
        if self.ratio_clip:
            low, high = 1.0 - self.epsilon_low, 1.0 + self.epsilon_high
            objective, cut = clipped_objective(flow.advantages, flow.ratio, low, high, None)
            flow = flow.replaced(objective, keep=flow.valid & ~cut)
            candidates = candidates & ~cut
        limit = max(int(self.fraction * context.valid_tokens), 1)
        drop = random_tokens(candidates, limit, context.generator, context.reducer)
        metrics = {"candidates": float(masked_count(candidates, context.reducer)), "limit": float(limit)}
        return flow.masked(flow.valid & ~drop, "valid"), metrics, None


@register
@dataclass(frozen=True)
class KLCov(Rule):
    """KL-Cov: hold the tokens of highest covariance to the old policy.

    arXiv 2505.22617; official code: verl `compute_policy_loss_kl_cov`.

        k = max(⌊fraction · n⌋, 1) tokens of largest c_t:  J = r Â − β abs(log r),  g = r Â − β sgn(log r)
        elsewhere                                          J = r Â,                g = r Â

    with no PPO clip; sgn 0 = 0, so that the first on-policy update is untouched.

    Args:
        fraction: Share of the n valid tokens, in [0, 1].
        beta: β ≥ 0. verl's default is 1 when none is set (its dataclass says 0.1).

    Quadrants: as clip-cov, with a pull back towards the old policy instead of dropping: it gives gradient to tokens
        whose own is 0.
    Departures: the log-ratio in r is clamped to ±20; the penalty is left out where an earlier rule dropped the token;
        equal covariances go in global token order.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old, A = torch.tensor([[-0.1, -0.1, -4.0]]), torch.tensor([[1.0, 1.0, -2.0]])
        >>> batch = TokenBatch(old - 0.5, -old, A, torch.ones(1, 3), old_log_probs=old)
        >>> KLCov(beta=0.5).apply(batch).metrics["selected"]
        1.0
    """

    name: ClassVar[str] = "kl-cov"
    phase: ClassVar[Phase] = "live"
    needs: ClassVar[tuple[str, ...]] = ("old_log_probs",)
    paper: ClassVar[str] = "arXiv 2505.22617"
    kind: ClassVar[str] = "penalty"
    quadrants: ClassVar[str] = "pulls back some of Q1 and Q4; nothing at ratio 1"
    parity: ClassVar[str] = "verl kl_cov, three settings"

    fraction: float = 2e-4
    beta: float = 1.0

    def __post_init__(self) -> None:
        self._number("fraction", 0.0, 1.0)
        self._number("beta", 0.0)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the penalty to the tokens of highest covariance.

        Example:
            >>> from entropy_theory.control import TokenBatch
            >>> old = torch.tensor([[-0.1, -4.0]])
            >>> batch = TokenBatch(old, -old, torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), old_log_probs=old)
            >>> KLCov().apply(batch).coefficients.tolist()  # at ratio 1 nothing changes
            [[1.0, -1.0]]
        """
        number = max(int(self.fraction * context.valid_tokens), 1)
        return (
            self._penalised(flow, masked_top_k(covariances(flow, context), flow.valid, number, context.reducer)),
            {"selected": float(number)},
            None,
        )

    def _penalised(self, flow: Flow, selected: Tensor) -> Flow:
        here = selected & flow.kept
        zero = torch.zeros_like(flow.ratio)
        objective = flow.advantages * flow.ratio - self.beta * torch.where(here, flow.log_ratio, zero).abs()
        pull = torch.where(here, -self.beta * flow.log_ratio.sign(), zero)
        return flow.replaced(objective, added=pull)
