"""What an update does to on-policy entropy, estimated from rollouts that did not make it.

The mean entropy that trainers log is M = E[Σ_t h_t]/E[L] over rollouts of the policy itself. An update changes h at
fixed contexts, and it changes which contexts are visited. Old rollouts that are independent of the update, scored under
the old weights and the new (h' and π'), tell both apart without a new rollout (part F of the theory notes):

    ρ_{<t} = Π_{s<t} π'(y_s|x_s) / π(y_s|x_s)      M' = ΣΣ ρ_{<t} h'_t / ΣΣ ρ_{<t}

    M' − mean h = (mean h' − mean h) + (M' − mean h')  = fixed contexts + state shift

Numerator and denominator of M' are unbiased at any step size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_theory.errors import invalid
from entropy_theory.influence.model_view import ModelView, full_precision
from entropy_theory.vocab import token_statistics


@dataclass(frozen=True)
class ReweightedEntropy:
    """On-policy mean entropy before and after an update, in nats, from rollouts that did not make it.

    Attributes:
        before: M, the mean of h over the rollouts' tokens.
        fixed: mean h' − mean h, the change at fixed contexts.
        shift: M' − mean h', the state shift.
        after: M' = before + fixed + shift.
        fixed_error: Standard error of ``fixed``, clustered by prompt group; None for a single group.
        shift_error: Likewise of ``shift``.
        change_error: Likewise of ``fixed + shift``.
        effective_sample_size: (Σρ)²/Σρ² over the tokens' weights; far below ``tokens``, M' rests on few of them.
        tokens: Tokens of the rollouts.
        groups: Prompt groups of the rollouts.
    """

    before: float
    fixed: float
    shift: float
    after: float
    fixed_error: float | None
    shift_error: float | None
    change_error: float | None
    effective_sample_size: float
    tokens: int
    groups: int


def prefix_weights(old_log_probs: Tensor, new_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Weight each context of a rollout by how much more often the new policy visits it: ρ_{<t} = Π_{s<t} π'/π.

    Args:
        old_log_probs: log π of the sampled tokens under the policy that sampled them, (B, T).
        new_log_probs: log π' under the new weights, (B, T).
        mask: The rollouts' tokens, (B, T); values elsewhere are not read.

    Returns:
        ρ_{<t}, (B, T) float64, zero where there is no token.

    Raises:
        ValueError: Shapes differ, the mask holds other values than 0 and 1, or a log-probability or a weight is not
            finite.

    Example:
        >>> old, new = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.5]]).log()
        >>> [round(weight, 6) for weight in prefix_weights(old, new, torch.ones(1, 2)).tolist()[0]]
        [1.0, 1.5]
    """
    for name, value in (("new_log_probs", new_log_probs), ("mask", mask)):
        if value.shape != old_log_probs.shape or value.dim() != 2:
            raise invalid(name, f"shape {tuple(old_log_probs.shape)} of (B, T)", tuple(value.shape))
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise invalid("mask", "values 0 and 1", "others")
    inside = mask.bool()
    ratio = torch.where(inside, new_log_probs.double() - old_log_probs.double(), 0.0)
    weights = torch.where(inside, (ratio.cumsum(1) - ratio).exp(), 0.0)
    if not bool(torch.isfinite(ratio).all() and torch.isfinite(weights).all()):
        raise invalid("new_log_probs", "finite log-probabilities, and finite weights π'/π", "NaN or infinity")
    return weights


