"""Clip_B and Clip_V: drop tokens whose score is an outlier (arXiv 2602.03392).

Both compare a score of each token with μ standard deviations of that score over all valid tokens, and drop the
outliers. Sides are named by the sign of the *score as the theory writes it*, S for Clip_B and S_c for Clip_V:
"lower" drops relatively unlikely tokens (S or S_c far below), "upper" relatively likely ones. The official codes
drop on the lower side only, and only tokens with A < 0: Q4, where a step would lower entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.flow import Context, Denominator, Flow, State, Statistics
from entropy_theory.control.parameters import choice, decided, number
from entropy_theory.control.reducers import masked_count, masked_moments, masked_top_k
from entropy_theory.control.registry import register

Side = Literal["lower", "upper", "both"]
Advantages = Literal["negative", "positive", "all"]
LogProbsSource = Literal["auto", "rollout", "current", "old"]
Sign = Literal["positive", "negative"]
ZeroAdvantages = Literal["uncapped", "kept"]

STD_FLOOR = 1e-12
"""A score whose standard deviation is below this keeps every token, as in the official code."""


def selected_advantages(advantages: Float[Tensor, "B T"], which: Advantages) -> Bool[Tensor, "B T"]:
    """Mark the tokens whose advantage has the chosen sign; "all" takes A = 0 too.

    Example:
        >>> selected_advantages(torch.tensor([[1.0, 0.0, -1.0]]), "negative").tolist()
        [[False, False, True]]
    """
    if which == "all":
        return torch.ones_like(advantages, dtype=torch.bool)
    return advantages < 0 if which == "negative" else advantages > 0


def violation(score: Float[Tensor, "B T"], origin: float, side: Side) -> Float[Tensor, "B T"]:
    """How far a score lies from the origin on the chosen side; positive means out.

    Example:
        >>> violation(torch.tensor([[-2.0, 3.0]]), 0.5, "lower").tolist()
        [[2.5, -2.5]]
    """
    if side == "lower":
        return origin - score
    deviation = score - origin
    return deviation.abs() if side == "both" else deviation


@dataclass(frozen=True)
class _DiscriminatorClipping(Rule):
    """What Clip_B and Clip_V share: their options and the search for outliers."""

    paper = "arXiv 2602.03392"
    kind = "mask"
    centered: ClassVar[bool] = False  # whether deviations are measured from the batch's mean

    mu: float = number(0.0, 0.0)
    side: Side = choice("lower", Side)
    advantages: Advantages = choice("negative", Advantages)
    denominator: Denominator = choice("kept", Denominator)
    statistics: Statistics = choice("valid", Statistics)
    drop_fraction: float | None = number(None, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._instead_of("drop_fraction", "mu")

    @decided
    def threshold_parameter(self) -> str:
        """The share where it is given."""
        return "mu" if self.drop_fraction is None else "drop_fraction"

    def limits(self, mean: float, std: float) -> tuple[float, float]:
        """Where deviations of the score are measured from, and the largest that is kept, from the score's moments."""
        return mean if self.centered else 0.0, self.mu * std if std >= STD_FLOOR else math.inf

    def _outliers(
        self, score: Tensor, flow: Flow, context: Context
    ) -> tuple[Bool[Tensor, "B T"], Float[Tensor, "B T"], dict[str, float]]:
        """Tokens of the population more than μσ out, by how much, and the statistics used."""
        population = flow.population(self.statistics)
        if masked_count(population, context.reducer) == 0:  # earlier rules dropped every token
            return torch.zeros_like(flow.valid), score, {"score_mean": 0.0, "score_std": 0.0}
        _, mean, std = masked_moments(score, population, context.reducer)
        metrics = {"score_mean": mean, "score_std": std}
        origin, threshold = self.limits(mean, std)
        # compared in float64: a float32 difference would move tokens over the threshold
        out = violation(score.to(torch.float64), origin, self.side)
        if self.side != "upper":
            metrics["threshold_lower"] = origin - self.mu * std
        if self.side != "lower":
            metrics["threshold_upper"] = origin + self.mu * std
        return population & (out > threshold), out, metrics

    def _farthest(
        self, out: Float[Tensor, "B T"], flow: Flow, context: Context
    ) -> tuple[Bool[Tensor, "B T"], dict[str, float]]:
        """The share `drop_fraction` of the valid tokens, farthest out first, among those that are out at all."""
        requested = round((self.drop_fraction or 0.0) * context.valid_tokens)
        eligible = flow.population(self.statistics) & selected_advantages(flow.unmasked_advantages, self.advantages)
        drop = masked_top_k(out, eligible & (out > 0), requested, context.reducer)
        return drop, {"requested": float(requested)}


