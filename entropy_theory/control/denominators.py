"""What a loss divides by: the loss types of TRL, the aggregations of verl, and how a smaller count enters a fixed one.

A rule that takes tokens out of the token mean's count has its own denominator, and a trainer divides by another.
`shrinkage` is what per-token terms are multiplied by so that the trainer's divisor yields the rule's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from entropy_theory.control.reducers import LOCAL, Reducer
from entropy_theory.errors import invalid

Divisor = Literal["token", "sequence", "constant"]
"""All tokens share one count, each row has its own, or no tokens are counted."""

AggregationMode = Literal[
    "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
]

TRL_DIVISORS: Mapping[str, Divisor] = {
    "bnpo": "token",
    "cispo": "token",
    "dapo": "token",
    "vespo": "token",
    "grpo": "sequence",
    "sapo": "sequence",
    "dr_grpo": "constant",
    "luspo": "constant",
}
"""How each loss type of TRL divides; the loss types that are known."""

VERL_DIVISORS: Mapping[str, Divisor] = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "token-sum": "constant",
    "seq-mean-token-sum": "constant",
    "seq-mean-token-sum-norm": "constant",
}
"""How each aggregation of verl divides."""


def shrinkage(
    mask: Num[Tensor, "B T"] | Bool[Tensor, "B T"],
    counted: Bool[Tensor, "B T"],
    divisor: Divisor,
    reducer: Reducer = LOCAL,
) -> float | Float[Tensor, "B 1"] | None:
    """What per-token terms are multiplied by so that the trainer's fixed divisor yields the rule's own.

        token     #valid / #counted, over all ranks
        sequence  #valid / #counted of each row
        constant  nothing to do

    Args:
        mask: The valid tokens, which the trainer counts.
        counted: Those that the rule counts.
        divisor: How the trainer divides.
        reducer: The collectives.

    Returns:
        None where nothing changes, a number, or one number per row.

    Example:
        >>> valid = torch.ones(1, 4, dtype=torch.bool)
        >>> shrinkage(valid, torch.tensor([[True, True, False, True]]), "token")
        1.3333333333333333
    """
    sizes = reducer.sum(torch.stack([mask.sum(), counted.sum()]).double()).tolist()
    if divisor == "constant" or sizes[0] == sizes[1]:
        return None
    if divisor == "token":
        return float(sizes[0] / max(sizes[1], 1.0))
    return (mask.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)).float()


def reduce_as_trl(
    per_token: Float[Tensor, "B T"],
    mask: Num[Tensor, "B T"] | Bool[Tensor, "B T"],
    loss_type: str,
    *,
    steps: int,
    items: float | Float[Tensor, ""] | None = None,
    longest: int | None = None,
) -> Float[Tensor, ""]:
    """Reduce a per-token loss as TRL's loss types do, for one micro-batch in training.

        dapo, cispo, vespo  Σ m x / n
        grpo, sapo          mean over rows of Σ_t m x / Σ_t m
        bnpo                Σ m x / Σ m of the micro-batch
        dr_grpo             Σ m x / (B L)
        luspo               mean over rows of Σ_t m x

    and all but the first divided by the micro-batches of the optimizer step. Operations are in TRL's order, so that
    results are TRL's to the bit.

    Args:
        per_token: x, 0 or finite where the mask is 0.
        mask: m.
        loss_type: One of `TRL_DIVISORS`.
        steps: The micro-batches of the optimizer step.
        items: n, the tokens of the optimizer step per rank; for the first row.
        longest: L, the longest completion allowed; for dr_grpo.

    Raises:
        ValueError: an unknown loss type, or what it divides by is not given.

    Example:
        >>> reduce_as_trl(torch.tensor([[1.0, 3.0]]), torch.tensor([[1, 1]]), "grpo", steps=2).item()
        1.0
    """
    if loss_type not in TRL_DIVISORS:
        raise invalid("loss_type", f"one of {', '.join(sorted(TRL_DIVISORS))}", repr(loss_type))
    if loss_type in ("dapo", "cispo", "vespo"):
        if items is None:
            raise invalid("items", f"the tokens of the optimizer step for {loss_type}", None)
        return (per_token * mask).sum() / items
    if loss_type in ("grpo", "sapo"):
        loss = ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    elif loss_type == "bnpo":
        loss = (per_token * mask).sum() / mask.sum().clamp(min=1.0)
    elif loss_type == "dr_grpo":
        if longest is None:
            raise invalid("longest", "the longest completion allowed for dr_grpo", None)
        loss = (per_token * mask).sum() / (per_token.size(0) * longest)
    else:
        loss = (per_token * mask).sum(-1).mean()
    return loss / steps


def aggregate(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | Num[Tensor, "B T"],
    mode: AggregationMode = "token-mean",
    *,
    horizon: int | None = None,
    reducer: Reducer = LOCAL,
) -> Float[Tensor, ""]:
    """Reduce per-token values to this rank's part of a scalar, with the meanings of verl's aggregation modes.

    With m the mask, R the number of rows that have a valid token (over all ranks) and L the horizon:

        token-mean               Σ_bt m x / Σ_bt m
        token-sum                Σ_bt m x
        seq-mean-token-sum       (1/R) Σ_b Σ_t m x
        seq-mean-token-mean      (1/R) Σ_b Σ_t m x / Σ_t m
        seq-mean-token-sum-norm  (1/R) Σ_b Σ_t m x / L

    Fully masked rows count in no mean, as in current verl (older copies and TRL differ). The parts of all ranks
    add up to the scalar. An empty mask gives 0.

    Args:
        values: x, (B, T); may hold anything where the mask is 0.
        mask: m, (B, T), 0 or 1.
        mode: One of the five names.
        horizon: L; None is the width T, which makes the result depend on padding.
        reducer: The collectives for the counts.

    Raises:
        ValueError: unknown mode, or a horizon < 1.

    Example:
        >>> x, mask = torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])
        >>> aggregate(x, mask).item(), aggregate(x, mask, "seq-mean-token-mean").item()
        (3.0, 3.75)
    """
    if mode not in get_args(AggregationMode):
        raise invalid("mode", f"one of {', '.join(get_args(AggregationMode))}", repr(mode))
    length = values.shape[1] if horizon is None else horizon
    if length < 1:
        raise invalid("horizon", "a length ≥ 1", horizon)
    inside = mask.to(torch.bool)
    per_row = inside.sum(dim=1)
    counts = reducer.sum(torch.stack([per_row.sum(), (per_row > 0).sum()])).clamp_min(1)
    row_sums = values.masked_fill(~inside, 0.0).sum(dim=1)
    if mode == "token-mean":
        return row_sums.sum() / counts[0]
    if mode == "token-sum":
        return row_sums.sum()
    if mode == "seq-mean-token-mean":
        row_sums = row_sums / per_row.clamp_min(1)
    elif mode == "seq-mean-token-sum-norm":
        row_sums = row_sums / length
    return row_sums.sum() / counts[1]
