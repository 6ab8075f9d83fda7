"""Objectives that replace PPO's altogether: CISPO, GSPO, SAPO, GPG, and verl's DPPO, GMPO and DRO.

All but GPG read the current ratio. They change *how much* gradient a token of a given ratio gets, not which tokens are
likely; their effect on entropy is what the lens shows for the batch at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control.base import Rule, Scope, Step
from entropy_theory.control.flow import MAX_LOG_RATIO, Context, Flow, State
from entropy_theory.control.parameters import SMALLEST, choice, number
from entropy_theory.control.registry import register

GSPO_MAX_LOG_RATIO = 10.0
"""The log of a sequence's ratio is clamped to this from above, as verl does."""

Divergence = Literal["tv", "kl"]


def _row_mean(values: Float[Tensor, "B T"], flow: Flow) -> Float[Tensor, "B 1"]:
    """Mean over the valid tokens of each row; 0 for a row without any."""
    total = values.masked_fill(~flow.valid, 0.0).sum(dim=1, keepdim=True)
    return total / flow.valid.sum(dim=1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class _Surrogate(Rule):
    """What all of them share."""

    phase = "live"
    scope: ClassVar[Scope] = "token"
    needs = ("old_log_probs",)
    kind = "surrogate"


@register
@dataclass(frozen=True)
class CISPO(_Surrogate):
    """CISPO: every token keeps a gradient, with a clipped ratio as its weight.

    arXiv 2506.13585; official code: verl `compute_policy_loss_cispo`, TRL loss type cispo.

        J = sg(clamp(r, 1 − ε_l, 1 + ε_h)) Â log p,   g = clamp(r, 1 − ε_l, 1 + ε_h) Â

    Args:
        epsilon_low: ε_l, or None for no lower bound, as TRL.
        epsilon_high: ε_h. TRL names the bound itself: its epsilon_high = 2 is ε_h = 1 here.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 1), -1.0)
        >>> batch = TokenBatch(old + 0.5, -old, torch.ones(1), torch.ones(1, 1), old_log_probs=old)
        >>> round(CISPO().apply(batch).coefficients.item(), 4)
        1.28
    """

    name = "cispo"
    paper = "arXiv 2506.13585"
    quadrants = "spares what ppo-clip cuts of Q2 and Q4, at a bounded weight"
    parity = "verl cispo, TRL cispo"
    departures = "none; verl's and TRL's differ by the lower bound and the name of the upper one."

    epsilon_low: float | None = number(0.2, 0.0, 1.0, optional=True)
    epsilon_high: float = number(0.28, 0.0)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Weight log p by the clipped ratio."""
        low = None if self.epsilon_low is None else 1.0 - self.epsilon_low
        weight = flow.ratio.detach().clamp(low, 1.0 + self.epsilon_high)
        return flow.replaced(weight * flow.advantages * flow.log_probs, derivative=weight), {}, None


@register
@dataclass(frozen=True)
class GSPO(_Surrogate):
    """GSPO: one ratio per sequence, the geometric mean of its tokens', clipped as in PPO.

    arXiv 2507.18071; official code: verl `compute_policy_loss_gspo`, TRL with sequence-level importance sampling.

        log s = mean_t (log p_t − log p_old,t), at most 10;   J = min(s Â, clamp(s, 1 − ε_l, 1 + ε_h) Â)
        g = s Â, and 0 where Â > 0, s > 1 + ε_h or Â < 0, s < 1 − ε_l

    Args:
        epsilon_low: ε_l. Paper 3e-4.
        epsilon_high: ε_h. Paper 4e-4.

    The official losses average each sequence first: use `aggregate(..., "seq-mean-token-mean")`. verl leaves fully
    masked rows out of the mean of rows, TRL counts them.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 2), -1.0)
        >>> batch = TokenBatch(old + torch.tensor([[0.1, -0.1]]), -old, torch.ones(1), torch.ones(1, 2), old)
        >>> GSPO().apply(batch).coefficients.tolist()
        [[1.0, 1.0]]
    """

    name = "gspo"
    scope = "sequence"
    paper = "arXiv 2507.18071"
    kind = "mask of sequences"
    quadrants = "whole sequences, whatever the quadrants of their tokens"
    parity = "verl gspo, TRL gspo"

    epsilon_low: float = number(3e-4, 0.0, 1.0)
    epsilon_high: float = number(4e-4, 0.0)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Give every token the ratio of its sequence."""
        log_mean = _row_mean(flow.log_ratio.detach(), flow)
        log_s = log_mean.clamp_max(GSPO_MAX_LOG_RATIO) + (flow.log_probs - flow.log_probs.detach())
        ratio = log_s.exp()
        low, high = 1.0 - self.epsilon_low, 1.0 + self.epsilon_high
        objective = torch.minimum(flow.advantages * ratio, flow.advantages * ratio.clamp(low, high))
        s = ratio.detach()
        cut = ((flow.advantages > 0) & (s > high)) | ((flow.advantages < 0) & (s < low))
        cut = cut | (log_mean > GSPO_MAX_LOG_RATIO)
        objective = torch.where(log_mean > GSPO_MAX_LOG_RATIO, objective.detach(), objective)
        return flow.replaced(objective, keep=flow.valid & ~cut, derivative=s), {}, None


