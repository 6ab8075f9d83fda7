"""Masks that look at entropy itself: the 80/20 rule of high-entropy tokens, and entropy-ratio clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from entropy_theory.control.base import Rule, Scope, Step
from entropy_theory.control.flow import Context, Denominator, Flow, State, Statistics
from entropy_theory.control.parameters import choice, decided, flag, number
from entropy_theory.control.reducers import masked_count, masked_quantile, masked_top_k
from entropy_theory.control.registry import register

Population = Literal["batch", "sequence"]

ENTROPY_FLOOR = 1e-8
"""Added to both entropies before their ratio is taken, as ERC does."""


@register
@dataclass(frozen=True)
class HighEntropy(Rule):
    """Keep the tokens of highest entropy: the 80/20 rule.

    arXiv 2506.01939; official code: TRL `GRPOTrainer.get_high_entropy_mask`.

        keep t  ⇔  H_t ≥ Q_{1−ρ}(H),   the quantile over the valid tokens of all ranks, linearly interpolated

    Where entropy is low, S_c is small too, so that the predicted effect on entropy is far less than the share of tokens
    that the rule drops. It is non-monotone in ρ.

    Args:
        share: ρ; 0 keeps the tokens of maximal entropy, 1 keeps all.
        scope: "batch" as TRL; "sequence": a quantile for each sequence, as other implementations.
        strict: False as TRL (≥); True keeps H > Q, as other implementations.
        denominator: "valid" as TRL; "kept": dropped tokens leave the token mean's count.
        statistics: The tokens that the quantile sees: all "valid" ones, or those "kept" by earlier rules of a pipe.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
        >>> HighEntropy(share=0.5).apply(TokenBatch(-H, H, torch.ones(1), torch.ones(1, 5))).keep_mask.tolist()
        [[False, False, True, True, True]]
    """

    name = "high-entropy"
    needs = ("entropy",)
    paper = "arXiv 2506.01939"
    kind = "mask"
    quadrants = "all four alike, at low entropy"
    threshold_parameter = "share"
    parity = "TRL get_high_entropy_mask, four shares; its loss and entropy bonus"
    departures = "the official mask is computed at every update; fixed once per batch it is the same for the first."

    share: float = number(0.2, 0.0, 1.0)
    scope: Population = choice("batch", Population)  # type: ignore[misc]  # this parameter is the declaration
    strict: bool = flag(False)
    denominator: Denominator = choice("valid", Denominator)
    statistics: Statistics = choice("valid", Statistics)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the tokens below the quantile."""
        entropy, population = context.batch.entropy.detach(), flow.population(self.statistics)
        q, metrics = 1.0 - self.share, {}
        if self.scope == "batch":
            if masked_count(population, context.reducer) == 0:
                return flow, {"threshold": 0.0}, None
            threshold = masked_quantile(entropy, population, q, context.reducer)
            metrics["threshold"] = threshold
            high = entropy.double() > threshold if self.strict else entropy.double() >= threshold
        else:
            high = torch.zeros_like(population)
            for row in population.any(dim=1).nonzero().flatten().tolist():
                threshold = masked_quantile(entropy[row], population[row], q)
                values = entropy[row].double()
                high[row] = values > threshold if self.strict else values >= threshold
        return flow.masked(flow.valid & high, self.denominator), metrics, None


@register
@dataclass(frozen=True)
class EntropyRatio(Rule):
    """ERC: take the gradient from tokens whose entropy has moved too far.

    arXiv 2512.05591; official code: ERC `compute_policy_loss_grpo_erc`, `compute_policy_loss_gppo_erc`.

        keep t  ⇔  low < (H_t + 1e-8)/(H_old,t + 1e-8) < high

    A dropped token keeps the value of its objective, without gradient, and stays in the denominator: put the rule
    *after* the surrogate, as in `ppo-clip(...)|entropy-ratio`, for the official loss value. The gradient is the same in
    either order. At entropy near 0 the ratio is noise.

    Args:
        low: Lower bound. Scripts .95; the yaml of the official code says .8.
        high: Upper bound. Scripts 1.05; the yaml says 1.2.
        drop_fraction: Instead of the bounds: drop this share of the valid tokens, those with the largest abs(log
            ratio).

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[0.5, 0.6]])
        >>> batch = TokenBatch(-H, H, torch.ones(1), torch.ones(1, 2), old_entropy=torch.full((1, 2), 0.5))
        >>> EntropyRatio().apply(batch).keep_mask.tolist()
        [[True, False]]
    """

    name = "entropy-ratio"
    phase = "live"
    needs = ("entropy", "old_entropy")
    paper = "arXiv 2512.05591"
    kind = "mask"
    quadrants = "any, where entropy has already moved up (Q2, Q3) or down (Q1, Q4)"
    parity = "ERC, two bands, with PPO clip and CE-GPPO"
    departures = "the bounds are compared in float64."

    low: float = number(0.95, 0.0, 1.0)
    high: float = number(1.05, 1.0)
    drop_fraction: float | None = number(None, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._instead_of("drop_fraction", "low", "high")

    @decided
    def scope(self) -> Scope:
        """A share is taken of all tokens."""
        return "token" if self.drop_fraction is None else "batch"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Take the gradient from tokens outside the band."""
        batch = context.batch
        assert batch.old_entropy is not None  # `needs` has seen to it
        new, old = batch.entropy.detach().double(), batch.old_entropy.detach().double()
        ratio = ((new + ENTROPY_FLOOR) / (old + ENTROPY_FLOOR)).masked_fill(~flow.valid, 1.0)
        if self.drop_fraction is not None:
            requested = round(self.drop_fraction * context.valid_tokens)
            far = ratio.clamp_min(ENTROPY_FLOOR).log().abs()
            drop = masked_top_k(far, flow.valid & (ratio != 1.0), requested, context.reducer)
            return flow.gated(flow.valid & ~drop), {"requested": float(requested)}, None
        return flow.gated(flow.valid & (ratio > self.low) & (ratio < self.high)), {}, None