def reweighted_entropy(
    old_log_probs: Tensor,
    new_log_probs: Tensor,
    old_entropy: Tensor,
    new_entropy: Tensor,
    mask: Tensor,
    group_ids: Tensor,
) -> ReweightedEntropy:
    """Estimate on-policy mean entropy after an update from rollouts of the policy before it.

    Standard errors are those of the linearised ratios over prompt groups. With N_g, D_g, E_g, C_g a group's sums of
    ρ h', ρ, h' and 1, and N, D, E, C their totals over G groups:

        e_g = (N_g − M' D_g)/D − (E_g − (E/C) C_g)/C        SE(shift)² = G/(G−1) Σ_g e_g²

    Args:
        old_log_probs: log π of the sampled tokens under the policy that sampled them, (B, T).
        new_log_probs: log π' under the new weights, (B, T).
        old_entropy: h before the update, nats, (B, T).
        new_entropy: h' after it, nats, (B, T).
        mask: The rollouts' tokens with the stop token, (B, T); values elsewhere are not read.
        group_ids: The prompt group of each rollout, integers (B,).

    Returns:
        The estimate. It holds for an update that does not depend on these rollouts.

    Raises:
        ValueError: Shapes do not fit, there is no token, or a number is not finite.

    Example:
        >>> half = torch.full((2, 1), 0.5).log()
        >>> h, one = torch.full((2, 1), 0.6), torch.ones(2, 1)
        >>> estimate = reweighted_entropy(half, half, h, h - 0.1, one, torch.tensor([0, 1]))
        >>> round(estimate.fixed, 6), estimate.shift, estimate.effective_sample_size
        (-0.1, 0.0, 2.0)
    """
    weights = prefix_weights(old_log_probs, new_log_probs, mask)
    if group_ids.shape != mask.shape[:1]:
        raise invalid("group_ids", f"shape {tuple(mask.shape[:1])}", tuple(group_ids.shape))
    if group_ids.is_floating_point():  # NaN would make a group of its own in each row
        raise invalid("group_ids", "integers", group_ids.dtype)
    inside = mask.bool()
    tokens = int(inside.sum())
    if not tokens:
        raise invalid("mask", "at least one token", "none")
    heights = []
    for name, value in (("old_entropy", old_entropy), ("new_entropy", new_entropy)):
        if value.shape != mask.shape:
            raise invalid(name, f"shape {tuple(mask.shape)}", tuple(value.shape))
        if not bool(torch.isfinite(value[inside]).all()):
            raise invalid(name, "finite numbers at the tokens", "NaN or infinity")
        heights.append(torch.where(inside, value.double(), 0.0))
    columns = [weights, inside.double(), *heights, weights * heights[1]]
    numbers = group_ids.unique(return_inverse=True)[1]
    sums = torch.zeros(int(numbers.max()) + 1, 5, dtype=torch.float64, device=mask.device)
    sums = sums.index_add(0, numbers, torch.stack([column.sum(1) for column in columns], dim=1))
    sums = sums[sums[:, 1] > 0]  # a group without a token has no part in any of the means
    rho, count, old_sum, new_sum, reweighted = sums.T
    before, after_fixed, after = old_sum.sum() / tokens, new_sum.sum() / tokens, reweighted.sum() / rho.sum()

    shares = weights / weights.max()  # squares of large weights would overflow

    def error(residuals: Tensor) -> float | None:
        groups = len(residuals)
        return math.sqrt(groups / (groups - 1) * float(residuals.square().sum())) if groups > 1 else None

    of_before = (old_sum - before * count) / tokens
    of_fixed = (new_sum - after_fixed * count) / tokens
    of_after = (reweighted - after * rho) / rho.sum()
    return ReweightedEntropy(
        before=float(before),
        fixed=float(after_fixed - before),
        shift=float(after - after_fixed),
        after=float(after),
        fixed_error=error(of_fixed - of_before),
        shift_error=error(of_after - of_fixed),
        change_error=error(of_after - of_before),
        effective_sample_size=float(shares.sum() ** 2 / shares.square().sum()),
        tokens=tokens,
        groups=len(sums),
    )


@torch.no_grad()
def token_scores(view: ModelView, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Score a batch's tokens under given weights: log-probabilities and entropies.

    Args:
        view: The batch and the model.
        parameters: What trains, by name; of any precision.

    Returns:
        log p and h in nats, (B, T), zero at invalid positions.
    """
    cast = {name: parameters[name].detach().to(view.dtype) for name in view.start}
    scores = torch.zeros(2, *view.mask.shape, dtype=view.dtype, device=view.mask.device)
    with full_precision(view.dtype):
        for rows in view.blocks():
            inside = view.mask[rows]
            tokens = view.batch.completion_ids[rows][inside]
            statistics = token_statistics(view.logits(cast, rows)[inside], tokens, impl="eager")
            view.put(scores[0], rows, statistics.log_probs)
            view.put(scores[1], rows, statistics.entropy)
    return scores[0], scores[1]