@register
@dataclass(frozen=True)
class SAPO(_Surrogate):
    """SAPO: a smooth gate in place of the clip.

    arXiv 2511.20347; official code: verl `compute_policy_loss_sapo`, TRL loss type sapo.

        J = (4/τ) σ(τ (r − 1)) Â,   g = 4 σ(1 − σ) r Â,   σ = σ(τ (r − 1)),  τ by the sign of A

    Args:
        tau_positive: τ where A > 0.
        tau_negative: τ elsewhere.

    The official losses average each sequence first: use `aggregate(..., "seq-mean-token-mean")`.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 1), -1.0)
        >>> SAPO().apply(TokenBatch(old, -old, torch.ones(1), torch.ones(1, 1), old)).coefficients.item()
        1.0
    """

    name = "sapo"
    paper = "arXiv 2511.20347"
    kind = "weight"
    quadrants = "fades Q2 and Q4 at ratios far from 1"
    parity = "verl sapo, TRL sapo"

    tau_positive: float = number(1.0, SMALLEST)
    tau_negative: float = number(1.05, SMALLEST)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Put the ratio through the gate."""
        tau = torch.where(flow.advantages > 0, self.tau_positive, self.tau_negative).to(flow.ratio.dtype)
        gate = torch.sigmoid(tau * (flow.ratio - 1.0))
        fixed = gate.detach()
        inside = flow.log_ratio.detach().abs() <= MAX_LOG_RATIO
        derivative = (4.0 * fixed * (1.0 - fixed) * flow.ratio.detach()).masked_fill(~inside, 0.0)
        return flow.replaced(gate * (4.0 / tau) * flow.advantages, derivative=derivative), {}, None


@register
@dataclass(frozen=True)
class GPG(Rule):
    """GPG: the plain policy gradient, without a ratio.

    arXiv 2504.02546; official code: verl `compute_policy_loss_gpg`.

        J = Â log p,   g = Â

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.full((1, 1), -1.0)
        >>> GPG().apply(TokenBatch(x, -x, torch.ones(1), torch.ones(1, 1), old_log_probs=x - 3)).coefficients.item()
        1.0
    """

    name = "gpg"
    phase = "live"
    scope = "token"
    paper = "arXiv 2504.02546"
    kind = "surrogate"
    quadrants = "all four, at any ratio"
    parity = "verl gpg"
    departures = "none. GPG's own scaling of the advantages is the trainer's affair."

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Leave the ratio out."""
        objective = flow.advantages * flow.log_probs
        return flow.replaced(objective, derivative=torch.ones_like(flow.ratio)), {}, None


