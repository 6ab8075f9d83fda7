"""Rules that change the advantages: W-REINFORCE (PSR, NSR), entropy shaping, Lopti's two passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from entropy_theory.control.base import Rule, Scope, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.parameters import SMALLEST, choice, decided, flag, number
from entropy_theory.control.reducers import masked_quantile
from entropy_theory.control.registry import register

Samples = Literal["weighted", "positive", "negative", "advantage"]
Pass = Literal["first", "second"]
Order = Literal["low-first", "high-first"]


def last_stretch(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Mark the valid tokens that no hole in the mask separates from the last valid one of their row.

    Example:
        >>> last_stretch(torch.tensor([[True, False, True, True, False]])).tolist()
        [[False, False, True, True, False]]
    """
    backwards = valid.flip(1).to(torch.int64)
    begun = backwards.cummax(dim=1).values.bool()
    hole = (begun & ~backwards.bool()).to(torch.int64).cummax(dim=1).values.bool()
    return valid & ~hole.flip(1)


@register
@dataclass(frozen=True)
class WReinforce(Rule):
    """W-REINFORCE: learn from wrong answers fully and from right ones a little; with λ = 0 or 1, NSR and PSR.

    arXiv 2506.01347; official code: RLVR-Decomposed `compute_psr_nsr_outcome_advantage`, `compute_policy_loss`.

        weighted   A = λ R where R = 1;  R − 1 where R is 0 or −1;  R elsewhere
        positive   A = R                 (PSR; the official trainer then leaves wrong rows out)
        negative   A = R − 1             (NSR; the official trainer then leaves right rows out)
        advantage  A of the batch, times λ where R = 1, 1 where R is 0 or −1, 0 elsewhere

    Negative samples of a peaked policy are mostly Q3 (entropy rises) unless the wrong token was unlikely (Q4).

    Args:
        positive_weight: λ. Official .1.
        samples: Which of the four.
        across_holes: False, the official behaviour: where the mask has a hole inside a completion, R does not reach the
            tokens before it; they count as R = 0. True: it does.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.full((2, 1), -1.0)
        >>> batch = TokenBatch(x, -x, torch.zeros(2), torch.ones(2, 1), rewards=torch.tensor([1.0, 0.0]))
        >>> WReinforce().apply(batch).coefficients.flatten().tolist() == [torch.tensor(0.1).item(), -1.0]
        True
    """

    name = "w-reinforce"
    needs = ("rewards",)
    paper = "arXiv 2506.01347"
    kind = "advantages"
    quadrants = "shrinks Q1 and Q2, keeps Q3 and Q4"
    parity = "RLVR-Decomposed psr, nsr, w_reinforce, positive_learning_weight"
    departures = 'γ = 1 only. In the form "advantage" the official loss knows wrong answers by R = 0 alone.'

    positive_weight: float = number(0.1, 0.0)
    samples: Samples = choice("weighted", Samples)
    across_holes: bool = flag(False)

    @decided
    def scope(self) -> Scope:
        """Holes are seen in the whole row."""
        return "token" if self.across_holes or self.samples == "advantage" else "sequence"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Put advantages made of the rewards in place."""
        assert context.batch.rewards is not None  # `needs` has seen to it
        rewards = context.batch.rewards.detach().unsqueeze(1)
        right, wrong = rewards == 1, (rewards == 0) | (rewards == -1)
        if self.samples == "advantage":
            weight = torch.where(right, self.positive_weight, wrong.double()).to(flow.advantages.dtype)
            return flow.weighted(weight.expand(flow.valid.shape)), {}, None
        reached = flow.valid if self.across_holes else last_stretch(flow.valid)
        returns = torch.where(reached, rewards, torch.zeros_like(rewards))
        if self.samples == "negative":
            returns = returns - 1.0
        elif self.samples == "weighted":
            returns = torch.where(right, returns * self.positive_weight, torch.where(wrong, returns - 1.0, returns))
        return flow.with_advantages(returns, by=self.name), {}, None


@register
@dataclass(frozen=True)
class EntropyAdvantage(Rule):
    """Entropy-based advantage shaping: add a bounded share of the entropy to the advantage.

    arXiv 2506.14758 (no official code found).

        A' = A + min(α H, abs(A)/κ),   H without gradient

    It says *learn more here*; whether entropy rises depends on which of Q1 and Q2 prevails.

    Args:
        alpha: α.
        kappa: κ; with κ ≥ 1 the sign of A never flips to negative, with κ > 1 not to 0 either.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[1.0, 5.0]])
        >>> batch = TokenBatch(-H, H, torch.tensor([1.0]), torch.ones(1, 2))
        >>> [round(g, 6) for g in EntropyAdvantage().apply(batch).coefficients[0].tolist()]
        [1.4, 2.0]
    """

    name = "entropy-advantage"
    scope = "token"
    needs = ("entropy",)
    paper = "arXiv 2506.14758"
    kind = "advantages"
    quadrants = "enlarges Q1 and Q2, shrinks Q3 and Q4, where entropy is high"

    alpha: float = number(0.4, 0.0)
    kappa: float = number(1.0, SMALLEST)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the bonus."""
        A = flow.unmasked_advantages
        entropy = context.batch.entropy.detach().masked_fill(~flow.valid, 0.0).to(A.dtype)
        shaped = A + torch.minimum(self.alpha * entropy, A.abs() / self.kappa)
        return flow.with_advantages(shaped, by=self.name), {}, None


@register
@dataclass(frozen=True)
class Lopti(Rule):
    """Lopti: one of the two passes that update unlikely tokens first.

    arXiv 2505.12929; official code: AR-Lopti, the statements under `seperate_updating`.

        low-probability tokens: p_old < threshold;  "first" keeps them, "second" keeps the others

    The method is two updates on the same batch, with the policy changing in between: it takes a trainer that runs both
    (offline). This rule is what each pass sees; the denominator is all valid tokens in both.

    Args:
        which: The pass.
        threshold: η, of p_old. Official .5.
        portion: The threshold is this quantile of p_old over the valid tokens instead.
        order: "low-first" as named; "high-first" swaps the passes (official: a negative η).

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.tensor([[-0.1, -3.0]])
        >>> Lopti().apply(TokenBatch(old, -old, torch.ones(1), torch.ones(1, 2), old_log_probs=old)).keep_mask.tolist()
        [[False, True]]
    """

    name = "lopti"
    needs = ("old_log_probs",)
    paper = "arXiv 2505.12929"
    kind = "mask (one of two passes)"
    quadrants = "first pass Q2 and Q4, second Q1 and Q3, roughly"
    parity = "AR-Lopti, three settings, offline"

    which: Pass = choice("first", Pass)
    threshold: float = number(0.5, 0.0, 1.0)
    portion: float | None = number(None, 0.0, 1.0, above=True)
    order: Order = choice("low-first", Order)

    @decided
    def scope(self) -> Scope:
        """A quantile is taken of all tokens."""
        return "token" if self.portion is None else "batch"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Keep the tokens of the pass."""
        p_old = flow.old_log_probs(context).exp()
        threshold = self.threshold
        if self.portion is not None:
            threshold = masked_quantile(p_old, flow.valid, self.portion, context.reducer)
        low = p_old.double() < threshold
        keep = low if (self.which == "first") == (self.order == "low-first") else ~low
        return flow.masked(flow.valid & keep, "valid"), {"threshold": threshold}, None