@register
@dataclass(frozen=True)
class ClipB(_DiscriminatorClipping):
    """Clip_B: drop tokens whose discriminant S is an outlier against its batch statistics.

    arXiv 2602.03392, section 4.1; official code: Trinity-RFT `clipb_advantage.py`.

        drop t  ⇔  A_t < 0  and  S_t − mean(S) < −μ σ(S),      S = p (H + log p)

    with the mean and the population standard deviation over all valid tokens of all ranks. Since N ≥ 0, a dropped
    token with S ≤ N has S_c ≤ 0 and lies in Q4; only where mean − μσ is above 0 can Q3 be touched.

    Args:
        mu: μ, in standard deviations. Official default 2.5; S is skewed to the right, so that this often drops nothing.
        side: "lower" as official; "upper" drops S − mean > μσ; "both" either.
        advantages: Which tokens may be dropped: "negative" as official, "positive", or "all" (A = 0 included).
        denominator: "kept": dropped tokens leave the token mean's count, as official; "valid": they stay in it.
        statistics: The tokens that mean and σ see and that may be dropped: all "valid" ones, as official, or those
            "kept" by earlier rules of a pipe.
        drop_fraction: Instead of μ: drop this share of the valid tokens, those farthest out on the chosen side among
            the selected advantages; fewer when fewer are out at all.
        log_probs_source: Where p in S comes from. "auto", the official behaviour: `rollout_log_probs` when the
            batch carries them, else the current policy. "rollout" and "old" insist on those log-probabilities;
            "current" never looks at them. S of the current policy is the batch's exact `discriminant` when it is
            carried. H is always `entropy`, so with a stale p the S is a mixture of two policies; the official code
            has that too.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> log_probs = torch.tensor([[-0.1, -0.1, -1.5, -0.1]])
        >>> batch = TokenBatch(log_probs, torch.full((1, 4), 0.5), torch.tensor([-1.0]), torch.ones(1, 4))
        >>> ClipB(mu=1).apply(batch).keep_mask.tolist()
        [[True, True, False, True]]
    """

    name = "clip-b"
    centered = True
    quadrants = "removes Q4 (A < 0, unlikely tokens)"
    parity = "Trinity-RFT clipb, five settings"
    departures = (
        "the paper's text speaks of outliers on both sides and any A; the default here is the official code. A σ below "
        "1e-12 keeps every token. Statistics are summed in float64 (official: float32)."
    )

    mu: float = number(2.5, 0.0)
    log_probs_source: LogProbsSource = choice("auto", LogProbsSource)

    @decided
    def needs(self) -> tuple[str, ...]:
        """H, and the log-probabilities that are insisted on."""
        insists = self.log_probs_source in ("rollout", "old")
        return ("entropy", f"{self.log_probs_source}_log_probs") if insists else ("entropy",)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the outliers of S."""
        batch = context.batch
        sources = {"auto": batch.rollout_log_probs, "rollout": batch.rollout_log_probs, "old": batch.old_log_probs}
        scores = batch.scores(sources.get(self.log_probs_source))
        outliers, out, metrics = self._outliers(scores, flow, context)
        if self.drop_fraction is not None:
            drop, requested = self._farthest(out, flow, context)
            return flow.masked(flow.valid & ~drop, self.denominator), {**metrics, **requested}, None
        drop = outliers & selected_advantages(flow.unmasked_advantages, self.advantages)
        return flow.masked(flow.valid & ~drop, self.denominator), metrics, None


@register
@dataclass(frozen=True)
class ClipV(_DiscriminatorClipping):
    """Clip_V: drop tokens whose vocabulary-centred score S_c = S − N is an outlier, a few at most.

    arXiv 2602.03392, section 4.1; official code: Trinity-RFT `clipv_advantage.py`, which writes D = N − S = −S_c.

        drop t  ⇔  A_t < 0  and  S_c,t < −μ σ(S_c)      (D_t > μ σ(D))

    with the population standard deviation over all valid tokens of all ranks. S_c is not centred on the batch
    mean: it is centred on the vocabulary already. At most max(⌊max_fraction · n⌋, 1) tokens stay dropped, the
    farthest out first; of equals, the first in global token order.

    Args:
        mu: μ, in standard deviations. Default 8.5, the registered official one (its constructor says 2.0).
        side, advantages, denominator, statistics: As for `ClipB`, of S_c.
        drop_fraction: Instead of μ and the cap, as for `ClipB`.
        max_fraction: The cap's share of the n valid tokens; None or 1 means no cap. Official 1e-4.
        zero_advantages: "uncapped", the official behaviour: outliers with A = 0 are dropped too, and the cap
            neither counts nor restores them. They have no policy gradient, so this changes the denominator only.
            "kept": they are never dropped. Without effect when `advantages="all"`.

    Metrics: `over_threshold`, the outliers of the selected advantages before the cap.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, S_c = torch.zeros(1, 4), torch.tensor([[0.1, -0.5, -0.6, 0.1]])
        >>> batch = TokenBatch(x, x, torch.tensor([-1.0]), torch.ones(1, 4), centered_discriminant=S_c)
        >>> ClipV(mu=1).apply(batch).keep_mask.tolist()  # the cap leaves one
        [[True, True, False, True]]
        >>> ClipV(mu=1, max_fraction=None).apply(batch).keep_mask.tolist()
        [[True, False, False, True]]
    """

    name = "clip-v"
    needs = ("centered_discriminant",)
    quadrants = "removes the far end of Q4"
    parity = "Trinity-RFT clipv, six settings"
    departures = (
        "the paper's text has neither the restriction to A < 0 nor the cap; the default here is the official code. The "
        "cap is compared with the number of tokens that the selected advantages drop; the official code first compares "
        "the share of all dropped tokens with max_fraction, which decides alike. S_c comes from the batch (carried, or "
        "S − baseline), not from `old_log_probs`: at the time a batch rule runs they agree."
    )

    mu: float = number(8.5, 0.0)
    max_fraction: float | None = number(1e-4, 0.0, 1.0, optional=True)
    zero_advantages: ZeroAdvantages = choice("uncapped", ZeroAdvantages)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the outliers of S_c up to the cap."""
        outliers, out, metrics = self._outliers(context.batch.centered_scores(), flow, context)
        if self.drop_fraction is not None:
            drop, requested = self._farthest(out, flow, context)
            return flow.masked(flow.valid & ~drop, self.denominator), {**metrics, **requested}, None
        drop = outliers & selected_advantages(flow.unmasked_advantages, self.advantages)
        over = masked_count(drop, context.reducer)
        if self.max_fraction is not None:
            cap = max(int(self.max_fraction * context.valid_tokens), 1)
            if over > cap:
                drop = masked_top_k(out, drop, cap, context.reducer)
        if self.zero_advantages == "uncapped" and self.advantages != "all":
            drop = drop | (outliers & (flow.unmasked_advantages == 0))
        metrics["over_threshold"] = float(over)
        return flow.masked(flow.valid & ~drop, self.denominator), metrics, None


