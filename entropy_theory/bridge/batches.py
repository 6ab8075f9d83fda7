"""What the bridges to verl-like trainers share: a rule's output in a trainer's own terms, and numbers for its log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import LocalReducer, Reducer, RuleOutput, TokenBatch
from entropy_theory.errors import invalid

PREFIX = "entropy_control/"

# How verl's aggregation modes divide, which decides how a smaller count is expressed in advantages.
_BY_COUNT = ("token-mean",)
_BY_ROW = ("seq-mean-token-mean",)
_BY_CONSTANT = ("token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm")


class SealedBatch(TokenBatch):
    """A batch for rules that do not read the entropy; one that does is told what is missing."""

    __no_type_check__ = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_sealed", True)

    def __getattribute__(self, name: str) -> Any:
        if name == "entropy" and object.__getattribute__(self, "__dict__").get("_sealed"):
            raise invalid("entropy", "a tensor, because the rule reads it (verl passes none here)", None)
        return super().__getattribute__(name)


def effective_advantages(
    output: RuleOutput, mask: Tensor, loss_agg_mode: str = "token-mean", reducer: Reducer | None = None
) -> Tensor:
    """Express a rule's coefficients and its smaller token count as advantages for a trainer that counts all tokens.

        token-mean           Â_t = g_t · n / n_counted, over all ranks
        seq-mean-token-mean  Â_t = g_t · |row| / |row counted|
        otherwise            Â_t = g_t

    Args:
        output: What the rule made of the batch.
        mask: The trainer's valid tokens, (B, T).
        loss_agg_mode: One of verl's five names.
        reducer: The collectives for the counts; None is one process.

    Returns:
        Â, (B, T), 0 at masked positions.

    Raises:
        ValueError: an unknown aggregation.

    Example:
        >>> from entropy_theory.control import rule
        >>> x, A = torch.tensor([[-0.1, -0.1, -1.5, -0.1]]), torch.tensor([-1.0])
        >>> out = rule("clip-b(mu=1)").apply(TokenBatch(x, x * 0 + 0.5, A, x * 0 + 1))
        >>> [round(a, 3) for a in effective_advantages(out, x < 0)[0].tolist()]
        [-1.333, -1.333, 0.0, -1.333]
    """
    if loss_agg_mode not in (*_BY_COUNT, *_BY_ROW, *_BY_CONSTANT):
        raise invalid("loss_agg_mode", f"one of {', '.join((*_BY_COUNT, *_BY_ROW, *_BY_CONSTANT))}", loss_agg_mode)
    coefficients, counted = output.coefficients, output.counted_mask
    if loss_agg_mode in _BY_CONSTANT or output.denominator == (reducer or LocalReducer()).sum(mask.sum()):
        return coefficients  # its very bits: x · n / n may round
    if loss_agg_mode in _BY_COUNT:
        valid = (reducer or LocalReducer()).sum(mask.sum())
        return coefficients * (valid.double() / output.denominator.clamp_min(1)).to(coefficients)
    return coefficients * (mask.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)).to(coefficients)


def batch_metrics(batch: TokenBatch, advantages: Tensor, reducer: Reducer | None = None) -> dict[str, float]:
    """Summarise a batch over all ranks: mean H, mean S and, with S_c at hand, mean S_c and the slope −mean(g S_c).

    Args:
        batch: The statistics.
        advantages: The per-token advantages after the rule, (B, T).
        reducer: The collectives; None is one process.

    Example:
        >>> x = torch.full((1, 2), -1.0)
        >>> batch = TokenBatch(x, -x, x, x + 2, centered_discriminant=-x)
        >>> batch_metrics(batch, 2 * x)["slope"]
        2.0
    """
    reducer, mask = reducer or LocalReducer(), batch.completion_mask
    columns = {"entropy": batch.entropy, "mean_discriminant": batch.scores()}
    if batch.available("centered_discriminant"):
        centered = batch.centered_scores().double()
        columns["mean_centered_discriminant"] = centered
        columns["slope"] = -torch.where(mask, advantages, 0.0).double() * centered
    sums = [torch.where(mask, column.double(), 0.0).sum() for column in columns.values()]
    *totals, count = reducer.sum(torch.stack([*sums, mask.sum().double()])).tolist()
    return {name: total / max(count, 1.0) for name, total in zip(columns, totals, strict=True)}
