"""How a gradient becomes a move of the logits: the theory's own step, natural gradient, and Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.dynamics.bank import PolicyStatistics

Optimizer = Literal["sgd", "natural", "adam"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, the defaults of arXiv 1412.6980 and of torch."""


def natural_move(
    policy: PolicyStatistics,
    tokens: Int[Tensor, "B G"],
    coefficients: Float[Tensor, "B G"],
    scale: float,
    entropy_coefficients: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B V"]:
    """Turn coefficients into the natural-gradient step of the logits.

    The Fisher information of a softmax in its logits is F = diag(p) − p pᵀ, so F δ = p (δ − E_p δ). It knows nothing of
    a shift of all logits: its null space is the constant vectors. The gradient ĝ = Σ_j g_j (e_{k_j} − p) − c S sums to
    zero, so F δ = ĝ has solutions, δ_i = ĝ_i/p_i up to a shift; taken here is the one with E_p δ = 0.

    Formula: δz_i = s [Σ_j g_j (1{k_j = i}/p_i − 1) − c u_i], since S = p u.

    To first order δ log p_i = δz_i: a token's log-probability moves by what it was given, however unlikely it is. Rare
    tokens make that a large step, and to the second order a poorly predicted one.

    Args:
        policy: p and u, for B policies.
        tokens: k, (B, G).
        coefficients: g, (B, G).
        scale: s = η/n.
        entropy_coefficients: c, (B,), or None for 0.

    Returns:
        δz, float64, (B, V). A probability below the smallest normal float64 counts as that.

    Example:
        >>> from entropy_theory.dynamics.bank import policy_statistics
        >>> bank = policy_statistics(torch.zeros(1, 4))
        >>> natural_move(bank, torch.tensor([[2]]), torch.ones(1, 1).double(), 1.0).tolist()
        [[-1.0, -1.0, 3.0, -1.0]]
    """
    scaled = coefficients * scale
    move = (-scaled.sum(dim=-1, keepdim=True)).expand_as(policy.probs).clone()
    rarity = policy.probs.gather(-1, tokens).clamp_min(torch.finfo(torch.float64).tiny)
    move.scatter_add_(-1, tokens, scaled / rarity)
    if entropy_coefficients is not None:
        move -= policy.excess * (scale * entropy_coefficients).unsqueeze(-1)
    return move


@dataclass(eq=False)
class AdamMoments:
    """The moments of Adam for a bank of policies; mutable, part of a checkpoint.

    Attributes:
        first: m, (B, V), in the dtype of the logits.
        second: v, (B, V), likewise.

    Example:
        >>> moments = AdamMoments.zeros_like(torch.zeros(1, 2).double())
        >>> moments.move(slice(0, 1), torch.tensor([[3.0, -3.0]]).double(), count=1, step_size=0.5).tolist()
        [[0.49999999833..., -0.49999999833...]]
    """

    first: Float[Tensor, "B V"]
    second: Float[Tensor, "B V"]

    @classmethod
    def zeros_like(cls, logits: Float[Tensor, "B V"]) -> AdamMoments:
        """Begin with m = v = 0."""
        return cls(torch.zeros_like(logits), torch.zeros_like(logits))

    def move(self, rows: slice, gradient: Float[Tensor, "b V"], *, count: int, step_size: float) -> Tensor:
        """Take in the gradient of some policies and say how their logits move.

        Adam (arXiv 1412.6980), of a gradient ĝ that is to be ascended:

            m ← β₁ m + (1 − β₁) ĝ,  v ← β₂ v + (1 − β₂) ĝ²,  δz = η (m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε),

        β₁ = .9, β₂ = .999, ε = 1e-8. A policy whose group has equal rewards has ĝ = 0 and still moves, by its momentum.

        Args:
            rows: Which policies.
            gradient: ĝ, float64, (b, V).
            count: t, the number of this update, from 1.
            step_size: η.

        Returns:
            δz, float64, (b, V).
        """
        m = (self.first[rows].double() * BETA1).add_(gradient, alpha=1.0 - BETA1)
        v = (self.second[rows].double() * BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
        self.first[rows], self.second[rows] = m, v
        root = (v / (1.0 - BETA2**count)).sqrt_().add_(EPSILON)
        return m.mul_(step_size / (1.0 - BETA1**count)).div_(root)