@register
@dataclass(frozen=True)
class DPPO(_Surrogate):
    """DPPO: a trust region in probability or binary KL divergence instead of the ratio.

    arXiv 2602.04879; official code: verl `compute_policy_loss_dppo_tv`, `compute_policy_loss_dppo_kl`.

        J = sg(min(r, c)) Â log p on kept tokens, 0 elsewhere;   g = min(r, c) Â there
        tv: keep A > 0 with p − p_old ≤ δ_h, A ≤ 0 with p − p_old ≥ −δ_l
        kl: keep A > 0 with KL ≤ δ_h or p ≤ p_old, A ≤ 0 with KL ≤ δ_l or p ≥ p_old,
            KL = p_old log(p_old/p) + (1 − p_old) log((1 − p_old + 1e-8)/(1 − p + 1e-8))

    Args:
        divergence: "tv" or "kl".
        low: δ_l.
        high: δ_h.
        truncation: c, the largest weight.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.tensor([[-1.0, -6.0]])
        >>> batch = TokenBatch(old + 0.5, -old, torch.ones(1), torch.ones(1, 2), old_log_probs=old)
        >>> DPPO().apply(batch).keep_mask.tolist()
        [[False, True]]
    """

    name = "dppo"
    paper = "arXiv 2602.04879"
    kind = "mask"
    quadrants = "cuts likely tokens (Q1, Q3) whose probability has moved; unlikely ones hardly move"
    parity = "verl dppo_tv, dppo_kl"

    divergence: Divergence = choice("tv", Divergence)
    low: float = number(0.1, 0.0)
    high: float = number(0.1, 0.0)
    truncation: float = number(20.0, 0.0, above=True)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop tokens outside the trust region."""
        log_p, log_ratio = flow.log_probs.detach(), flow.log_ratio.detach()
        p, p_old = log_p.exp(), flow.old_log_probs(context).exp()
        if self.divergence == "tv":
            up, down = p - p_old <= self.high, p - p_old >= -self.low
        else:
            kl = -p_old * log_ratio + (1.0 - p_old) * torch.log((1.0 - p_old + 1e-8) / (1.0 - p + 1e-8))
            up, down = (kl <= self.high) | (p <= p_old), (kl <= self.low) | (p >= p_old)
        keep = flow.valid & torch.where(flow.advantages > 0, up, down)
        weight = flow.ratio.detach().clamp_max(self.truncation)
        objective = (weight * flow.advantages * flow.log_probs).masked_fill(~keep, 0.0)
        return flow.replaced(objective, keep=keep, derivative=weight), {}, None


@register
@dataclass(frozen=True)
class GMPO(_Surrogate):
    """GMPO: the geometric mean of clipped token ratios as the ratio of the sequence.

    arXiv 2507.20673; official code: verl `compute_policy_loss_geo_mean`.

        m_t = sgn(A) min(sgn(A) δ_t, sgn(A) clamp(δ_t, −ε_l, ε_h)),  δ_t = log p_t − log p_old,t
        J_i = Ā_i R_i,  log R_i = mean_t m_t, at most 20
        g_t = Ā_i R_i, and 0 where δ_t is clamped on the side of A, or log R_i is

    Written per token as J_t = Ā_i R_i, so that `aggregate(..., "seq-mean-token-mean")` gives the official loss and
    gradient; verl averages over all rows, fully masked ones included.

    Args:
        epsilon_low: ε_l, of the log-ratio.
        epsilon_high: ε_h, of the log-ratio.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 2), -1.0)
        >>> batch = TokenBatch(old + torch.tensor([[0.1, 0.9]]), -old, torch.ones(1), torch.ones(1, 2), old)
        >>> GMPO().apply(batch).keep_mask.tolist()
        [[True, False]]
    """

    name = "gmpo"
    scope = "sequence"
    paper = "arXiv 2507.20673"
    kind = "mask"
    quadrants = "as ppo-clip with wide bounds"
    parity = "verl geo_mean"
    departures = "log R is at most 20; verl's overflows where A < 0 and p has grown by e^89."

    epsilon_low: float = number(0.4, 0.0)
    epsilon_high: float = number(0.4, 0.0)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Give every token the geometric mean of its sequence's clipped ratios."""
        delta, sign = flow.log_ratio.detach(), flow.advantages.sign()
        bounded = delta.clamp(-self.epsilon_low, self.epsilon_high)
        moved = sign * torch.minimum(sign * delta, sign * bounded)
        log_mean = _row_mean(moved, flow)
        free = (sign * delta <= sign * bounded) & (log_mean <= MAX_LOG_RATIO)
        live = torch.where(free, flow.log_probs - flow.log_probs.detach(), torch.zeros_like(delta))
        ratio = (log_mean.clamp_max(MAX_LOG_RATIO) + live).exp()
        mean_advantage = _row_mean(flow.advantages, flow)
        factor = torch.where(flow.advantages != 0, mean_advantage / flow.advantages, torch.zeros_like(delta))
        derivative = factor * ratio.detach()  # per unit of the token's own advantage
        return flow.replaced(mean_advantage * ratio, keep=flow.valid & free, derivative=derivative), {}, None


@register
@dataclass(frozen=True)
class DRO(_Surrogate):
    """DRO: the policy gradient with a quadratic penalty of the log-ratio.

    arXiv 2405.19107; official code: verl `compute_policy_loss_dro`.

        J = Â log p − (β/2) (log r)²,   g = Â − β log r

    Args:
        beta: β. The penalty gives gradient to tokens without advantage.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 1), -1.0)
        >>> batch = TokenBatch(old + 0.5, -old, torch.ones(1), torch.ones(1, 1), old_log_probs=old)
        >>> DRO(beta=1.0).apply(batch).coefficients.item()
        0.5
    """

    name = "dro"
    paper = "arXiv 2405.19107"
    kind = "penalty"
    quadrants = "all four, pulled back towards the old policy"
    parity = "verl dro"
    departures = "the penalty is left out where an earlier rule dropped the token."

    beta: float = number(0.5, 0.0, above=True)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the penalty."""
        penalty = (0.5 * self.beta) * flow.log_ratio.square().masked_fill(~flow.kept, 0.0)
        objective = flow.advantages * flow.log_probs - penalty
        pull = -self.beta * flow.log_ratio
        return flow.replaced(objective, derivative=torch.ones_like(flow.ratio), added=pull), {}, None