@register
@dataclass(frozen=True)
class KeepSign(Rule):
    """The paper's intervention: train only on tokens of one sign of S, of samples of one sign of A.

    arXiv 2602.03392, the intervention experiment; section A of the theory notes. The paper gives no code.

        keep t  ⇔  S_t > 0 ("positive") or S_t < 0 ("negative"),  and  A_t > 0 or A_t < 0 likewise

    On-policy and with constant A the expected change of entropy has the sign of −A S: "positive", "positive" lowers it,
    "positive", "negative" raises it, in any order. In expectation, not token by token: S > 0 does not imply S_c > 0, so
    "positive" keeps Q1 or Q3 and what of Q2 or Q4 has 0 < S < N; "negative" keeps of Q2 or Q4.

    Args:
        discriminant: The sign of S of the kept tokens; S is the batch's exact one when it is carried.
        samples: The sign of A of the kept tokens; "all" keeps both, A = 0 included.
        denominator: "valid": dropped tokens stay in the token mean's count; "kept": they leave it.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, S = torch.zeros(1, 3), torch.tensor([[0.1, -0.1, 0.0]])
        >>> batch = TokenBatch(x, x, torch.tensor([1.0]), torch.ones(1, 3), discriminant=S)
        >>> KeepSign().apply(batch).keep_mask.tolist(), KeepSign(samples="negative").apply(batch).keep_mask.tolist()
        ([[True, False, False]], [[False, False, False]])
    """

    name = "keep-sign"
    scope = "token"
    needs = ("entropy",)
    paper = "arXiv 2602.03392"
    kind = "mask"
    quadrants = "keeps roughly one of the four"

    discriminant: Sign = choice("positive", Sign)
    samples: Advantages = choice("positive", Advantages)
    denominator: Denominator = choice("valid", Denominator)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the tokens of the other signs."""
        scores = context.batch.scores()
        sign = scores > 0 if self.discriminant == "positive" else scores < 0
        keep = flow.valid & sign & selected_advantages(flow.unmasked_advantages, self.samples)
        return flow.masked(keep, self.denominator), {}, None
