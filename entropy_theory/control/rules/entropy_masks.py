"""Masks that look at entropy itself: the 80/20 rule of high-entropy tokens, and entropy-ratio clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from entropy_theory.control.base import Phase, Rule, Scope, Step
from entropy_theory.control.flow import Context, Denominator, Flow, State, Statistics
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

    Args:
        share: ρ in [0, 1]; 0 keeps the tokens of maximal entropy, 1 keeps all.
        scope: "batch" as TRL; "sequence": a quantile for each sequence, as other implementations.
        strict: False as TRL (≥); True keeps H > Q, as other implementations.
        denominator: "valid" as TRL; "kept": dropped tokens leave the token mean's count.
        statistics: The tokens that the quantile sees: all "valid" ones, or those "kept" by earlier rules of a pipe.

    Quadrants: all four alike where entropy is low; there S_c is small too, so that its predicted effect on entropy is
        far less than the share of tokens it drops. Non-monotone in ρ.
    Departures: none. The official mask is computed anew at every update; fixed once per batch it is the same mask for
        the first.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
        >>> HighEntropy(share=0.5).apply(TokenBatch(-H, H, torch.ones(1), torch.ones(1, 5))).keep_mask.tolist()
        [[False, False, True, True, True]]
    """

    name: ClassVar[str] = "high-entropy"
    needs: ClassVar[tuple[str, ...]] = ("entropy",)
    paper: ClassVar[str] = "arXiv 2506.01939"
    kind: ClassVar[str] = "mask"
    quadrants: ClassVar[str] = "all four alike, at low entropy"
    threshold_parameter: ClassVar[str] = "share"
    parity: ClassVar[str] = "TRL get_high_entropy_mask, four shares; its loss and entropy bonus"

    share: float = 0.2
    scope: Population = "batch"  # type: ignore[misc]  # here a parameter is the declaration
    strict: bool = False
    denominator: Denominator = "valid"
    statistics: Statistics = "valid"

    def __post_init__(self) -> None:
        self._number("share", 0.0, 1.0)
        self._choice("scope", get_args(Population))
        self._choice("strict", (True, False))
        self._choice("denominator", get_args(Denominator))
        self._choice("statistics", get_args(Statistics))

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the tokens below the quantile.

        Example:
            >>> from entropy_theory.control import TokenBatch
            >>> H = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
            >>> batch = TokenBatch(-H, H, torch.ones(2), torch.ones(2, 2))
            >>> HighEntropy(share=0.5, scope="sequence").apply(batch).keep_mask.tolist()
            [[False, True], [False, True]]
        """
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
    either order.

    Args:
        low: Lower bound, in [0, 1). Scripts .95; the yaml of the official code says .8.
        high: Upper bound, > 1. Scripts 1.05; the yaml says 1.2.
        drop_fraction: Instead of the bounds: drop this share of the valid tokens, those with the largest abs(log
            ratio).

    Quadrants: any; only positions that have already moved, up (Q2, Q3) or down (Q1, Q4). At entropy near 0 the ratio is
        noise.
    Departures: none. The bounds are compared in float64.

    Raises:
        ValueError: a parameter out of range; bounds given beside drop_fraction.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[0.5, 0.6]])
        >>> batch = TokenBatch(-H, H, torch.ones(1), torch.ones(1, 2), old_entropy=torch.full((1, 2), 0.5))
        >>> EntropyRatio().apply(batch).keep_mask.tolist()
        [[True, False]]
    """

    name: ClassVar[str] = "entropy-ratio"
    phase: ClassVar[Phase] = "live"
    scope: ClassVar[Scope] = "token"
    needs: ClassVar[tuple[str, ...]] = ("entropy", "old_entropy")
    paper: ClassVar[str] = "arXiv 2512.05591"
    kind: ClassVar[str] = "mask"
    quadrants: ClassVar[str] = "any, where entropy has already moved"
    parity: ClassVar[str] = "ERC, two bands, with PPO clip and CE-GPPO"

    low: float = 0.95
    high: float = 1.05
    drop_fraction: float | None = None

    def __post_init__(self) -> None:
        self._number("low", 0.0, 1.0)
        self._number("high", 1.0)
        self._fraction_instead_of("low", "high")
        if self.drop_fraction is not None:
            self._narrow(scope="batch")

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Take the gradient from tokens outside the band.

        Example:
            >>> from entropy_theory.control import TokenBatch
            >>> H = torch.tensor([[0.5, 0.6]])
            >>> batch = TokenBatch(-H, H, torch.ones(1), torch.ones(1, 2), old_entropy=torch.full((1, 2), 0.5))
            >>> EntropyRatio(drop_fraction=0.5).apply(batch).keep_mask.tolist()
            [[True, False]]
        """
        batch = context.batch
        assert batch.old_entropy is not None  # `needs` has seen to it
        new, old = batch.entropy.detach().double(), batch.old_entropy.detach().double()
        ratio = ((new + ENTROPY_FLOOR) / (old + ENTROPY_FLOOR)).masked_fill(~flow.valid, 1.0)
        if self.drop_fraction is not None:
            number = round(self.drop_fraction * context.valid_tokens)
            far = ratio.clamp_min(ENTROPY_FLOOR).log().abs()
            drop = masked_top_k(far, flow.valid & (ratio != 1.0), number, context.reducer)
            return flow.gated(flow.valid & ~drop), {"requested": float(number)}, None
        return flow.gated(flow.valid & (ratio > self.low) & (ratio < self.high)), {}, None
